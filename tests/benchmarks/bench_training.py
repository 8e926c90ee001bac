"""Training beside its controls, section by section.

    python tests/benchmarks/bench_training.py --section SECTION [--data FOLDER_OR_TAR] [--json]

    step-rate   our step against the default torch loop, ResNet-18 on the CPU; makes images where there are no data
    tracking    what MLflow, checkpoints and observers take of the time
    cifar       --data CIFAR-10: pipelines/recipes/cifar10.toml through the chain's steps; --seeds, --first-seed
    clothing    --data photographs: our recipe and torchvision's reference script, each given --minutes
    paired      --data photographs: decoded shards against untouched files, --seeds pairs
    memory      --data photographs: peak host memory of a training
    airbench    GPU, --data CIFAR-10 with train/, val/ and test/, --airbench SCRIPT: side by side on the same pixels
    splits      --data CIFAR-10 --out TAR: the chain's splits of it as train/, val/ and test/, for airbench elsewhere
    gpu-feed    GPU: the pipeline against a synthetic resident batch, and against torchvision's reference loop

By default those that need no data. `--recipe FILE` and `--set JSON` change what is trained.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from bench import report
from bench.harness import MIN_ROUNDS

MODULES = {
    "step-rate": "step_rate",
    "tracking": "tracking",
    "cifar": "cifar",
    "clothing": "clothing",
    "paired": "paired",
    "memory": "memory",
    "airbench": "airbench",
    "splits": "splits",
    "gpu-feed": "gpu_feed",
}
WITHOUT_DATA = ("step-rate", "tracking", "gpu-feed")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=tuple(MODULES), help="one or more")
    parser.add_argument("--data", default="", help="a folder or tar with a folder of images per class")
    parser.add_argument("--recipe", default="", help="recipe file instead of the section's own")
    parser.add_argument(
        "--set", type=json.loads, default={}, metavar="JSON", help='changed keys, {"training.epochs": 5}'
    )
    parser.add_argument("--seeds", type=int, default=0, help="trainings; by default 3, of paired 5, of clothing 1")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15, help="clothing: of each side")
    parser.add_argument("--epochs", type=int, default=0, help="by default 12 of paired, 3 of tracking")
    parser.add_argument("--held-out", type=float, default=0, help="paired: deal anew, this share validates")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="undisturbed rounds to keep")
    parser.add_argument("--lenient", dest="strict", action="store_false", help="keep disturbed rounds too")
    parser.add_argument("--side", type=int, default=128, help="step-rate, paired, tracking: px")
    parser.add_argument("--batch", type=int, default=64, help="step-rate: images a step")
    parser.add_argument("--steps", type=int, default=100, help="step-rate: of the loss curves")
    parser.add_argument("--timed-steps", type=int, default=0, help="of a turn; by default 10, 50 of gpu-feed")
    parser.add_argument("--feed-batch", type=int, default=256, help="gpu-feed: images a step")
    parser.add_argument("--limit", type=int, default=0, help="most files of the data; 0 takes all")
    parser.add_argument("--airbench", default="", help="airbench94_muon.py of a checkout")
    parser.add_argument("--out", default="", help="splits: the tar to write")
    parser.add_argument("--tiny", action="store_true", help="gpu-feed: run the code on a CPU; the figures mean nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    options.section = options.section or list(WITHOUT_DATA)
    return options


def section(name: str) -> report.Section:
    """A section's function, its imports put off until it is run: some need the whole environment, some torch alone."""

    def run(options: argparse.Namespace) -> report.Report:
        seeds = options.seeds or {"paired": 5, "clothing": 1}.get(name, 3)
        chosen = argparse.Namespace(**{**vars(options), "seeds": seeds})
        found: report.Report = importlib.import_module(f"bench.training.{MODULES[name]}").run(chosen)
        return found

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    return report.run({name: section(name) for name in MODULES}, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
