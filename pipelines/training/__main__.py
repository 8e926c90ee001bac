"""`python -m pipelines.training --recipe R --data DIR --out DIR`, where there is torch and torchvision only."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipelines.core import pixelset
from pipelines.core import recipe as recipes
from pipelines.core.errors import DarkroomError
from pipelines.training import image_folder
from pipelines.training.observers import Progress
from pipelines.training.trainer import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error for what the caller can mend."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.training", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="recipe file (TOML)")
    parser.add_argument("--data", type=Path, required=True, help="a pixel set, or a folder of class folders")
    parser.add_argument("--out", type=Path, required=True, help="gets weights.pt, history.json and checkpoint.pt")
    parser.add_argument("--set", default="{}", metavar="JSON", help='changed keys, {"training.epochs": 5}')
    options = parser.parse_args(arguments)
    try:
        recipe = recipes.override(recipes.load(options.recipe), json.loads(options.set))
        is_pixel_set = (options.data / pixelset.INDEX).is_file()
        data = (
            pixelset.load(options.data)
            if is_pixel_set
            else image_folder.read(options.data, recipe, options.out / "pixels")
        )
        options.out.mkdir(parents=True, exist_ok=True)
        result = train(data, recipe, options.out, checkpoint=options.out / "checkpoint.pt", observers=[Progress()])
    except DarkroomError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
