"""The step host runs steps as an ordinary process would, and none of them outlives its caller."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.core.processes import is_zombie
from pipelines.core.stephost import SOCKET_NAME, HostedStep, short_path, start_hosted

REPOSITORY = Path(__file__).resolve().parents[2]

# Stands in the place of the step's own module search path, so that a step of the test's own can run in a real host.
SLOW_STEP = """
import subprocess, sys, time
def main():
    print("arguments", sys.argv[1:], flush=True)
    if "fail" in sys.argv: sys.exit(2)
    child = subprocess.Popen(["sleep", "600"])
    print("child", child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree whose `pipelines.cli.main` is the slow step."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("core", "local"):
        (tree / "pipelines").mkdir(exist_ok=True)
        (tree / "pipelines" / name).symlink_to(REPOSITORY / "pipelines" / name)
    (tree / "pipelines" / "cli").mkdir()
    for package in ("pipelines", "pipelines/cli"):
        (tree / package / "__init__.py").touch()
    (tree / "pipelines" / "cli" / "main.py").write_text(SLOW_STEP)
    return tree


@pytest.fixture
def host(tree: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    # A folder deeper than the 107 bytes a socket's path may have.
    folder = tmp_path / ("deep-" * 20) / ("deeper-" * 10)
    program = f"from pipelines.local import stephost; stephost.PRELOADED = (); stephost.preload = lambda: None; from pathlib import Path; stephost.main(Path({str(folder)!r}))"  # noqa: E501
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)})
    _wait(lambda: (folder / SOCKET_NAME).exists())
    yield process, folder
    process.kill()
    process.wait()


def _wait(condition: object, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def _start(folder: Path, tree: Path, *arguments: str) -> tuple[HostedStep, int]:
    reading, writing = os.pipe()
    for _ in range(200):
        step = start_hosted(folder, arguments, dict(os.environ), tree, writing)
        if step is not None:
            os.close(writing)
            return step, reading
        time.sleep(0.02)
    raise AssertionError("no host answers")


def _child_of(reading: int) -> int:
    text = ""
    while "child" not in text or not text.endswith("\n"):
        text += os.read(reading, 1000).decode()
    return int(text.split("child ")[1].split()[0])


def test_a_step_gets_its_arguments_and_gives_its_exit_code(host: tuple[object, Path], tree: Path) -> None:
    step, reading = _start(host[1], tree, "step", "fail")
    assert step.wait() == 2
    assert os.read(reading, 1000).decode() == "arguments ['step', 'fail']\n"


def test_a_caller_that_goes_away_takes_the_whole_session_along(host: tuple[object, Path], tree: Path) -> None:
    step, reading = _start(host[1], tree, "step")
    grandchild = _child_of(reading)
    step._connection.close()
    step._lines.close()
    _wait(lambda: is_zombie(grandchild) and is_zombie(step.pid))


def test_a_killed_step_says_so_and_leaves_no_grandchild(host: tuple[object, Path], tree: Path) -> None:
    step, reading = _start(host[1], tree, "step")
    grandchild = _child_of(reading)
    os.kill(step.pid, signal.SIGKILL)
    assert step.wait() == -9
    _wait(lambda: is_zombie(grandchild))


def test_a_killed_host_ends_its_steps(host: tuple[subprocess.Popen[bytes], Path], tree: Path) -> None:
    step, reading = _start(host[1], tree, "step")
    _child_of(reading)
    host[0].kill()
    assert step.wait() == -9
    _wait(lambda: is_zombie(step.pid))


def test_without_a_host_the_caller_is_told(tmp_path: Path, tree: Path) -> None:
    assert start_hosted(tmp_path, ["step"], {}, tree, 1) is None


def test_a_caller_that_is_gone_at_once_does_not_hold_up_the_others(host: tuple[object, Path], tree: Path) -> None:
    for _ in range(5):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_path(host[1], SOCKET_NAME) as path:
            _wait(lambda path=path, connection=connection: connection.connect_ex(path) == 0)
        order = {"arguments": ["step"], "environment": dict(os.environ), "cwd": str(tree)}
        socket.send_fds(connection, [json.dumps(order).encode() + b"\n"], [1])
        connection.close()
    half = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(host[1], SOCKET_NAME) as path:
        half.connect(path)
    half.sendall(b"{")
    half.close()
    step, _ = _start(host[1], tree, "step", "fail")
    assert step.wait() == 2
