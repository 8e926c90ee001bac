"""Metrics of a training while it runs, sent in batches by a thread of its own so that training never waits."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.adapters.tracking.connection import connect, experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset

    from pipelines.settings import Settings

log = logging.getLogger(__name__)

Point = tuple[str, float, int, int]
"""Name, value, step, time in ms."""

_BATCH = 1000
"""MLflow's own limit of metrics a request; also of how many wait for a server that is slow."""
_MAX_WAITING = 100_000
_FLUSH_S = 1.0
_MAX_PARAM_CHARS = 6000


class RunTracker:
    """Fulfils `core.ports.Tracker` for one experiment. A server that fails is logged and never stops a training."""

    def __init__(self, settings: Settings, experiment_name: str) -> None:
        self._settings = settings
        self._experiment = experiment_name
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._points: queue.Queue[Point | None] = queue.Queue(_MAX_WAITING)
        self._sender = threading.Thread(target=self._send, name="tracking", daemon=True)

    def start(self, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Begin a record and return its id, empty where the server does not answer.

        A record of the same name that is still running is that of a killed try, since a step runs once at a time.
        """
        try:
            self._client = connect(self._settings)
            experiment_id = experiment(self._client, self._settings, self._experiment)
            end_killed(self._client, experiment_id, name)
            run = self._client.create_run(experiment_id, run_name=name, tags=dict(tags))
            self._run_id = str(run.info.run_id)
            log_params(self._client, self._run_id, params)
        except Exception:
            log.warning("MLflow does not answer: this training goes unrecorded until it is registered", exc_info=True)
            return self._run_id
        self._sender.start()
        return self._run_id

    def log(self, metrics: Sequence[tuple[str, float, int]]) -> None:
        """Hand metrics over; what a stuck server leaves waiting beyond 100,000 points is dropped."""
        if not self._sender.is_alive():
            return
        now = int(time.time() * 1000)
        try:
            for name, value, step in metrics:
                self._points.put_nowait((name, value, step, now))
        except queue.Full:
            log.warning("MLflow is too slow: metrics dropped")

    def finish(self, status: str) -> None:
        """Send what is left, for at most 30 s, and end the record."""
        if not self._run_id or self._client is None:
            return
        try:
            if self._sender.is_alive():
                self._points.put(None, timeout=10)
                self._sender.join(30)
            self._client.set_terminated(self._run_id, status)
        except Exception:
            log.warning("MLflow did not take the end of run %s", self._run_id, exc_info=True)

    def _send(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._collect()
            if batch:
                try:
                    log_points(self._client, self._run_id, batch)
                except Exception:
                    log.warning("MLflow did not take %d metrics", len(batch), exc_info=True)

    def _collect(self) -> tuple[list[Point], bool]:
        """Points of the next second (or a full batch), and whether they were the last."""
        batch: list[Point] = []
        deadline = time.monotonic() + _FLUSH_S
        while len(batch) < _BATCH:
            try:
                point = self._points.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if point is None:
                return batch, True
            batch.append(point)
        return batch, False


def end_killed(client: MlflowClient, experiment_id: str, name: str) -> None:
    """Mark the running records of that name as killed."""
    text = f"attributes.run_name = '{name}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], filter_string=text):
        client.set_terminated(run.info.run_id, "KILLED")


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Add parameters that the run does not have yet (MLflow refuses to change one)."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(name, value[:_MAX_PARAM_CHARS]) for name, value in params.items() if name not in known]
    for start in range(0, len(new), 100):
        client.log_batch(run_id, params=new[start : start + 100])


def log_points(
    client: MlflowClient | None,
    run_id: str,
    points: Sequence[Point],
    model_id: str | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Append metrics in requests of at most 1,000; with a model and a dataset they are shown with these too."""
    from mlflow.entities import Metric

    assert client is not None
    name_of, digest_of = (dataset.name, dataset.digest) if dataset else (None, None)
    metrics = [
        Metric(name, value, at_ms, step, model_id=model_id, dataset_name=name_of, dataset_digest=digest_of)
        for name, value, step, at_ms in points
    ]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
