"""The reconciler: brings running bentos and Envoy's files to what the database asks for, again and again.

It is one long-lived thread, which starts every process (the kernel ends a child with the *thread* that started it),
and a passing thread for each rollout. Nothing is remembered but the database's rows and Envoy's files: killed at any
point, the next one starts what was live, and rolls out again what was on its way.

A rollout: unpack the bento, start it beside the old one, wait until every process is ready, send each the golden set,
give the gateway its cluster, move the route, see the new version answer through the gateway, record it as live; then
drain and stop the old one. Whatever fails before the record is taken back, and the old one never noticed.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pipelines.adapters import database
from pipelines.adapters.gateway import Backend, Gateway, View, answers
from pipelines.adapters.packaging import BentoArchives, folder_name
from pipelines.core.actors import supervisor
from pipelines.core.deployments import Build, Deployment, Desired
from pipelines.core.errors import DarkroomError, DeploymentFailed, PlatformError
from pipelines.core.storage import open_storage
from pipelines.local.serving import targets
from pipelines.local.serving.fleet import Fleet
from pipelines.local.serving.proof import prove
from pipelines.local.state import ProcessStatus
from pipelines.settings import PLATFORM_KEY, Settings

T = TypeVar("T")

TICK_S = 0.05
READ_S = 0.25
JUDGE_S = 5.0
GATEWAY_S = 15.0
"""Longest wait for the gateway to find a ready process healthy, or to answer with the new version."""
QUIET_S = 1.0
"""No request in flight for so long counts as drained."""
_WANTED = ("starting", "live")
"""States of a deployment that is still to serve; it is live already where a platform lost it."""


class Interrupted(Exception):
    """The platform goes down in the middle of a rollout; the next one starts it anew."""


class Reconciler:
    """Brings about what the database asks for, until told to stop."""

    def __init__(self, settings: Settings, *, similar: bool = False) -> None:
        """`similar`: whether the platform has the process that finds similar images, which gets its place too."""
        self._settings = settings
        self._similar_port = settings.port("similar") if similar else None
        self._gateway = Gateway(settings)
        storage = open_storage(settings.store_uri, endpoint_url=settings.s3_endpoint_url)
        self._archives = BentoArchives(storage, settings.home / "cache")
        self._bentos = settings.home / "bentos"
        self._stop = self._drained = threading.Event()
        self._lock = threading.RLock()
        self._publishing = threading.Lock()
        self._fleets: dict[int, Fleet] = {}
        self._routes: dict[str, int] = {}
        """Deployment that gets a model's traffic."""
        self._desired: dict[str, Desired] = {}
        self._ended: dict[str, int] = {}
        """Rollouts that ended, by model: what was read before one ended is stale."""
        self._threads: dict[str, threading.Thread] = {}
        self._watch = database.Watch(lambda: settings.database_url("darkroom"))
        self._written: View | None = None
        self._known = False
        """The database has answered once; until then Envoy's files stay as the last platform left them."""
        self._read_at = self._judged_at = 0.0
        self._troubles: dict[str, tuple[str, float]] = {}

    # --- the long-lived thread -------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, drained: threading.Event | None = None) -> None:
        """Work until `stop` is set, then end every process. Never raises for what may pass.

        `drained`: processes go on serving until this is set too, since the gateway still has requests for them.
        """
        self._stop, self._drained = stop, drained or stop
        self._sweep()
        try:
            while not stop.wait(TICK_S):
                self._guard("reconciler", self._tick)
            self._drained.wait()
        finally:
            self._watch.close()
            self._end()

    @property
    def drain_s(self) -> float:
        """The longest time that a process which serves now has for the requests in its hands; 0 where none does."""
        return max((fleet.drain_s for fleet in self._all_fleets()), default=0)

    def processes(self) -> tuple[ProcessStatus, ...]:
        """Serving processes, for `darkroom status`."""
        return tuple(status for fleet in self._all_fleets() for status in fleet.statuses())

    def _tick(self) -> None:
        if time.monotonic() - self._read_at > READ_S:
            self._guard("database", self._read)
        for desired in list(self._desired.values()):
            self._guard(desired.model, lambda desired=desired: self._pursue(desired))  # type: ignore[misc]
        for fleet in self._all_fleets():
            self._guard(fleet.cluster, fleet.tick)
        if self._known:
            self._guard("gateway", lambda: self._publish(confirm=False))
        if time.monotonic() - self._judged_at > JUDGE_S:
            self._judged_at = time.monotonic()
            self._guard("gateway health", self._judge)

    def _read(self) -> None:
        self._read_at = time.monotonic()
        with self._lock:
            before = dict(self._ended)
        found = self._watch.read()
        with self._lock:
            current = [one for one in found if self._ended.get(one.model) == before.get(one.model)]
            self._desired = {one.model: one for one in current}
        self._known = True

    def _pursue(self, desired: Desired) -> None:
        """Serve what is live, and begin to bring up what is asked for."""
        thread = self._threads.get(desired.model)
        if thread is not None and thread.is_alive():
            return
        wanted = desired.desired
        live = desired.live
        if live is not None and live.id not in self._fleets:
            if self._routes.get(desired.model) in self._fleets:
                wanted = wanted or live  # another one stands in for it, and does so until it is ready and proved
            else:
                # One that cannot be unpacked any more must not keep the next one from coming.
                self._guard(f"{desired.model} deployment {live.id}", lambda: self._adopt(live))
        if wanted is not None:
            thread = threading.Thread(
                target=self._roll_out, args=(wanted,), name=f"rollout {desired.model}", daemon=True
            )
            self._threads[desired.model] = thread
            thread.start()

    def _adopt(self, live: Deployment) -> None:
        """Start again what was live before this platform started."""
        fleet = Fleet(self._settings, live, self._unpacked(live.build), keep=True, attached=True)
        with self._lock:
            self._fleets[live.id] = fleet
            self._routes[live.build.model] = live.id
        _say(f"{fleet.cluster}: starting again")

    def _judge(self) -> None:
        for fleet in self._all_fleets():
            if fleet.attached and not fleet.draining and not fleet.closed:
                fleet.judge(self._gateway.healthy_ports(fleet.cluster))

    def _publish(self, *, confirm: bool = True) -> None:
        """Write the gateway's files. Raises PlatformError where it does not take them, Interrupted at the end."""
        if self._stop.is_set():
            raise Interrupted  # Envoy ends too, and would not answer
        with self._publishing:
            with self._lock:
                fleets = {fleet.deployment.id: fleet for fleet in self._fleets.values() if fleet.attached}
                view = View(
                    clusters={fleet.cluster: fleet.endpoints() for fleet in fleets.values()},
                    routes={model: (_backend(fleets[id_]),) for model, id_ in self._routes.items() if id_ in fleets},
                    similar=self._similar_port,
                )
            if confirm or view != self._written:
                self._written = None
                self._gateway.apply(view, confirm=confirm)
                self._written = view
                self._guard("prometheus targets", lambda: targets.write(self._settings, fleets.values()))

    def _end(self) -> None:
        """No file of the gateway changes: after the next start they hold until the processes are back."""
        for thread in list(self._threads.values()):
            thread.join(2)
        enders = [threading.Thread(target=fleet.stop) for fleet in self._all_fleets()]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()
        self._guard("prometheus targets", lambda: targets.write(self._settings, ()))

    # --- a rollout's thread ----------------------------------------------------------------------------------------

    def _roll_out(self, deployment: Deployment) -> None:
        model = deployment.build.model
        before = self._routes.get(model)
        began = time.monotonic()
        try:
            self._persist(lambda: database.mark_starting(self._url, deployment.id))
            fleet = self._bring_up(deployment)
            if self._persist(lambda: database.get(self._url, deployment.id)).state not in _WANTED:
                raise DeploymentFailed("superseded by a newer request")
            self._move(fleet)
            if not self._persist(lambda: database.mark_live(self._url, deployment, actor=supervisor())):
                raise DeploymentFailed("superseded by a newer request")
            _say(f"{fleet.cluster}: live after {time.monotonic() - began:.1f} s")
        except Interrupted:
            return
        except Exception as error:
            self._take_back(deployment, before, error)
        else:
            if before is not None and before in self._fleets and before != deployment.id:
                threading.Thread(
                    target=self._retire, args=(self._fleets[before],), name=f"retire {before}", daemon=True
                ).start()
        finally:
            with self._lock:
                self._ended[model] = self._ended.get(model, 0) + 1
                self._desired.pop(model, None)

    def _bring_up(self, deployment: Deployment) -> Fleet:
        """A fleet that is ready and proved. Raises DeploymentFailed."""
        fleet = Fleet(self._settings, deployment, self._unpacked(deployment.build))
        with self._lock:
            self._fleets[deployment.id] = fleet
        self._wait(fleet, fleet.complete, deployment.spec.ready_timeout_s, "not ready")
        for process in fleet.endpoints():
            proved = prove(process.port, fleet.package(), deployment.build, self._settings.secret(PLATFORM_KEY))
            _say(f"{fleet.cluster}: port {process.port} answers {proved.num_images} golden images")
        return fleet

    def _move(self, fleet: Fleet) -> None:
        """Traffic goes to a fleet, step by step; Envoy confirms each. Raises PlatformError, DeploymentFailed."""
        fleet.attached = True
        self._publish()
        wanted = {port for process in fleet.endpoints() for port in (process.port, process.grpc_port)}
        self._wait(
            fleet, lambda: self._gateway.healthy_ports(fleet.cluster) >= wanted, GATEWAY_S, "the gateway's check failed"
        )
        with self._lock:
            fleet.keep = True
            self._routes[fleet.model] = fleet.deployment.id
        self._publish()
        self._wait(
            fleet,
            lambda: answers(self._settings, fleet.deployment.build),
            GATEWAY_S,
            "it does not answer through the gateway",
        )

    def _take_back(self, deployment: Deployment, before: int | None, error: Exception) -> None:
        """Undo a rollout, and say why. What served before still serves."""
        model = deployment.build.model
        reason = str(error) if isinstance(error, DarkroomError) else f"{type(error).__name__}: {error}"
        _say(f"{model} deployment {deployment.id} failed: {reason}")
        with self._lock:
            fleet = self._fleets.get(deployment.id)
            if before is not None:
                self._routes[model] = before
            else:
                self._routes.pop(model, None)
        self._publish_if_possible()
        if fleet is not None:
            threading.Thread(target=self._retire, args=(fleet,), name=f"retire {deployment.id}", daemon=True).start()
        with contextlib.suppress(Interrupted):
            self._persist(lambda: database.mark_failed(self._url, deployment, reason, actor=supervisor()))

    def _publish_if_possible(self) -> None:
        """The files are written in any case; a gateway that is away takes them when it is back."""
        try:
            self._publish()
        except (PlatformError, Interrupted) as trouble:
            _say(f"gateway: {trouble}")

    def _retire(self, fleet: Fleet) -> None:
        """Wait for its last requests, take it from the gateway, end it."""
        fleet.draining = True
        if fleet.attached:
            self._drain(fleet)
            fleet.attached = False
            self._publish_if_possible()
        fleet.stop()
        with self._lock:
            self._fleets.pop(fleet.deployment.id, None)
        self._prune(fleet.model)

    def _drain(self, fleet: Fleet) -> None:
        """Until no request is in flight, or the deadline.

        A request whose body is still on its way has its route already, but is not yet counted for the cluster. So the
        gateway must have been idle as a whole once, or some seconds have passed.
        """
        began = time.monotonic()
        patience_s = fleet.deployment.spec.drain_timeout_s
        quiet_since: float | None = None
        idle = False
        while (elapsed := time.monotonic() - began) < patience_s and not self._drained.wait(0.1):
            try:
                busy = self._gateway.active_requests(fleet.cluster) > 0
                idle = idle or self._gateway.open_requests() == 0
            except PlatformError:
                return  # no gateway, no requests
            quiet_since = None if busy else quiet_since or time.monotonic()
            long_enough = quiet_since is not None and time.monotonic() - quiet_since > QUIET_S
            if long_enough and (idle or elapsed > patience_s / 3):
                return

    # --- parts -----------------------------------------------------------------------------------------------------

    @property
    def _url(self) -> str:
        return self._settings.database_url("darkroom")

    def _all_fleets(self) -> list[Fleet]:
        with self._lock:
            return list(self._fleets.values())

    def _unpacked(self, build: Build) -> Path:
        """The bento's folder on this machine, unpacked from the store where it is not there."""
        folder = self._bentos / folder_name(build.model, build.version, build.bento_digest)
        if not folder.exists():
            self._archives.unpack(build, folder)
        return folder

    def _wait(self, fleet: Fleet, condition: Callable[[], bool], timeout_s: float, failure: str) -> None:
        """Raises DeploymentFailed when time is up or a process of the fleet has ended, Interrupted at the end."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._stop.wait(0.02):
                raise Interrupted
            if (death := fleet.death()) is not None:
                raise DeploymentFailed(death)
            if time.monotonic() > deadline:
                raise DeploymentFailed(f"{failure} within {timeout_s:g} s; see {fleet.log}")

    def _persist(self, write: Callable[[], T]) -> T:
        """Write to the database, however long it is away. Raises Interrupted at the end."""
        while True:
            try:
                return write()
            except PlatformError as error:
                _say(str(error))
                if self._stop.wait(1):
                    raise Interrupted from error

    def _guard(self, what: str, work: Callable[[], None]) -> None:
        """Trouble is told once, and work goes on: what runs must keep running whatever else is down."""
        told, again_at = self._troubles.get(what, ("", 0.0))
        if time.monotonic() < again_at:
            return
        try:
            work()
        except Interrupted:
            return
        except Exception as error:
            text = str(error) if isinstance(error, DarkroomError) else f"{type(error).__name__}: {error}"
            if text != told:
                _say(f"{what}: {text}")
            self._troubles[what] = (text, time.monotonic() + 1.0)
        else:
            self._troubles.pop(what, None)

    def _prune(self, model: str) -> None:
        """Forget unpacked bentos that neither serve nor served last; the store still has them."""
        if self._stop.is_set():
            return  # the next rollout's end does it
        try:
            known = database.deployments(self._url, model)
        except PlatformError:
            return
        kept = [one for one in known if one.state in ("requested", "starting", "live")]
        kept += [one for one in known if one.state == "retired"][:2]
        names = {folder_name(model, one.build.version, one.build.bento_digest) for one in kept}
        mine = {folder_name(model, one.build.version, one.build.bento_digest) for one in known}
        for name in mine - names:
            shutil.rmtree(self._bentos / name, ignore_errors=True)

    def _sweep(self) -> None:
        """What a killed predecessor left half unpacked."""
        for path in self._bentos.glob(".partial-*"):
            shutil.rmtree(path, ignore_errors=True)


def _backend(fleet: Fleet) -> Backend:
    return Backend(cluster=fleet.cluster, version=str(fleet.deployment.build.version), weight=100)


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} deployments: {text}\n")
