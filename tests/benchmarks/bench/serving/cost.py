"""Section `cost`: CPU milliseconds a request beside bare, plain FastAPI, and with Envoy's own CPU.

Every server works on every request: the cache is off. All have one process with the same threads.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.report import Bar, Report, Table
from bench.serving.answers import compare
from bench.serving.comparison import COLUMNS, Comparison, Turn, side_by_side
from bench.serving.control import bare, environment
from bench.serving.load import Load, send
from bench.serving.metrics import mean_batch
from bench.serving.ours import behind_envoy, worker
from bench.serving.servers import Command, Server, started
from bench.serving.stage import Stage, stage
from pipelines.core.model_package import ModelPackage
from pipelines.local.ports import free_port

NO_CACHE = {"DARKROOM_CACHE_BYTES": "0"}
BAR, STRETCH, BAR_WITH_ENVOY = 0.90, 0.94, 0.86


def run(options: argparse.Namespace) -> Report:
    """Raises RuntimeError where a server's answers differ from the others', SourceError without photographs."""
    with stage(options) as place, contextlib.ExitStack() as stack:
        files, package = place.images(), place.package()
        control = stack.enter_context(bare(package, files, threads=options.threads, concurrency=options.concurrency))
        serving = stack.enter_context(worker(place.bento(package), place.work, place.variables(**NO_CACHE)))
        servers = [
            stack.enter_context(plain(place, package)),
            serving.server,
            stack.enter_context(behind_envoy(serving, package.name, place.work)),
        ]
        load = place.load(files)
        difference = compare(servers, load, control.probabilities())
        found = side_by_side(turns(place, servers, load), lambda: control.turn(options.seconds), options)
        batch = mean_batch(serving.server)
        notes = place.notes()
    notes += [
        f"cache off, {options.connections} connections; ours computes together what waits, {batch:.2f} images a batch",
        f"answers differ by at most {difference:.1g} of probability",
        f"{len(found.rounds.dropped)} disturbed rounds dropped",
    ]
    return _report(options, found, len(files), notes, {"mean_batch": batch, "max_difference": difference})


def turns(place: Stage, servers: list[Server], load: Load) -> dict[str, Turn]:
    """A turn of each server, its images in another order every time."""
    seeds = itertools.count()

    def turn(server: Server) -> Turn:
        return lambda: send(server, place.turned(load, next(seeds)))

    return {server.name: turn(server) for server in servers}


@contextlib.contextmanager
def plain(place: Stage, package: ModelPackage) -> Iterator[Server]:
    """The FastAPI script in this environment."""
    options, port = place.options, free_port()
    arguments = [str(package.folder), package.variant, str(options.threads), str(options.concurrency), str(port)]
    command = Command(
        name="plain",
        argv=[sys.executable, "-m", "bench.serving.plain", *arguments],
        env=environment(),
        cwd=place.work,
        log=place.work / "plain.log",
        port=port,
    )
    with started(command) as (pid, _):
        yield Server(name="plain", port=port, pids={"plain": pid}, log=Path(command.log))


def _report(
    options: argparse.Namespace, found: Comparison, num_images: int, notes: list[str], figures: dict[str, float]
) -> Report:
    ours, envoy = found.share_of_bare("ours"), found.share_of_bare("envoy")
    title = (
        f"{num_images} photographs, one process, {options.concurrency} x {options.threads} threads, "
        f"{len(found.bare_ms)} rounds of {options.seconds:g} s"
    )
    return Report(
        figures={**found.as_json(), **figures, "images": num_images},
        tables=[Table(title=title, columns=COLUMNS, rows=found.rows())],
        bars=[
            Bar(what="bare to ours, lower end", bar=BAR, found=ours.low),
            Bar(what="the same, stretch", bar=STRETCH, found=ours.low),
            Bar(what="bare to ours with Envoy, lower end", bar=BAR_WITH_ENVOY, found=envoy.low),
        ],
        notes=notes,
    )
