"""Run one step of one run: lock, sweep, key, reuse or compute, publish, record."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pipelines.cli.import_clock import import_clock
from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core import recipe as recipes
from pipelines.core.actors import person
from pipelines.core.closure import code_digest
from pipelines.core.errors import NotFound, UserError
from pipelines.core.processes import birth, marked, session_members, start_time
from pipelines.core.results import ResultStore, StoredResult, digest_json
from pipelines.core.runs import Reference, RunFolder, RunId, RunRequest
from pipelines.core.storage import Storage, open_storage
from pipelines.settings import REPOSITORY, Settings

TASK_MARK = "DARKROOM_TASK"
"""Environment variable that marks a step's process tree, so that its orphans can be found."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What the caller (Airflow's operator, the direct runner) needs to know."""

    step: str
    shard: int | None
    reused: bool
    function_s: float
    process_s: float
    value: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def storage_of(settings: Settings) -> Storage:
    return open_storage(settings.store_uri, endpoint_url=settings.s3_endpoint_url)


def execute(
    settings: Settings,
    spec: StepSpec,
    run: RunId,
    *,
    shard: int | None = None,
    request: RunRequest | None = None,
    force: bool = False,
    started: float | None = None,
    actor: str | None = None,
) -> StepOutcome:
    """Run a step, or reuse its finished result, and record the reference in the run folder.

    `request` is needed by the first step of a run only. `started` is the epoch second at which the caller counts the
    step as started (default: the start of this process), `actor` is who runs it (default: whoever gave this command).
    Raises whatever the step raises.
    """
    storage = storage_of(settings)
    folder = RunFolder(storage, run)
    started = started or start_time(os.getpid())
    mark = task_mark(run, spec.name, shard)
    with _exclusive(settings.home / "locks", mark):
        asked = folder.begin(request) if request is not None else folder.request()
        results = ResultStore(storage, settings.home / "cache")
        upstream = _upstream(folder, results, spec)
        key = result_key(settings, storage, spec, asked, upstream, shard, run)
        began = datetime.now(UTC)
        facts: dict[str, Any] = {}
        function_s = 0.0
        # Equal work of another run is waited for, and then found.
        with _locked(settings.home / "locks", f"result {key}"):
            found = None if force else _reusable(results, spec, key)
            if found is None:
                stored, facts, function_s = _compute(
                    settings, storage, results, spec, run, asked, upstream, shard, key, force, actor or person()
                )
            else:
                stored = found
        reference = Reference(
            step=spec.name,
            shard=shard,
            key=key,
            digest=stored.digest,
            reused=found is not None,
            started_at=datetime.fromtimestamp(started, UTC).isoformat(),
            finished_at=datetime.now(UTC).isoformat(),
            function_s=function_s,
            process_s=(datetime.now(UTC).timestamp() - started),
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            facts={**facts, "began_at": began.isoformat()},
        )
        folder.record(reference)
    return StepOutcome(
        step=spec.name,
        shard=shard,
        reused=reference.reused,
        function_s=function_s,
        process_s=reference.process_s,
        value=stored.value,
        facts=facts,
    )


def task_mark(run: RunId, step: str, shard: int | None) -> str:
    return f"{run}/{step}" + ("" if shard is None else f"/{shard}")


def _reusable(results: ResultStore, spec: StepSpec, key: str) -> StoredResult | None:
    """The finished result that stands for the step's work, if there is one."""
    found = None if spec.effect else results.find(spec.name, key)
    return found if found is None or spec.reusable is None or spec.reusable(found.value) else None


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[IO[str]]:
    """Hold a lock among the processes of this machine; it ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / hashlib.sha256(name.encode()).hexdigest()[:32]).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@contextmanager
def _exclusive(folder: Path, mark: str) -> Iterator[None]:
    """Hold the lock of (dag, run, step), and end what an earlier, killed try has left running.

    A retry waits here for an earlier try that still runs. The file names the holder's session, since a child of the
    step host does not show our mark in its environment.
    """
    with _locked(folder, mark) as file:
        file.seek(0)
        orphans = set(marked(TASK_MARK, mark))
        session, _, began = file.read().partition(" ")
        if session and int(session) != os.getsid(0):
            orphans.update(session_members(int(session), began))
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        file.truncate(0)
        if os.getsid(0) == os.getpid():
            file.write(f"{os.getpid()} {birth(os.getpid())}")
            file.flush()
        yield


def _upstream(folder: RunFolder, results: ResultStore, spec: StepSpec) -> dict[str, tuple[StoredResult, ...]]:
    references = folder.references() if spec.upstream else []
    found: dict[str, tuple[StoredResult, ...]] = {}
    for step in spec.upstream:
        mine = sorted((one for one in references if one.step == step), key=lambda one: one.shard or 0)
        stored = [results.find(step, one.key) for one in mine]
        if not mine or None in stored:
            raise NotFound(f"run {folder.run}: step {step} has no result yet; run it before {spec.name}")
        found[step] = tuple(one for one in stored if one is not None)
    return found


def result_key(
    settings: Settings,
    storage: Storage,
    spec: StepSpec,
    request: RunRequest,
    upstream: Mapping[str, tuple[StoredResult, ...]],
    shard: int | None,
    run: RunId,
) -> str:
    sections = {name: recipes.digest_of(getattr(request.recipe, name)) for name in spec.sections}
    parts: dict[str, Any] = {
        "step": spec.name,
        "name": request.recipe.name,
        "upstream": {step: [one.digest for one in found] for step, found in upstream.items()},
        "sections": sections,
        "code": code_digest(spec.roots, REPOSITORY),
        "shard": shard,
    }
    if spec.first:
        parts["request"] = [request.interval, request.as_of]
    if spec.world is not None:
        parts["world"] = spec.world(settings, storage, request)
    if spec.compute:
        parts["device"] = [_device(request.recipe), request.recipe.training.threads]
    if spec.effect:
        # An effect's record belongs to its run: two runs never replace each other's.
        parts["run"] = str(run)
    return digest_json(parts)


def _device(recipe: recipes.Recipe) -> str:
    """The device kind that training will choose, without importing torch."""
    if recipe.training.device != "auto":
        return recipe.training.device
    return "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"


def _compute(
    settings: Settings,
    storage: Storage,
    results: ResultStore,
    spec: StepSpec,
    run: RunId,
    request: RunRequest,
    upstream: Mapping[str, tuple[StoredResult, ...]],
    shard: int | None,
    key: str,
    force: bool,
    actor: str,
) -> tuple[StoredResult, dict[str, Any], float]:
    """The published result, its facts, and the seconds of the step's function without the imports inside it."""
    out = settings.home / "scratch" / f"{spec.name}-{uuid.uuid4().hex}"
    out.mkdir(parents=True)
    try:
        context = StepContext(
            settings=settings,
            storage=storage,
            results=results,
            run=run,
            request=request,
            actor=actor,
            upstream=upstream,
            shard=shard,
            out=out,
        )
        clock = time.perf_counter()
        with import_clock() as imports:
            value = spec.wire(context)
        function_s = time.perf_counter() - clock - imports.seconds
        context.facts["import_s"] = round(imports.seconds, 3)
        meta = {"run": str(run), "finished_at": datetime.now(UTC).isoformat(), "facts": context.facts}
        stored = results.publish(
            spec.name, key, out, value, meta, replace=spec.effect or force or spec.reusable is not None
        )
        for folder in context.spent:
            shutil.rmtree(folder, ignore_errors=True)
        return stored, context.facts, function_s
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise UserError(
                f"{error.filename or settings.home}: no space left; free some or set DARKROOM_HOME"
            ) from error
        raise
    finally:
        shutil.rmtree(out, ignore_errors=True)


def write_outcome(path: Path, outcome: StepOutcome) -> None:
    """Leave the outcome where the operator reads it."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(outcome.__dict__, default=dict))
    temporary.replace(path)
