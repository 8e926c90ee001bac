"""The prediction log on one machine: what serving processes are told, and the thread that brings it to the store."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime

from pipelines.core import prediction_spool
from pipelines.core.errors import DarkroomError
from pipelines.core.storage import Storage, open_storage
from pipelines.settings import Settings

PERIOD_S = 10.0
PATIENCE_S = 300.0
"""A prediction is in the store after this time, or earlier under load: 288 objects a model and day at most."""


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
        self._storage: Storage | None = None

    def start(self) -> None:
        self._thread.start()

    def end(self, timeout_s: float = 10.0) -> None:
        """Collect what is left, then stop. After the serving processes have ended."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.is_set()  # looked at before the last try, so that one comes after it
            self._try(0.0 if stopping else self._patience_s)
            self._stop.wait(self._period_s)

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
        if not prediction_spool.everything(settings.prediction_spool):
            return ""
        # Only where there is something: it loads pyarrow, 60 MB.
        from pipelines.core.prediction_collection import collect

        if self._storage is None:
            self._storage = open_storage(settings.store_uri, endpoint_url=settings.s3_endpoint_url)
        found = collect(settings.prediction_spool, self._storage, patience_s=patience_s)
        if found.num_unreadable:
            return f"{found.num_unreadable} files in {settings.prediction_spool} are of another version of Darkroom"
        return ""


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} collecting: {text}\n")
