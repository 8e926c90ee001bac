"""Sections `one-core` and `loader`: images/s of decode + random-resized-crop, ours beside torchvision's reference.

Both cut by the reference's rule (8% to 100% of the area, aspect 3:4 to 4:3) and mirror every second image; ours ends in
uint8, since normalization is part of our network, so that the reference stands there in floats and in uint8.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

from bench import reference
from bench.harness import Rounds, interleave
from bench.photographs import Photograph, Photographs, find
from bench.pixel_sets import Converted, convert, encode, recipe_for
from bench.report import Bar, Report, Table
from pipelines.core.pixelset import DecodedImages
from pipelines.core.recipe import Recipe, override
from pipelines.training.augmentation.draws import Draws, draw
from pipelines.training.augmentation.geometry import transform
from pipelines.training.loading.decoding import decode_crop
from pipelines.training.loading.loader import Loader

PHOTOGRAPHS_BAR, SHARDS_BAR = 2.3, 7.0
_BATCH = 128
_MAX_MEAN_DIFFERENCE = 6.0
"""Of 255, between our crop and Pillow's of the same box: another transform, scale and filter, the same picture."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The same images for every contender."""

    files: Sequence[Photograph]
    recipe: Recipe
    side: int

    def draws(self, sizes: torch.Tensor) -> Draws:
        random = torch.Generator().manual_seed(0)
        return draw(torch.arange(len(sizes)), sizes, 0, self.recipe.augmentation, self.recipe.preprocessing, random, 0)


def one_core(options: argparse.Namespace) -> Report:
    """Decode and crop in one process on one core. Raises SourceError where DATA has no images."""
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        found = find(options.data, Path(folder)).limited(options.files)
        work = Work(files=found.files, recipe=recipe_for(options.side), side=options.side)
        num_bytes = reference.warm(work.files)
        shards = convert(found, work.recipe, Path(folder) / "shards")
        difference = _compare(work)
        images = shards.training_images()
        with reference.Pinned():
            contenders = {
                "reference": _timed(work, lambda: _reference(work, uint8=False)),
                "reference, uint8": _timed(work, lambda: _reference(work, uint8=True)),
                "photographs": _timed(work, lambda: _photographs(work)),
                "shards": _rate(len(images), lambda: _shards(work, images)),
            }
            rounds = interleave(
                contenders, _rate(200, lambda: _bare(work)), rounds=options.rounds, strict=options.strict
            )
    return _one_core_report(work, rounds, num_bytes, shards, difference)


def _timed(work: Work, function: Callable[[], None]) -> Callable[[], float]:
    return _rate(len(work.files), function)


def _rate(count: int, function: Callable[[], None]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        function()
        return count / (time.perf_counter() - began)

    return run


def _bare(work: Work) -> None:
    """Nobody's work: 200 files decoded whole by Pillow."""
    for place in range(200):
        with Image.open(work.files[place % len(work.files)].path) as image:
            image.load()


def _reference(work: Work, *, uint8: bool) -> None:
    data = reference.Files(work.files, reference.training_transform(work.side, uint8=uint8))
    for place in range(len(data)):
        data[place]


def _photographs(work: Work) -> None:
    """From the untouched files: read, look at the header for the size, draw, decode what the crop needs."""
    side = work.side
    for start in range(0, len(work.files), _BATCH):
        data = [one.path.read_bytes() for one in work.files[start : start + _BATCH]]
        sizes = [_size(one) for one in data]
        draws = work.draws(torch.tensor(sizes, dtype=torch.int32))
        boxes, mirrored = draws.boxes.tolist(), draws.mirrored.tolist()
        for place, one in enumerate(data):
            decode_crop(one, sizes[place], boxes[place], mirrored[place], side, side)


def _size(data: bytes) -> tuple[int, int]:
    if data.startswith(b"\xff\xd8"):
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        return height, width
    from pipelines.core.preprocessing import decode

    found = decode(data)
    return found.height, found.width


def _shards(work: Work, images: DecodedImages) -> None:
    """From our decoded shards: gathered from the memory map in random order, cropped in batches."""
    order = np.random.default_rng(0).permutation(len(images))
    sizes = torch.from_numpy(images.sizes) if images.sizes is not None else torch.ones(len(images), 2)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        draws = work.draws(sizes[torch.from_numpy(rows)])
        transform(torch.from_numpy(images.rows(rows)), draws, work.recipe.augmentation, work.side, work.side)


def _compare(work: Work) -> float:
    """Mean |difference| of our crops and Pillow's of the same boxes. Raises RuntimeError where too large."""
    differences = []
    for one in work.files[:64]:
        data = one.path.read_bytes()
        with Image.open(one.path) as opened:
            image = opened.convert("RGB")
        height, width = _size(data)
        if (image.height, image.width) != (height, width):
            continue  # turned by its EXIF orientation, which the reference ignores
        top, left, rows, columns = work.draws(torch.tensor([[height, width]], dtype=torch.int32)).boxes[0].tolist()
        ours = decode_crop(data, (height, width), (top, left, rows, columns), False, work.side, work.side)
        box = (left * width, top * height, (left + columns) * width, (top + rows) * height)
        theirs = image.resize((work.side, work.side), Image.Resampling.BILINEAR, box=box)
        differences.append(np.abs(ours.astype(np.int16) - np.asarray(theirs)).mean())
    found = float(np.mean(differences))
    if found > _MAX_MEAN_DIFFERENCE:
        raise RuntimeError(f"our crops differ from Pillow's by {found:.1f} of 255 in the mean: nothing is timed")
    return found


def _one_core_report(work: Work, rounds: Rounds, num_bytes: int, shards: Converted, difference: float) -> Report:
    rows = []
    for name in rounds.rates:
        ratios = [rounds.ratio(name, "reference").text(), rounds.ratio(name, "reference, uint8").text()]
        rows.append([name, rounds.rate(name).text(digits=0), *ratios])
    photographs, fast = rounds.ratio("photographs", "reference"), rounds.ratio("shards", "reference")
    columns = ["", "images/s", "to the reference", "to its uint8 variant"]
    title = f"one core, {len(work.files):,} files, {num_bytes / 1e6:,.0f} MB, {work.side} px"
    return Report(
        figures={
            "files": len(work.files),
            "bytes": num_bytes,
            "side": work.side,
            **rounds.as_json(),
            "ratios": {
                f"{name} / {base}": rounds.ratio(name, base).as_json()
                for name in ("photographs", "shards")
                for base in ("reference", "reference, uint8")
            },
            "mean_difference_of_255": difference,
            "conversion": shards.as_json(),
        },
        tables=[Table(title=title, columns=columns, rows=rows)],
        bars=[
            Bar(what="untouched photographs to the reference, lower end", bar=PHOTOGRAPHS_BAR, found=photographs.low),
            Bar(what="our shards to the reference, lower end", bar=SHARDS_BAR, found=fast.low),
        ],
        notes=[
            f"{len(rounds.dropped)} disturbed rounds dropped",
            shards.text(),
            f"our crops differ from Pillow's of the same boxes by {difference:.1f} of 255 in the mean",
        ],
    )


def loader(options: argparse.Namespace) -> Report:
    """Whole loaders with two workers each: batches of 128 as the training would take them."""
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        found = find(options.data, Path(folder)).limited(options.files)
        recipe = override(recipe_for(options.side), {"loading.workers": options.workers})
        num_bytes = reference.warm(found.files)
        shards = convert(found, recipe, Path(folder) / "shards")
        num_classes = len(found.class_names)
        mapped = override(recipe, {"loading.strategy": "mapped"})
        resident = override(recipe, {"loading.strategy": "resident"})
        ours = {
            "photographs": Loader(encode(found), recipe, num_classes, torch.device("cpu")),
            "shards, mapped": Loader(shards.split, mapped, num_classes, torch.device("cpu")),
            "shards, resident": Loader(shards.split, resident, num_classes, torch.device("cpu")),
        }
        contenders = {
            "reference": _their_loader(found, options, uint8=False),
            "reference, uint8": _their_loader(found, options, uint8=True),
            **{name: _our_epochs(batches) for name, batches in ours.items()},
        }
        work = Work(files=found.files, recipe=recipe, side=options.side)
        rounds = interleave(contenders, _rate(200, lambda: _bare(work)), rounds=options.rounds, strict=options.strict)
        for batches in ours.values():
            batches.close()
    rows = [[name, rounds.rate(name).text(digits=0), rounds.ratio(name, "reference").text()] for name in rounds.rates]
    title = f"{options.workers} workers, {len(found.files):,} files, {num_bytes / 1e6:,.0f} MB, {options.side} px"
    ratios: dict[str, Any] = {name: rounds.ratio(name, "reference").as_json() for name in rounds.rates}
    return Report(
        figures={"files": len(found.files), "workers": options.workers, **rounds.as_json(), "ratios": ratios},
        tables=[Table(title=title, columns=["", "images/s", "to the reference"], rows=rows)],
        notes=[f"{len(rounds.dropped)} disturbed rounds dropped", shards.text()],
    )


def _their_loader(found: Photographs, options: argparse.Namespace, *, uint8: bool) -> Callable[[], float]:
    transform = reference.training_transform(options.side, uint8=uint8)
    batches = reference.loader(found.files, transform, _BATCH, options.workers, keep=True)
    return _epochs(lambda: iter(batches))


def _our_epochs(loader: Loader) -> Callable[[], float]:
    return _epochs(lambda: ((batch.pixels, batch.labels) for batch in loader.batches(0)))


def _epochs(epoch: Callable[[], Any]) -> Callable[[], float]:
    """Images/s of whole epochs. The first one, in which workers start, counts for nobody."""
    for _ in epoch():
        pass

    def run() -> float:
        began = time.perf_counter()
        count = sum(len(labels) for _, labels in epoch())
        return count / (time.perf_counter() - began)

    return run
