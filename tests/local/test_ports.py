"""Ports: the gateway's is fixed, the others give way, two platforms never choose the same."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from pipelines.local.ports import Reservations, assign, free_port, is_free, who_listens
from pipelines.settings import DEFAULT_PORTS, Settings


@pytest.fixture
def reservations() -> Iterator[Reservations]:
    found = Reservations()
    yield found
    found.release()


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_busy_gateway_port_names_port_listener_and_setting(
    home_settings: Settings, reservations: Reservations, busy: int
) -> None:
    with pytest.raises(UserError) as caught:
        assign(replace(home_settings, gateway_port=busy), reservations)
    assert f"port {busy}" in str(caught.value)
    assert f"(pid {os.getpid()})" in str(caught.value)
    assert "DARKROOM_GATEWAY_PORT" in str(caught.value)


def test_another_service_moves_aside_and_stays_there(
    home_settings: Settings, reservations: Reservations, busy: int
) -> None:
    kept = json.loads((home_settings.home / "ports.json").read_text())
    (home_settings.home / "ports.json").write_text(json.dumps({**kept, "mlflow": busy}))
    chosen = assign(home_settings, reservations)
    assert chosen["mlflow"] > busy
    assert {name: port for name, port in chosen.items() if name not in ("mlflow", "gateway")} == {
        name: port for name, port in kept.items() if name != "mlflow"
    }
    assert chosen["gateway"] == home_settings.gateway_port
    assert home_settings.port("mlflow") == chosen["mlflow"]
    reservations.release()
    assert assign(home_settings, reservations) == chosen


def test_a_port_that_is_set_is_never_replaced(
    home_settings: Settings, reservations: Reservations, busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_MLFLOW_PORT", str(busy))
    with pytest.raises(UserError, match="DARKROOM_MLFLOW_PORT"):
        assign(home_settings, reservations)


def test_no_two_services_share_a_port(
    home_settings: Settings, reservations: Reservations, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = free_port()
    (home_settings.home / "ports.json").write_text(json.dumps(dict.fromkeys(DEFAULT_PORTS, wanted)))
    chosen = assign(home_settings, reservations)
    assert len({home_settings.gateway_port, *chosen.values()}) == len(DEFAULT_PORTS) + 1
    monkeypatch.setenv("DARKROOM_MLFLOW_PORT", str(home_settings.gateway_port))
    with pytest.raises(UserError, match=r"gateway.*mlflow|mlflow.*gateway"):
        assign(home_settings, Reservations())


def test_two_platforms_that_start_at_once_choose_different_ports(home_settings: Settings, tmp_path: Path) -> None:
    other = replace(home_settings, home=tmp_path / "other", gateway_port=free_port())
    other.home.mkdir()
    (other.home / "ports.json").write_text((home_settings.home / "ports.json").read_text())
    first, second = Reservations(), Reservations()
    try:
        # Neither listens yet.
        assert not set(assign(home_settings, first).values()) & set(assign(other, second).values())
    finally:
        first.release()
        second.release()


def test_who_listens_finds_this_process(busy: int) -> None:
    assert not is_free(busy)
    assert str(os.getpid()) in (who_listens(busy) or "")
    assert who_listens(free_port()) is None
