"""How long the processes of a deployment may take to end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import pytest

from pipelines.core.deployments import Build, Deployment, ServingSpec
from pipelines.local.process import ManagedProcess
from pipelines.local.serving.fleet import CLOSE_S, Fleet, Slot, Worker
from pipelines.settings import Settings


@dataclass
class Asked:
    """A process that would take as long as it is given."""

    has_s: float | None = None

    def signal(self) -> None: ...

    def stop(self, timeout_s: float) -> None:
        self.has_s = timeout_s


@pytest.mark.parametrize("drain_timeout_s", [0.5, 15.0, 120.0])
def test_no_process_is_killed_before_its_drain_timeout(home_settings: Settings, drain_timeout_s: float) -> None:
    build = Build(model="colours", version=1, package_digest="", bento_digest="", bento_key="")
    spec = ServingSpec(workers=2, drain_timeout_s=drain_timeout_s)
    deployment = Deployment(
        **{"id": 1, "build": build, "spec": spec, "kind": "deploy", "origin": 1, "state": "live"},
        **{"reason": "", "actor": "", "requested_at": datetime.now(UTC), "live_at": None, "ended_at": None},
    )
    fleet = Fleet(home_settings, deployment, home_settings.home)
    asked = [Asked(), Asked()]
    fleet.slots = [
        Slot(worker=Worker(process=cast("ManagedProcess", one), port=1, grpc_port=2, started_at=0.0, log_offset=0))
        for one in asked
    ]
    fleet.stop()
    for one in asked:
        assert one.has_s is not None
        assert drain_timeout_s <= fleet.drain_s < one.has_s <= fleet.drain_s + CLOSE_S
