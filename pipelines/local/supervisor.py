"""The supervisor: starts the platform in order, watches it, starts again what dies, ends it in order.

Run as `python -m pipelines.local.supervisor [--without NAME]` by the keeper. The main thread forks the platform's
children and the deployments' thread its own: a child dies with the thread that forked it, and both live to the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

from pipelines import settings as settings_module
from pipelines.adapters import database
from pipelines.adapters.gateway import Gateway, write_initial
from pipelines.core.errors import DarkroomError, PlatformError, UserError
from pipelines.local import (
    access,
    airflow,
    certificates,
    gateway,
    mlflow,
    postgres,
    resources,
    schema,
    secrets,
    similar,
    state,
    stephost_service,
)
from pipelines.local.anchoring import Anchoring
from pipelines.local.deployments import Reconciler
from pipelines.local.identity import credentials, identity
from pipelines.local.keeper import GIVE_UP
from pipelines.local.ports import Reservations, assign
from pipelines.local.predictions import Collecting
from pipelines.local.process import ManagedProcess, rotate
from pipelines.local.redis import RedisWatch
from pipelines.local.redis import check as check_redis
from pipelines.local.services import Service
from pipelines.local.serving.fleet import CLOSE_S
from pipelines.local.state import Phase, PlatformState
from pipelines.local.sweep import sweep
from pipelines.local.watch import Watched, stop_all
from pipelines.settings import Settings

_POSTGRES = "postgres"
OPTIONAL = ("airflow", "mlflow", stephost_service.NAME, similar.NAME)
"""What `--without` may name."""
_SERVING_S = 20.0
"""How long a start waits for what is deployed; a bento that does not come up keeps nothing else from it."""
_TICK_S = 0.2
_ROTATE_S = 10.0
_RENEW_S = 3600.0
_REST_S = 60.0
"""What an end takes at most beside requests: the last anchor and predictions 10 s each, PostgreSQL 20 s."""


class Stopped(Exception):
    """We were asked to end while starting."""


class Supervisor:
    """One platform, from the start of its processes to their end."""

    def __init__(self, settings: Settings, without: Sequence[str]) -> None:
        self._settings = settings
        self._without = tuple(without)
        self._identity = identity(settings)
        self._stop = threading.Event()
        self._drained = threading.Event()
        """The gateway has handed on what it had; set once we end."""
        self._watched: list[Watched] = []
        self._reservations = Reservations()
        self._reconciler: Reconciler | None = None
        self._thread: threading.Thread | None = None
        self._anchoring = Anchoring(settings)
        self._collecting = Collecting(settings)
        self._redis = RedisWatch(settings)
        self._askers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="ready")
        self._written: PlatformState | None = None
        self._phase: Phase = "starting"
        self._rotated_at = 0.0
        self._renewed_at = time.monotonic()
        self._serve_by: float | None = None

    def ask_to_stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        self._stop.set()

    def run(self) -> int:
        """Exit status: 0 when told to stop, GIVE_UP when a person has to mend something, 1 when trying again may do."""
        try:
            self._start()
            self._watch()
        except Stopped:
            pass
        except DarkroomError as error:
            _say(str(error))
            self._end()
            self._publish("failed", error=str(error), exit_code=error.exit_code)
            return GIVE_UP if isinstance(error, UserError) else 1
        self._publish("stopping")
        self._end()
        self._publish("stopped")
        return 0

    # --- start -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        settings = self._settings
        self._publish("starting")
        resources.check_disk(settings)
        check_redis(settings)
        secrets.ensure(settings)
        certificates.ensure(settings)
        sweep(settings)
        assign(settings, self._reservations)
        if not settings.postgres_is_external:
            self._start_postgres()
        self._migrate()
        write_initial(settings)
        for service in self._services():
            self._watched.append(Watched(service))
            service.process.start()
        self._publish("starting")
        self._reconciler = Reconciler(settings, similar=similar.NAME not in self._without)
        self._thread = threading.Thread(
            target=self._reconciler.run, args=(self._stop, self._drained), name="deployments"
        )
        self._thread.start()
        self._anchoring.start()
        self._collecting.start()
        self._redis.start()

    def _start_postgres(self) -> None:
        settings = self._settings
        began = time.monotonic()
        postgres.prepare(settings)
        process = postgres.process(settings)
        service = Service(process=process, ready=lambda: postgres.answers(settings), stop_s=20)
        watched = Watched(service, before_start=lambda: postgres.prepare(settings))
        self._watched.append(watched)
        process.start()
        self._publish("starting")
        postgres.wait_ready(settings, process)
        postgres.ensure_databases(settings)
        watched.state, watched.seconds = "ready", time.monotonic() - began
        self._publish("starting")

    def _migrate(self) -> None:
        """Bring every schema to the installed versions; Airflow's and MLflow's at once, where they are behind."""
        settings = self._settings
        database.migrate(settings.database_url("darkroom"))
        access.prepare(settings)
        wanted: dict[str, tuple[str, Callable[[Settings], ManagedProcess]]] = {
            "airflow": (airflow.version(), airflow.migration),
            "mlflow": (mlflow.version(), mlflow.migration),
        }
        running: list[tuple[str, str, ManagedProcess]] = []
        for owner, (version, make) in wanted.items():
            if owner not in self._without and schema.version_of(settings.database_url(owner)) != version:
                process = make(settings)
                self._watched.append(Watched(Service(process=process, ready=lambda: False)))
                process.start()
                running.append((owner, version, process))
        self._publish("starting")
        for owner, version, process in running:
            while process.alive():
                self._pause(0.05)
            if process.returncode != 0:
                log = postgres.tail(process.log_path)
                raise PlatformError(f"{process.name} failed (exit {process.returncode}); its log ends with:\n{log}")
            schema.set_version(settings.database_url(owner), version)
            self._watched = [one for one in self._watched if one.process is not process]

    def _services(self) -> list[Service]:
        settings = self._settings
        found = [gateway.service(settings)]
        if similar.NAME not in self._without:
            found.append(self._similar())
        if stephost_service.NAME not in self._without:
            found.append(stephost_service.service(settings))
        if "mlflow" not in self._without:
            found.append(mlflow.service(settings))
        if "airflow" not in self._without:
            found.extend(airflow.services(settings))
        return found

    def _similar(self) -> Service:
        try:
            access.prepare_search(self._settings)
        except PlatformError as error:
            _say(str(error))  # one feature less; the next start tries again
        return similar.service(self._settings)

    # --- watch -----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.is_set():
            for watched in self._watched:
                watched.look(self._askers)
            if self._phase == "starting" and self._are_ready() and self._serves():
                if "airflow" not in self._without:
                    airflow.ensure_pools(self._settings)
                self._publish("ready")
            self._publish(self._phase)
            self._rotate()
            self._renew()
            if self._thread is not None and not self._thread.is_alive() and not self._stop.is_set():
                # Its children died with it. The keeper starts us again.
                raise RuntimeError("the deployments' thread ended")
            self._stop.wait(_TICK_S)

    def _are_ready(self) -> bool:
        """All but the search for similar images, without which there is one feature less."""
        return all(one.state == "ready" for one in self._watched if one.process.name != similar.NAME)

    def _serves(self) -> bool:
        """True when what was deployed before serves again, or does not come up in time."""
        self._serve_by = self._serve_by or time.monotonic() + _SERVING_S
        late = self._reconciler is not None and any(one.state != "ready" for one in self._reconciler.processes())
        return not late or time.monotonic() > self._serve_by

    def _rotate(self) -> None:
        if time.monotonic() - self._rotated_at > _ROTATE_S:
            self._rotated_at = time.monotonic()
            for pattern in ("*.log", "*.jsonl"):
                for path in (self._settings.home / "logs").glob(pattern):
                    rotate(path)

    def _renew(self) -> None:
        """Envoy takes a new certificate from the file, without a restart; where there is none it keeps what it has."""
        if time.monotonic() - self._renewed_at > _RENEW_S:
            self._renewed_at = time.monotonic()
            try:
                certificates.ensure(self._settings)
            except (UserError, OSError) as error:
                _say(str(error))

    # --- end -------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """What serves drains while the rest ends; what both left is anchored; PostgreSQL, which all use, comes last."""
        self._stop.set()
        last = self._named(_POSTGRES)
        serving = self._named(gateway.NAME) + self._named(similar.NAME)
        rest = [one for one in self._watched if one not in (*last, *serving)]
        began = time.monotonic()
        for watched in rest:
            watched.process.signal()
        self._end_serving()
        stop_all(rest, began)
        self._anchoring.end()
        self._collecting.end()
        self._redis.end()
        stop_all(last, time.monotonic())
        self._askers.shutdown(wait=False, cancel_futures=True)

    def _end_serving(self) -> None:
        """The gateway takes nothing new, processes answer what it had, and it goes when the answers have gone."""
        envoy, search = self._named(gateway.NAME), self._named(similar.NAME)
        admin = Gateway(self._settings)
        answers = any(one.process.alive() for one in envoy) and gateway.hand_on(admin, self._drain_s())
        self._drained.set()
        began = time.monotonic()
        for watched in search:
            watched.process.signal()
        if self._thread is not None:
            # Rollouts are interrupted first, 2 s each at most, and then all processes end at once.
            self._thread.join(self._drain_s() + 2 * CLOSE_S)
        stop_all(search, began)
        if answers:
            gateway.send(admin)
        stop_all(envoy, time.monotonic())

    def _named(self, name: str) -> list[Watched]:
        return [one for one in self._watched if one.process.name == name]

    def _drain_s(self) -> float:
        """The longest drain timeout of what serves now."""
        of_search = 0.0 if similar.NAME in self._without else similar.DRAIN_S
        return max(of_search, self._reconciler.drain_s if self._reconciler is not None else 0.0)

    def _publish(self, phase: Phase, *, error: str = "", exit_code: int = 0) -> None:
        self._phase = phase
        processes = tuple(one.status() for one in self._watched)
        if self._reconciler is not None:
            processes += tuple(self._reconciler.processes())
        now = PlatformState(
            phase=phase,
            identity=self._identity,
            credentials=credentials(),
            without=self._without,
            processes=processes,
            troubles=tuple(
                f"{what}: {trouble}"
                for what, trouble in (
                    ("the audit log is not anchored", self._anchoring.trouble),
                    ("predictions are not collected", self._collecting.trouble),
                    ("rates and answers are not shared", self._redis.trouble),
                )
                if trouble
            ),
            error=error,
            exit_code=exit_code,
            # The gateway's part of it, the processes' own, and what they and the gateway need to close.
            stop_s=2 * self._drain_s() + 2 * CLOSE_S + gateway.SEND_S + _REST_S,
        )
        if now != self._written:
            state.write(self._settings, now)
            self._written = now

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} supervisor: {text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.local.supervisor")
    parser.add_argument("--without", action="append", default=[], choices=OPTIONAL)
    supervisor = Supervisor(settings_module.load(), parser.parse_args().without)
    signal.signal(signal.SIGTERM, supervisor.ask_to_stop)
    signal.signal(signal.SIGINT, supervisor.ask_to_stop)
    return supervisor.run()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        # Not sys.exit, which would wait for the deployments' thread; our children end with us.
        os._exit(1)
