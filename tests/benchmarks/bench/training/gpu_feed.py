"""Section `gpu-feed`: how much of the step rate of a synthetic resident batch our pipeline keeps, and what
torchvision's reference loop makes of the same photographs. For a GPU; `--tiny` runs the same code on a CPU, whose
figures mean nothing.

One sitting, interleaved: the synthetic batch first and last, between them shards and JPEG in random order, all through
our step with the same network. Compiling and warming up come before, and are told apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import reference
from bench.defaults import allow_recompiling, torch_defaults
from bench.harness import Rounds, interleave
from bench.ours import OurLoop
from bench.photographs import Photograph, Photographs, find_or_make
from bench.pixel_sets import convert, encode, recipe_for
from bench.report import Bar, Report, Table
from pipelines.core.cores import num_cores
from pipelines.core.pixelset import Split
from pipelines.core.recipe import Recipe, override
from pipelines.training.batch import Batch
from pipelines.training.loading.loader import DEPTH

FEED_BAR, REFERENCE_BAR = 0.9, 3.0


def run(options: argparse.Namespace) -> Report:
    """ResNet-50 fed at 224 px; ResNet-18 beside the reference loop."""
    if not torch.cuda.is_available() and not options.tiny:
        return Report(open="needs a GPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allow_recompiling()
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as place:
        work = Path(place)
        side = 32 if options.tiny else 224
        made = {"count": 64, "side": 64} if options.tiny else {"count": 4000, "side": 500}
        found = find_or_make(options.data, work, **made).limited(options.limit)
        reference.warm(found.files)
        batch = 8 if options.tiny else options.feed_batch
        large = _recipe("resnet18" if options.tiny else "resnet50", side, batch, device)
        small = _recipe("resnet18", side, batch, device)
        splits = _splits(found, large, work)
        fed, warm_s = _feed(splits, large, len(found.class_names), device, options)
        beside = _beside(found, splits["shards"], small, device, options)
    return _report(options, found, side, batch, fed, beside, warm_s)


def _recipe(backbone: str, side: int, batch: int, device: torch.device) -> Recipe:
    changes = {
        "model.backbone": backbone,
        "training.batch_size": batch,
        "training.device": device.type,
        "training.threads": max(1, num_cores() // 2),
        "training.epochs": 1000,
    }
    return override(recipe_for(side), changes)


def _splits(found: Photographs, recipe: Recipe, work: Path) -> dict[str, Split]:
    shards = convert(found, recipe, work / "shards")
    return {"shards": shards.split, "JPEG": encode(found)}


def _feed(
    splits: dict[str, Split], recipe: Recipe, num_classes: int, device: torch.device, options: argparse.Namespace
) -> tuple[Rounds, float]:
    """The same network and step, fed in three ways; and the seconds until everything was warm."""
    began = time.perf_counter()
    mapped = override(recipe, {"loading.strategy": "mapped"})
    loop = OurLoop(splits["shards"], mapped, num_classes, device)
    at_once = override(recipe, {"loading.strategy": "resident"})
    feeds = {
        "shards": loop,
        "shards, resident": OurLoop(splits["shards"], at_once, num_classes, device, like=loop),
        "JPEG": OurLoop(splits["JPEG"], recipe, num_classes, device, like=loop),
    }
    one = next(loop.batches())
    synthetic = replace(one, pixels=torch.randint_like(one.pixels, 256))
    contenders = {name: _rate(loop, feed.batches(), options, ahead=DEPTH + 1) for name, feed in feeds.items()}
    control = _rate(loop, _again(synthetic), options)
    for turn in (control, *contenders.values()):
        turn()
    warm_s = time.perf_counter() - began
    rounds = interleave(contenders, control, rounds=options.rounds, strict=options.strict)
    for feed in feeds.values():
        feed.close()
    return rounds, warm_s


def _again(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


def _rate(
    loop: OurLoop, batches: Iterator[Batch], options: argparse.Namespace, *, ahead: int = 0
) -> Callable[[], float]:
    """Images/s of so many steps; the batches go on where the last round stopped.

    `ahead` of them may have been loaded while others had their turn: these are thrown away before the clock starts.
    """

    def run() -> float:
        count = 0
        for _ in range(ahead):
            next(batches)
        _wait()
        began = time.perf_counter()
        for _ in range(_steps(options)):
            batch = next(batches)
            loop.step(batch)
            count += len(batch)
        _wait()
        return count / (time.perf_counter() - began)

    return run


def _steps(options: argparse.Namespace) -> int:
    return options.timed_steps or 50


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _beside(
    found: Photographs, shards: Split, recipe: Recipe, device: torch.device, options: argparse.Namespace
) -> Rounds:
    """ResNet-18: our engine from shards and torchvision's reference loop, batches of the same size."""
    mapped = override(recipe, {"loading.strategy": "mapped"})
    ours = OurLoop(shards, mapped, len(found.class_names), device)
    network = reference.resnet("resnet18", len(found.class_names)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    default = reference.DefaultLoop(network, optimizer, device)
    side, workers = recipe.preprocessing.height, 0 if options.tiny else num_cores()
    loader = reference.loader(
        _repeated(found.files, recipe.training.batch_size, workers, options),
        reference.training_transform(side),
        recipe.training.batch_size,
        workers,
        keep=workers > 0,
    )
    contenders = {
        "ours": _rate(ours, ours.batches(), options, ahead=DEPTH + 1),
        "reference": _their_rate(default, _endless(loader), options, ahead=2 * workers),
    }
    control = _rate(ours, _again(next(ours.batches())), options)
    for turn in (control, *contenders.values()):
        turn()
    rounds = interleave(contenders, control, rounds=options.rounds, strict=options.strict)
    ours.close()
    return rounds


def _repeated(files: Sequence[Photograph], batch: int, workers: int, options: argparse.Namespace) -> list[Photograph]:
    """The files again and again, so that no epoch of the reference ends within what is timed: its workers would stand
    still there, and begin anew.
    """
    turns = 3 * options.rounds + 1  # the most that there can be, and warming up
    needed: int = batch * turns * (_steps(options) + 2 * workers)
    return list(files) * -(-needed // len(files))


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _their_rate(
    loop: reference.DefaultLoop, batches: Iterator[Any], options: argparse.Namespace, *, ahead: int
) -> Callable[[], float]:
    def run() -> float:
        count = 0
        for _ in range(ahead):
            next(batches)
        _wait()
        began = time.perf_counter()
        for _ in range(_steps(options)):
            images, labels = next(batches)
            loop.step(images, labels).item()  # the script reads the loss after every step
            count += len(labels)
        return count / (time.perf_counter() - began)

    def run_as_torch_comes() -> float:
        with torch_defaults():
            return run()

    return run_as_torch_comes


def _report(
    options: argparse.Namespace,
    found: Photographs,
    side: int,
    batch: int,
    fed: Rounds,
    beside: Rounds,
    warm_s: float,
) -> Report:
    synthetic = [(first + last) / 2 for first, last in fed.controls]
    whole = Rounds(rates={**fed.rates, "synthetic": synthetic}, controls=fed.controls, dropped=fed.dropped)
    rows = [[name, whole.rate(name).text(digits=0), whole.ratio(name, "synthetic").text()] for name in whole.rates]
    others = [[name, beside.rate(name).text(digits=0), beside.ratio(name, "reference").text()] for name in beside.rates]
    size = f"{side} px, batches of {batch}, {len(found.files):,} files"
    return Report(
        figures={
            "side": side,
            "batch": batch,
            "tiny": options.tiny,
            "warm_up_s": warm_s,
            "fed": whole.as_json(),
            "fed_ratios": {name: whole.ratio(name, "synthetic").as_json() for name in fed.rates},
            "beside": beside.as_json(),
            "beside_ratio": beside.ratio("ours", "reference").as_json(),
        },
        tables=[
            Table(title=f"ResNet-50, {size}", columns=["", "images/s", "to the synthetic batch"], rows=rows),
            Table(title=f"ResNet-18, {size}", columns=["", "images/s", "to the reference"], rows=others),
        ],
        bars=[
            Bar(what="from shards, lower end", bar=FEED_BAR, found=whole.ratio("shards", "synthetic").low),
            Bar(what="from JPEG, lower end", bar=FEED_BAR, found=whole.ratio("JPEG", "synthetic").low),
            Bar(
                what="ResNet-18 to the reference, lower end",
                bar=REFERENCE_BAR,
                found=beside.ratio("ours", "reference").low,
            ),
        ],
        notes=[f"compiling and warming up took {warm_s:.0f} s, apart"]
        + (["tiny sizes on this machine: the figures mean nothing"] if options.tiny else []),
    )
