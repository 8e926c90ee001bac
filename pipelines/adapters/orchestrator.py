"""Airflow over its REST API (v2): trigger, follow, clear, backfill. The only module that speaks to Airflow.

Airflow itself is not imported: a client costs 0.1 s, Airflow 1.5 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import quote

import httpx

from pipelines.core.errors import NotFound, PlatformError, UserError

ACTIVE = frozenset({"queued", "running", "restarting"})
"""States of a DAG run that is still to end."""
FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""States of a task that will not run again by itself."""
_PAGE = 100


@dataclass(frozen=True, kw_only=True)
class DagRun:
    dag_id: str
    run_id: str
    run_type: str
    """manual, scheduled, backfill or asset_triggered."""
    state: str
    """queued, running, success or failed."""
    interval: str
    """First day of the data interval, or the conf's `interval`; empty where there is none."""
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True, kw_only=True)
class Task:
    task_id: str
    shard: int | None
    state: str
    """Empty while it waits for its upstream."""
    try_number: int
    max_tries: int
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


@dataclass(frozen=True, kw_only=True)
class Backfill:
    id: int
    dag_id: str
    first: date
    last: date
    completed: bool


PATIENCE_S = 120.0
"""How long a question waits for an api-server or database that is being started again."""


class Orchestrator:
    """A logged-in client. Raises PlatformError where Airflow does not answer."""

    def __init__(self, url: str, username: str, password: str, *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._login = {"username": username, "password": password}
        self._client = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        self._client.close()

    # --- DAGs ------------------------------------------------------------------------------------------------------

    def has_dag(self, dag_id: str) -> bool:
        try:
            found = self._get(f"/dags/{_part(dag_id)}")
        except NotFound:
            return False
        return not found["is_stale"]

    def wait_for_dag(self, dag_id: str, timeout_s: float = 60.0) -> None:
        """Until Airflow has read the DAG. Raises PlatformError with the import errors when it does not come."""
        deadline = time.monotonic() + timeout_s
        while not self.has_dag(dag_id):
            if time.monotonic() > deadline:
                errors = "\n".join(f"{name}: {text}" for name, text in self.import_errors().items())
                raise PlatformError(f"Airflow has no DAG {dag_id} after {timeout_s:.0f} s. {errors}".strip())
            time.sleep(0.3)

    def import_errors(self) -> dict[str, str]:
        """Last line of the trace of each DAG file that does not load."""
        found = self._pages("/importErrors", "import_errors")
        return {one["filename"]: one["stack_trace"].strip().splitlines()[-1] for one in found}

    def unpause(self, dag_id: str) -> None:
        self._send("PATCH", f"/dags/{_part(dag_id)}", {"is_paused": False})

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """A pool with that many slots, made or changed where needed."""
        rest = {"slots": slots, "description": description, "include_deferred": False}
        try:
            if self._get(f"/pools/{_part(name)}")["slots"] != slots:
                # Also with an update mask Airflow wants the whole pool.
                self._send("PATCH", f"/pools/{_part(name)}", {"pool": name, **rest})
        except NotFound:
            self._send("POST", "/pools", {"name": name, **rest})

    # --- runs ------------------------------------------------------------------------------------------------------

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> DagRun:
        """A manual run. Raises UserError with Airflow's reason when it does not like the parameters."""
        return _run(self._send("POST", f"/dags/{_part(dag_id)}/dagRuns", {"logical_date": None, "conf": conf or {}}))

    def run(self, dag_id: str, run_id: str) -> DagRun:
        return _run(self._get(f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}"))

    def runs(self, dag_id: str, *, states: Sequence[str] = (), limit: int = 1000) -> list[DagRun]:
        """Newest first."""
        query: dict[str, Any] = {"order_by": "-run_after"}
        if states:
            query["state"] = list(states)
        found = self._pages(f"/dags/{_part(dag_id)}/dagRuns", "dag_runs", query, limit=limit)
        return [_run(one) for one in found]

    def active_runs(self, dag_id: str) -> list[DagRun]:
        return self.runs(dag_id, states=("queued", "running"))

    def tasks(self, run: DagRun) -> list[Task]:
        path = f"/dags/{_part(run.dag_id)}/dagRuns/{_part(run.run_id)}/taskInstances"
        return [_task(one) for one in self._pages(path, "task_instances")]

    def clear(self, run: DagRun, *, only_failed: bool = False) -> None:
        """Run its tasks again (or only those that failed and what comes after them)."""
        path = f"/dags/{_part(run.dag_id)}/dagRuns/{_part(run.run_id)}/clear"
        self._send("POST", path, {"dry_run": False, "only_failed": only_failed, "run_on_latest_version": True})

    def log(self, run: DagRun, task: Task) -> list[str]:
        """Lines of the last try of a task."""
        path = (
            f"/dags/{_part(run.dag_id)}/dagRuns/{_part(run.run_id)}/taskInstances/{_part(task.task_id)}"
            f"/logs/{task.try_number}"
        )
        query = {"full_content": "true", "map_index": -1 if task.shard is None else task.shard}
        return [_line(one) for one in self._get(path, query).get("content", [])]

    def run_url(self, run: DagRun, task: Task | None = None) -> str:
        """Where a person sees the run, or one of its tasks, in the browser."""
        page = f"{self.url}/dags/{_part(run.dag_id)}/runs/{_part(run.run_id)}"
        if task is None:
            return page
        mapped = "" if task.shard is None else f"/mapped/{task.shard}"
        return f"{page}/tasks/{_part(task.task_id)}{mapped}"

    # --- assets ----------------------------------------------------------------------------------------------------

    def unconsumed_events(self, dag_id: str) -> int:
        """Asset events that will start a run of this DAG and have not yet."""
        try:
            return int(self._get(f"/dags/{_part(dag_id)}/assets/queuedEvents")["total_entries"])
        except NotFound:
            return 0

    # --- backfills -------------------------------------------------------------------------------------------------

    def dry_run_backfill(self, dag_id: str, first: date, last: date) -> list[date]:
        """Days that a backfill would run: those without a run, and those whose run failed."""
        found = self._send("POST", "/backfills/dry_run", _backfill_body(dag_id, first, last))
        return [_time(one["logical_date"]).date() for one in found["backfills"]]  # type: ignore[union-attr]

    def backfill(self, dag_id: str, first: date, last: date, *, max_active_runs: int = 2) -> Backfill | None:
        """Start a backfill over [first, last]; None where one is running for this DAG already (attach to that)."""
        body = {**_backfill_body(dag_id, first, last), "max_active_runs": max_active_runs}
        response = self._request("POST", "/backfills", json=body)
        if response.status_code == 409:
            return None
        return _backfill(self._checked(response))

    def running_backfill(self, dag_id: str) -> Backfill | None:
        found = self._pages("/backfills", "backfills", {"dag_id": dag_id, "order_by": "-id"}, limit=20)
        return next((_backfill(one) for one in found if one["completed_at"] is None), None)

    def cancel_backfill(self, backfill_id: int) -> None:
        """End a backfill; runs of it that are still queued fail."""
        self._request("PUT", f"/backfills/{backfill_id}/cancel")

    # --- the wire --------------------------------------------------------------------------------------------------

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._checked(self._request("GET", path, params=query))

    def _send(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._checked(self._request(method, path, json=body))

    def _pages(
        self, path: str, key: str, query: Mapping[str, Any] | None = None, *, limit: int = 100_000
    ) -> Iterator[dict[str, Any]]:
        offset = 0
        while offset < limit:
            page = self._get(path, {**(query or {}), "limit": min(_PAGE, limit - offset), "offset": offset})
            yield from page[key]
            offset += len(page[key])
            if not page[key] or offset >= page["total_entries"]:
                return

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """One request, logged in; a refusal renews the token once.

        What only reads is asked again for as long as the api-server or its database may take to come back.
        """
        deadline = time.monotonic() + (PATIENCE_S if method == "GET" else 0.0)
        refused = 0
        while True:
            try:
                if "authorization" not in self._client.headers:
                    self._log_in()
                response = self._client.request(method, f"/api/v2{path}", **arguments)
                if response.status_code < 500 and response.status_code != 401:
                    return response
                problem = f"{response.status_code} {_detail(response)}"
                if response.status_code == 401:
                    refused += 1
                    del self._client.headers["authorization"]
                    if refused == 1:
                        continue
                    raise PlatformError(f"Airflow at {self.url} refuses the administrator's token")
            except httpx.TransportError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise PlatformError(f"Airflow at {self.url} does not answer: {problem}; `darkroom status`")
            time.sleep(1.0)

    def _log_in(self) -> None:
        response = self._client.post("/auth/token", json=self._login)
        if response.status_code >= 500:
            raise httpx.RemoteProtocolError(f"{response.status_code} at the login")
        if response.status_code >= 400:
            raise PlatformError(f"Airflow at {self.url} refuses the administrator's password ({response.status_code})")
        self._client.headers["authorization"] = f"Bearer {response.json()['access_token']}"

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code == 404:
            raise NotFound(f"Airflow: {_detail(response)}")
        if response.status_code in (400, 409, 422):
            raise UserError(f"Airflow refuses: {_detail(response)}")
        if response.status_code >= 400:
            raise PlatformError(f"Airflow: {response.status_code} {_detail(response)}")
        found: dict[str, Any] = response.json() if response.content else {}
        return found


def _part(text: str) -> str:
    return quote(text, safe="")


def _detail(response: httpx.Response) -> str:
    try:
        detail = response.json().get("detail", response.text)
    except ValueError:
        detail = response.text
    return str(detail)[:500]


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def _run(table: Mapping[str, Any]) -> DagRun:
    start = _time(table["data_interval_start"])
    asked = (table["conf"] or {}).get("interval")
    return DagRun(
        dag_id=table["dag_id"],
        run_id=table["dag_run_id"],
        run_type=table["run_type"],
        state=table["state"],
        interval=asked or (start.date().isoformat() if start and table["run_type"] != "manual" else ""),
        queued_at=_time(table["queued_at"]),
        started_at=_time(table["start_date"]),
        ended_at=_time(table["end_date"]),
    )


def _task(table: Mapping[str, Any]) -> Task:
    return Task(
        task_id=table["task_id"],
        shard=None if table["map_index"] < 0 else table["map_index"],
        state=table["state"] or "",
        try_number=table["try_number"],
        max_tries=table["max_tries"],
        queued_at=_time(table["queued_when"]),
        started_at=_time(table["start_date"]),
        ended_at=_time(table["end_date"]),
    )


def _backfill(table: Mapping[str, Any]) -> Backfill:
    first, last = _time(table["from_date"]), _time(table["to_date"])
    assert first is not None
    assert last is not None
    return Backfill(
        id=table["id"],
        dag_id=table["dag_id"],
        first=first.date(),
        last=last.date(),
        completed=table["completed_at"] is not None,
    )


def _backfill_body(dag_id: str, first: date, last: date) -> dict[str, Any]:
    return {
        "dag_id": dag_id,
        "from_date": f"{first.isoformat()}T00:00:00Z",
        "to_date": f"{last.isoformat()}T23:59:59Z",
        "reprocess_behavior": "failed",
        "run_on_latest_version": True,
    }


def _line(entry: object) -> str:
    """A log entry as text, with the text of the exception that it carries."""
    if not isinstance(entry, Mapping):
        return str(entry)
    causes = [f"{one['exc_type']}: {one['exc_value']}" for one in entry.get("error_detail") or ()]
    return " ".join([str(entry.get("event", "")), *causes])
