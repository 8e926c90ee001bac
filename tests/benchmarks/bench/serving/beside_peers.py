"""Section `peers`: ours beside BentoML, LitServe and MLServer on the same ONNX file, images and threads."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from bench.report import Bar, Report, Table
from bench.serving.answers import compare
from bench.serving.comparison import COLUMNS, Comparison, side_by_side
from bench.serving.control import bare
from bench.serving.cost import NO_CACHE, turns
from bench.serving.ours import worker
from bench.serving.peers.environments import python
from bench.serving.peers.servers import PEERS, serve
from bench.serving.stage import stage
from pipelines.core.errors import UserError

COST_BAR, THROUGHPUT_BAR = 0.5, 1.3
CPU_BUILD = "bare, CPU build"
"""The bare control in a peer's environment, whose onnxruntime is the build without CUDA: shows whether both cost the
same."""


def run(options: argparse.Namespace) -> Report:
    """Raises UserError for a peer that there is not, PlatformError where one cannot be installed or started, and
    RuntimeError where answers differ.
    """
    chosen = options.peer or list(PEERS)
    if unknown := [name for name in chosen if name not in PEERS]:
        raise UserError(f"--peer {unknown[0]!r}: expected one of {', '.join(map(repr, PEERS))}")
    with stage(options) as place, contextlib.ExitStack() as stack:
        files, package = place.images(), place.package()
        shape = {"threads": options.threads, "concurrency": options.concurrency}
        control = stack.enter_context(bare(package, files, **shape))
        interpreter = str(python(PEERS["LitServe"].environment, place.kept))
        other = stack.enter_context(bare(package, files, **shape, interpreter=interpreter))
        variables = place.variables(**NO_CACHE)
        servers = [
            stack.enter_context(worker(place.bento(package), place.work, variables)).server,
            *(stack.enter_context(serve(place, package, name)) for name in chosen),
        ]
        load = place.load(files)
        difference = compare(servers, load, control.probabilities())
        contenders = {CPU_BUILD: lambda: other.turn(options.seconds), **turns(place, servers, load)}
        found = side_by_side(contenders, lambda: control.turn(options.seconds), options)
        notes = [*place.notes(), f"answers differ by at most {difference:.1g} of probability"]
    return _report(options, chosen, found, notes)


def _report(options: argparse.Namespace, peers: Sequence[str], found: Comparison, notes: list[str]) -> Report:
    leanest = min(peers, key=lambda name: found.above_bare_ms(name).value)
    fastest = max(peers, key=lambda name: found.of(name, lambda turn: turn.per_s).value)
    cost, throughput = found.above_bare_ratio("ours", leanest), found.throughput_ratio("ours", fastest)
    threads = f"{options.concurrency} x {options.threads} threads, {options.connections} connections"
    return Report(
        figures={
            **found.as_json(),
            "above_bare_to_leanest": {"peer": leanest, **cost.as_json()},
            "requests_per_s_to_fastest": {"peer": fastest, **throughput.as_json()},
        },
        tables=[Table(title=f"{threads}, {len(found.bare_ms)} rounds", columns=COLUMNS, rows=found.rows())],
        bars=[
            Bar(what=f"cost above bare to {leanest}'s, upper end", bar=COST_BAR, found=cost.high, at_most=True),
            Bar(what=f"requests/s to {fastest}'s, lower end", bar=THROUGHPUT_BAR, found=throughput.low),
        ],
        notes=[*notes, f"{len(found.rounds.dropped)} disturbed rounds dropped"],
    )
