"""Serving beside its controls and peers, section by section.

    python tests/benchmarks/bench_serving.py [--data FOLDER_OR_TAR] [--section SECTION ...] [--json]

    packages    make the models that the others need, and keep them (the others do so too)
    cost        CPU ms a request beside bare, plain FastAPI, and behind Envoy
    overhead    CPU ms above bare with the model's work held equal, for variants of settings
    cache       a hit, and a trace of which 80% are repeats
    latency     open loop at 50%, 80%, 150% and 300% of capacity; pauses of the collector
    memory      growth over --requests, with a control that leaks on purpose
    cold-start  process start to ready, both models, fp32 and int8
    peers       BentoML, LitServe and MLServer as their vendors say: bench/serving/README.md

By default all but `peers`, which --peers adds.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import report
from bench.harness import MIN_ROUNDS

MODULES = {
    "packages": "packages",
    "cost": "cost",
    "overhead": "overhead",
    "cache": "cache",
    "latency": "latency",
    "memory": "memory",
    "cold-start": "cold_start",
    "peers": "beside_peers",
}
BY_DEFAULT = ("cost", "overhead", "cache", "latency", "memory", "cold-start")
TINY = {
    "made": 60,
    "images": 12,
    "rounds": 2,
    "strict": False,
    "seconds": 0.2,
    "latency_seconds": 0.5,
    "trials": 1,
    "requests": 600,
    "control_requests": 600,
    "leak": 400_000,
    "sample_every": 0.01,
    "starts": 1,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--section", action="append", choices=tuple(MODULES), help="one or more")
    add("--peers", action="store_true", help="the section peers too")
    add("--data", default="", help="a folder or tar with a folder of photographs per class; by default generated ones")
    add("--work", default="", help="where packages and peers are kept; by default DARKROOM_HOME/bench-serving")
    add(
        "--model",
        choices=("small", "large", "least"),
        default="small",
        help="MobileNetV2 or ResNet-50 at 224 px; a few layers at 32 px, which leave hardly more than serving",
    )
    add("--precision", choices=("fp32", "int8"), default="fp32")
    add("--images", type=int, default=256, help="distinct photographs; 0 takes all")
    add("--made", type=int, default=512, help="photographs to generate where there are none")
    add("--rounds", type=int, default=MIN_ROUNDS, help="undisturbed rounds to keep")
    add("--lenient", dest="strict", action="store_false", help="keep disturbed rounds too")
    add("--seconds", type=float, default=5, help="of a turn")
    add("--connections", type=int, default=4, help="of the closed loops; cache and latency have their own")
    add("--threads", type=int, default=1, help="of the model for one batch")
    add("--concurrency", type=int, default=1, help="cost, overhead, peers: batches at once; else a core each")
    add("--header", type=_header, action="append", default=[], metavar="NAME:VALUE", help="sent; @FILE has the value")
    add("--env", type=_pair("="), action="append", default=[], metavar="NAME=VALUE", help="for our worker")
    add("--variant", type=_variant, action="append", default=[], metavar="NAME:A=B,C=D", help="overhead: one more")
    add("--peer", action="append", default=[], metavar="NAME", help="peers: one or more of its rows; by default all")
    add("--trials", type=int, default=5, help="cache, latency: repetitions")
    add("--repeats", type=float, default=0.8, help="cache: share of the trace")
    add("--latency-seconds", type=float, default=30, help="latency: of each open loop")
    add("--requests", type=int, default=100_000, help="memory: of the honest run")
    add("--control-requests", type=int, default=20_000, help="memory: of the leaking control")
    add("--leak", type=int, default=8192, help="memory: bytes that the control forgets a request")
    add("--sample-every", type=float, default=1, metavar="SECONDS", help="memory: between looks")
    add("--starts", type=int, default=7, help="cold-start: of each model")
    add("--tiny", action="store_true", help="run the code at sizes whose figures mean nothing")
    add("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    if options.tiny:
        vars(options).update(TINY)
    options.header, options.env = dict(options.header), dict(options.env)
    options.section = options.section or list(BY_DEFAULT)
    if options.peers and "peers" not in options.section:
        options.section.append("peers")
    return options


def _pair(sign: str) -> Callable[[str], tuple[str, str]]:
    def pair(text: str) -> tuple[str, str]:
        name, found, value = text.partition(sign)
        if not name or not found:
            raise argparse.ArgumentTypeError(f"{text!r}: expected NAME{sign}VALUE")
        return name.strip(), value.strip()

    return pair


def _header(text: str) -> tuple[str, str]:
    """A value that begins with @ names the file that has it: command lines are no place for a token."""
    name, value = _pair(":")(text)
    if not value.startswith("@"):
        return name, value
    try:
        return name, Path(value[1:]).read_text().strip()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{value[1:]}: not readable ({error.strerror})") from error


def _variant(text: str) -> tuple[str, dict[str, str]]:
    name, found, rest = text.partition(":")
    if not name or not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME:VARIABLE=VALUE,VARIABLE=VALUE")
    return name, dict(one.partition("=")[::2] for one in rest.split(",") if one)


def section(name: str) -> report.Section:
    """A section's function, its imports put off until it is run."""

    def run(options: argparse.Namespace) -> report.Report:
        found: report.Report = importlib.import_module(f"bench.serving.{MODULES[name]}").run(options)
        return found

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    return report.run({name: section(name) for name in MODULES}, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
