"""A real platform under a home of its own, driven by the `darkroom` command as a person would."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.core.datasets import read_head
from pipelines.core.model_package import load as load_package
from pipelines.core.processes import is_zombie, marked
from pipelines.core.runs import Reference, RunFolder, RunId
from pipelines.core.storage import LocalStorage
from pipelines.local.ports import free_port
from pipelines.settings import DEFAULT_PORTS

REPOSITORY = Path(__file__).resolve().parents[2]
DARKROOM = Path(sys.executable).with_name("darkroom")


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
    return found


class LivePlatform:
    """One DARKROOM_HOME and the commands against it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.storage = LocalStorage(home / "store")
        self.environment = {**os.environ, "DARKROOM_HOME": str(home), "DARKROOM_GATEWAY_PORT": str(free_port())}
        home.mkdir(parents=True, exist_ok=True)
        (home / "ports.json").write_text(json.dumps({name: free_port() for name in DEFAULT_PORTS}))

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['DARKROOM_GATEWAY_PORT']}"

    @property
    def authorization(self) -> dict[str, str]:
        """The header of the installation's first key."""
        return {"Authorization": f"Bearer {(self.home / 'secrets' / 'first-key').read_text().strip()}"}

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DARKROOM, *arguments],
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        """The command's JSON; an assertion with its whole output where it fails."""
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, (
            f"darkroom {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The command in the background; killed at the end if it is still there."""
        log = (self.home / "command.log").open("a")
        process = subprocess.Popen(
            [DARKROOM, *arguments], env=self.environment, cwd=REPOSITORY, stdout=log, stderr=log, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            log.close()

    def pid(self, name: str) -> int | None:
        """Pid of a platform process by the start of its name."""
        done = self.command("status", "--json")
        if done.returncode != 0:
            return None
        return next((one["pid"] for one in json.loads(done.stdout)["processes"] if one["name"].startswith(name)), None)

    def kill(self, name: str) -> None:
        """kill -9 a platform process."""
        os.kill(wait_for(lambda: self.pid(name), 60, f"a {name} process"), signal.SIGKILL)

    def references(self, dag: str) -> dict[str, list[Reference]]:
        """Finished steps of every run of a DAG, by run id."""
        prefix = f"runs/{dag}/"
        runs = {entry.key.removeprefix(prefix).split("/")[0] for entry in self.storage.list(prefix)}
        return {run: RunFolder(self.storage, RunId.parse(f"{dag}/{run}")).references() for run in sorted(runs)}

    def finished(self, dag: str, step: str) -> bool:
        return any(one.step == step for references in self.references(dag).values() for one in references)

    def step_pid(self, dag: str, step: str) -> int | None:
        """Pid of the step's process while it runs, from the lock that it holds."""
        for run in self.references(dag):
            path = self.home / "locks" / hashlib.sha256(f"{dag}/{run}/{step}".encode()).hexdigest()[:32]
            with contextlib.suppress(OSError, ValueError, IndexError):  # not there, or just being written
                pid = int(path.read_text().split()[0])
                if not is_zombie(pid):
                    return pid
        return None

    def processes(self) -> list[int]:
        """Everything alive that belongs to this home."""
        return list(marked("DARKROOM_HOME", str(self.home)))

    def end_state(self, summary: dict[str, Any]) -> dict[str, Any]:
        """What two runs must agree on, whatever happened on the way."""
        package = load_package(self.home / "store" / "packages" / summary["package_digest"])
        head = read_head(self.storage, "digits")
        return {
            "snapshot": summary["snapshot_id"],
            "intervals": dict(head.intervals),
            "package": package.content_digest,
            "accuracy": summary["accuracy"],
            "held_out": [(one["label"], one["predicted"]) for one in summary["held_out"]],
            "versions": [(one["version"], one["aliases"]) for one in self.json("models") if one["name"] == "digits"],
        }
