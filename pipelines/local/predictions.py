"""The prediction log on one machine: what serving processes are told, and the thread that brings it to the store."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipelines.core import prediction_spool
from pipelines.core.errors import DarkroomError, PlatformError
from pipelines.core.storage import open_storage
from pipelines.local import process
from pipelines.settings import REPOSITORY, Settings

PERIOD_S = 10.0
_ENOUGH_BYTES = 16 * 1024 * 1024
"""So much is collected at once, however young it is."""
_RETRY = 6
"""Periods until the next try after a failure: each try is a process."""
PATIENCE_S = 300.0
"""A prediction is in the store after this time: 288 objects a model and day, and more only where they are large."""


def environment(settings: Settings) -> dict[str, str]:
    """For one of a deployment's processes."""
    return {
        "DARKROOM_LOG_PREDICTIONS": str(settings.log_predictions),
        "DARKROOM_LOG_IMAGES": str(int(settings.log_images)),
        "DARKROOM_PREDICTION_SPOOL": str(settings.prediction_spool),
        "DARKROOM_PREDICTION_SPOOL_MB": str(settings.prediction_spool_mb),
    }


class Collecting:
    """Collects one platform's log until told to stop, and all of it once more then."""

    def __init__(self, settings: Settings, *, period_s: float = PERIOD_S, patience_s: float = PATIENCE_S) -> None:
        self.trouble = ""
        """Why the last try did not collect everything; empty where it did."""
        self._settings = settings
        self._period_s, self._patience_s = period_s, patience_s
        self._stop = threading.Event()
        # A store that hangs must not keep the platform from ending.
        self._thread = threading.Thread(target=self._run, name="collecting", daemon=True)
        self._collector: subprocess.Popen[str] | None = None
        self._over = False
        self._starting = threading.Lock()

    def start(self) -> None:
        self._thread.start()

    def end(self, timeout_s: float = 10.0) -> None:
        """Collect what is left, then stop. After the serving processes have ended."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        with self._starting:
            self._over = True
            if self._collector is not None:
                self._collector.kill()  # its batch stays for the next one

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.is_set()  # looked at before the last try, so that one comes after it
            self._try(0.0 if stopping else self._patience_s)
            self._stop.wait(self._period_s * (_RETRY if self.trouble else 1))

    def _try(self, patience_s: float) -> None:
        """Trouble is told once."""
        try:
            trouble = self._collect(patience_s)
        except Exception as error:
            trouble = str(error) if isinstance(error, DarkroomError) else f"{type(error).__name__}: {error}"
        if trouble != self.trouble:
            _say(f"predictions are not collected: {trouble}" if trouble else "predictions are collected again")
        self.trouble = trouble

    def _collect(self, patience_s: float) -> str:
        settings = self._settings
        if due(settings.prediction_spool, patience_s):
            self._run_collector()
        others = sum(
            not prediction_spool.is_readable(path) for path in prediction_spool.files(settings.prediction_spool)
        )
        return f"{others} files in {settings.prediction_spool} are of another version of Darkroom" if others else ""

    def _run_collector(self) -> None:
        """Raises PlatformError with its last words."""
        with self._starting:
            if self._over:
                return
            # A process of its own: Parquet's libraries and a batch would stay in our memory for good, some 100 MB.
            self._collector = collector = _start(self._settings)
        words = (collector.communicate()[1] or "").strip().splitlines()
        if collector.returncode:
            raise PlatformError(words[-1] if words else f"the collector ended with status {collector.returncode}")


def _start(settings: Settings) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "pipelines.local.predictions"),
            *(str(settings.prediction_spool), settings.store_uri, settings.s3_endpoint_url or ""),
        ],
        env=process.environment(settings),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def due(spool: Path, patience_s: float) -> bool:
    """Whether there is enough to collect, or something old, or what a killed collector has left."""
    if any(path.parent != spool for path in prediction_spool.everything(spool)):
        return True
    found = [status for _, status in prediction_spool.finished(spool)]
    large = sum(status.st_size for status in found) >= _ENOUGH_BYTES
    return bool(found) and (large or time.time() - min(status.st_mtime for status in found) >= patience_s)


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} collecting: {text}\n")


def main(arguments: Sequence[str]) -> int:
    """Collect everything: the spool, the store's URI and its endpoint."""
    from pipelines.core.prediction_collection import collect

    spool, store_uri, endpoint_url = arguments
    os.nice(5)
    try:
        collect(Path(spool), open_storage(store_uri, endpoint_url=endpoint_url or None))
    except DarkroomError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
