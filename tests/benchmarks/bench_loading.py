"""Images/s of loading photographs beside torchvision's reference loader, and the memory of streaming a million.

    python tests/benchmarks/bench_loading.py --data FOLDER_OR_TAR [--section one-core|loader|memory ...] [--json]

Sections: `one-core` (decode and crop in one process on one core), `loader` (whole loaders with two workers), `memory`
(flat or not, with a control that leaks). The first two need photographs; `memory` makes its own where there are none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import report
from bench.harness import MIN_ROUNDS

SECTIONS = ("one-core", "loader", "memory")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="a folder or tar with a folder of photographs per class")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="one or more; by default all")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="undisturbed rounds to keep")
    parser.add_argument("--lenient", dest="strict", action="store_false", help="keep disturbed rounds too")
    parser.add_argument("--files", type=int, default=1000, help="most files of a round; 0 takes all")
    parser.add_argument("--side", type=int, default=224, help="side of the crops, px")
    parser.add_argument("--workers", type=int, default=2, help="of each whole loader")
    parser.add_argument("--images", type=int, default=1_000_000, help="memory: images of the synthetic set")
    parser.add_argument("--steps", type=int, default=2000, help="memory: steps of 32 images")
    parser.add_argument("--leak", type=int, default=65_536, help="memory: bytes that the control forgets a step")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    options.section = options.section or list(SECTIONS)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    from bench.loading import memory, rates

    sections = {"one-core": rates.one_core, "loader": rates.loader, "memory": memory.run}
    return report.run(sections, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
