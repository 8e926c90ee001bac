"""Section `step-rate`: our step against the default torch loop, ResNet-18 on the CPU: images/s, and the same losses.

Both take the same batches of the same images. The default loop gets them as normalized floats in NCHW, which its loader
would have made elsewhere; ours gets uint8 in NHWC and normalizes within its step, so that the comparison leans to its
side. It is timed in a process of its own, as torch comes. Optimizer (AdamW), rates and decay are the same; losses are
compared from the same first weights, in the same order, and must lie as near as two runs of the default loop in
different orders do.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import reference
from bench.apart import apart
from bench.harness import Contender, Interval, Rounds, interleave, progress
from bench.ours import OurLoop
from bench.photographs import find_or_make
from bench.pixel_sets import convert, recipe_for
from bench.report import Bar, Report, Table
from pipelines.core.cores import num_cores
from pipelines.core.recipe import Recipe, from_dict, override, to_dict
from pipelines.training.batch import Batch

BAR = 2.0
_SMOOTH = 10
"""Steps over which losses are averaged before they are compared."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Losses of each step, in the same order and in another."""

    ours: list[float]
    default: list[float]
    other_order: list[float]


def run(options: argparse.Namespace) -> Report:
    """Raises SourceError where DATA is given and has no images."""
    recipe = override(_recipe(options), options.set)
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as place:
        work = Path(place)
        size = max(160, 2 * options.side)
        found = find_or_make(options.data, work, count=400, side=size).limited(options.limit)
        split = convert(found, recipe, work / "shards").split
        num_classes = len(found.class_names)
        batches = _batches(split, recipe, num_classes, options.steps)
        rounds = _rates(split, recipe, num_classes, batches[: options.timed_steps or 10], options, work)
        curves = _curves(split, recipe, num_classes, batches)
    return _report(options, recipe, rounds, curves)


def _recipe(options: argparse.Namespace) -> Recipe:
    # embedding_dim 0: the very network of torchvision, a linear layer after the pooled features.
    return override(
        recipe_for(options.side),
        {
            "model.embedding_dim": 0,
            "training.batch_size": options.batch,
            "training.optimizer": "adamw",
            "training.learning_rate": 0.001,
            "training.weight_decay": 0.01,
            "training.label_smoothing": 0.0,
            "training.epochs": 1000,  # rates stay near the peak after the warm-up
            "training.warmup_share": 0.0,
            "training.threads": num_cores(),
            "training.device": "cpu",
        },
    )


def _batches(split: Any, recipe: Recipe, num_classes: int, count: int) -> list[Batch]:
    """The first batches that our loader gives, kept in memory."""
    loop = OurLoop(split, recipe, num_classes)
    found: list[Batch] = []
    for batch in loop.batches():
        found.append(batch)
        if len(found) == count:
            break
    loop.close()
    return found


def _default_from(ours: OurLoop, recipe: Recipe, num_classes: int) -> reference.DefaultLoop:
    """The default loop, from the weights of our network."""
    network = reference.resnet(recipe.model.backbone, num_classes)
    copy_weights(ours.network, network)
    return _default_loop(network, recipe)


def _default_loop(network: nn.Module, recipe: Recipe) -> reference.DefaultLoop:
    training = recipe.training
    decaying = [one for one in network.parameters() if one.ndim > 1]
    others = [one for one in network.parameters() if one.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    return reference.DefaultLoop(network.train(), optimizer, torch.device("cpu"))


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Our ResNet's weights into torchvision's, which has the same layers under other names, in plain NCHW."""
    names = {"fc.weight": "head.classifier.weight", "fc.bias": "head.classifier.bias"}
    state = ours.state_dict()
    found = {name: state[names.get(name, f"body.layers.{name}")].contiguous() for name in theirs.state_dict()}
    theirs.load_state_dict(copy.deepcopy(found))


def _rates(
    split: Any,
    recipe: Recipe,
    num_classes: int,
    batches: Sequence[Batch],
    options: argparse.Namespace,
    work: Path,
) -> Rounds:
    torch.manual_seed(0)
    ours = OurLoop(split, recipe, num_classes)
    bare = reference.resnet(recipe.model.backbone, num_classes).train()
    floats = [(reference.normalized(batch.pixels), batch.labels) for batch in batches]
    torch.save(floats, work / "batches.pt")
    count = sum(len(batch) for batch in batches)
    control = timed(len(floats[0][1]), lambda: bare(floats[0][0]).sum().backward())
    with apart(default_contender, str(work / "batches.pt"), to_dict(recipe), num_classes) as default:
        contenders = {
            "ours": timed(count, lambda: [float(ours.step(batch)) for batch in batches]),
            "default": default,
        }
        for warm in contenders.values():
            warm()
        rounds = interleave(contenders, control, rounds=options.rounds, strict=options.strict)
    ours.close()
    return rounds


def default_contender(batches_file: str, recipe: Mapping[str, Any], num_classes: int) -> Contender:
    """The default loop with the same threads, in a process that our engine has not set up."""
    parsed = from_dict(dict(recipe))
    torch.set_num_threads(parsed.training.threads)
    loop = _default_loop(reference.resnet(parsed.model.backbone, num_classes), parsed)
    batches = torch.load(batches_file, weights_only=True)
    count = sum(len(labels) for _, labels in batches)
    return timed(count, lambda: [float(loop.step(*batch)) for batch in batches])


def timed(count: int, work: Callable[[], object]) -> Contender:
    """Images/s of `work`, which takes `count` of them."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return count / (time.perf_counter() - began)

    return run


def _curves(split: Any, recipe: Recipe, num_classes: int, batches: Sequence[Batch]) -> Curves:
    torch.manual_seed(0)
    ours = OurLoop(split, recipe, num_classes)
    default, shuffled = _default_from(ours, recipe, num_classes), _default_from(ours, recipe, num_classes)
    other = np.random.default_rng(1).permutation(len(batches))
    losses = Curves(ours=[], default=[], other_order=[])
    for number, batch in enumerate(batches):
        losses.ours.append(float(ours.step(batch)))
        losses.default.append(float(default.step(reference.normalized(batch.pixels), batch.labels)))
        elsewhere = batches[int(other[number])]
        losses.other_order.append(float(shuffled.step(reference.normalized(elsewhere.pixels), elsewhere.labels)))
        progress(f"step {number + 1}: ours {losses.ours[-1]:.4f}, default {losses.default[-1]:.4f}")
    ours.close()
    return losses


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean |difference| of two smoothed curves."""
    window = np.ones(min(_SMOOTH, len(one))) / min(_SMOOTH, len(one))
    smooth = [np.convolve(curve, window, mode="valid") for curve in (one, other)]
    return float(np.abs(smooth[0] - smooth[1]).mean())


def _report(options: argparse.Namespace, recipe: Recipe, rounds: Rounds, curves: Curves) -> Report:
    ratio: Interval = rounds.ratio("ours", "default")
    apart, noise = _apart(curves.ours, curves.default), _apart(curves.other_order, curves.default)
    rows = [[name, rounds.rate(name).text(digits=1), rounds.ratio(name, "default").text()] for name in rounds.rates]
    title = f"{recipe.model.backbone}, {options.side} px, batches of {options.batch}, {num_cores()} threads"
    marks = sorted({0, len(curves.ours) // 4, len(curves.ours) // 2, len(curves.ours) - 1})
    losses = [[str(mark + 1), f"{curves.ours[mark]:.4f}", f"{curves.default[mark]:.4f}"] for mark in marks]
    return Report(
        figures={
            "side": options.side,
            "batch": options.batch,
            **rounds.as_json(),
            "ratio": ratio.as_json(),
            "losses": {"ours": curves.ours, "default": curves.default, "default, other order": curves.other_order},
            "loss_difference": apart,
            "loss_noise": noise,
            "recipe": to_dict(recipe),
        },
        tables=[
            Table(title=title, columns=["", "images/s", "to the default loop"], rows=rows),
            Table(
                title="losses from the same start in the same order", columns=["step", "ours", "default"], rows=losses
            ),
        ],
        bars=[
            Bar(what="ours to the default loop, lower end", bar=BAR, found=ratio.low),
            Bar(what="mean difference of the losses, against that of two orders", bar=noise, found=apart, at_most=True),
        ],
        notes=[f"{len(rounds.dropped)} disturbed rounds dropped"],
    )
