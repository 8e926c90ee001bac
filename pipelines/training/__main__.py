"""`python -m pipelines.training --recipe R --data DIR --out DIR`, where there is torch and torchvision only.

On several GPUs or hosts: `torchrun --nproc-per-node N -m pipelines.training …`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipelines.core import named_files, pixelset
from pipelines.core import recipe as recipes
from pipelines.core.errors import DarkroomError, UserError
from pipelines.core.pixelset import PixelSet
from pipelines.core.recipe import Recipe
from pipelines.training import devices, image_folder, networks
from pipelines.training.engine import distribution
from pipelines.training.observers import Progress
from pipelines.training.trainer import CHECKPOINT_INTERVAL_S, TrainingResult, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or that of the error, with one line on standard error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        with distribution.joined() as world:
            result = _train(options, world)
    except DarkroomError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if world.leads:
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


def _train(options: argparse.Namespace, world: distribution.World) -> TrainingResult:
    recipe = recipes.override(recipes.load(options.recipe), recipes.changes(options.set))
    named_files.check_for_training(recipe)
    if world.leads:
        _check_writable(options.out)
    return train(
        _data(options, recipe, world),
        recipe,
        options.out,
        checkpoints=options.out / "checkpoints",
        checkpoint_every_s=options.checkpoint_every,
        observers=[Progress()],
        world=world,
    )


def _check_writable(folder: Path) -> None:
    """Now, and not after hours of training. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written to ({error.strerror}); name another folder") from error


def _data(options: argparse.Namespace, recipe: Recipe, world: distribution.World) -> PixelSet:
    """The pixel set; where it is made here, the leading process makes it, then one on each machine without it."""
    if (options.data / pixelset.INDEX).is_file():
        return pixelset.load(options.data)
    if recipe.training.mode == "head":
        raise UserError(
            f"training.mode = 'head': {options.data} holds no stored embeddings; take the folder that step `prepare` "
            "wrote for a recipe with this mode"
        )
    # Before images are decoded for an hour: is there the device, do the starting weights fit? The classes come later.
    devices.choose_device(recipe.training.device, world.local_rank)
    networks.build(recipe.model, 2)
    first = 0 if world.leads else 1 if world.local_rank == 0 else 2
    for _ in range(first):
        world.wait()
    data = image_folder.read(options.data, recipe, options.out / "pixels")
    for _ in range(first, 2):
        world.wait()
    return data


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="recipe file (TOML)")
    parser.add_argument("--data", type=Path, required=True, help="a pixel set, or a folder of class folders")
    parser.add_argument("--out", type=Path, required=True, help="gets weights.pt, history.json and checkpoints/")
    parser.add_argument("--set", default="{}", metavar="JSON", help='changed keys, {"training.epochs": 5}')
    parser.add_argument(
        "--checkpoint-every",
        type=float,
        default=CHECKPOINT_INTERVAL_S,
        metavar="S",
        help="seconds between checkpoints; up to ten times that where they would take 1%% of the time; 0: every step",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
