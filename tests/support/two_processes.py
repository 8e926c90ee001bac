"""Run under torchrun: the training command, several times in the processes of one launch, which takes seconds.

    torchrun --nproc-per-node 2 two_processes.py FOLDER NAME…

For each name, FOLDER/NAME.toml is trained on FOLDER/data, or FOLDER/files where it streams, into FOLDER/NAME. In
'narrow' the second process has memory for five images at once; in 'plain' and 'whole' the network has no batch norm, so
that micro-batches add up to the batch; under 'muon' products are float32, bfloat16 having too few digits to compare by.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from striped_images import CLASS_NAMES, striped
from torch import Tensor, nn

from pipelines.training import networks
from pipelines.training.__main__ import main
from pipelines.training.engine import distribution
from pipelines.training.networks.network import Body, Traits
from pipelines.training.optimization import muon

_build = networks.build


class _Narrow(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        if self.training and len(features) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return features


def _narrow(*asked: Any) -> networks.Network:
    network = _build(*asked)
    if os.environ["RANK"] == "1":
        network.body.layers.append(_Narrow())  # type: ignore[operator]
    return network


def plain(*_: Any) -> networks.Network:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return networks.Network(Body(layers, 128), 0, 2, Traits()).to(memory_format=torch.channels_last)


_BUILDERS = {"narrow": _narrow, "plain": plain, "whole": plain}


@contextlib.contextmanager
def special(name: str) -> Iterator[None]:
    """Within, everything is as the training of this name wants it."""
    fast_format = muon._fast_format
    networks.build = _BUILDERS.get(name, _build)
    if name.startswith("muon"):
        muon._fast_format = lambda _: torch.float32
    try:
        yield
    finally:
        networks.build, muon._fast_format = _build, fast_format


def arguments(folder: Path, name: str) -> list[str]:
    """Of the training command."""
    data = folder / ("files" if name.startswith("streamed") else "data")
    given = ["--recipe", folder / f"{name}.toml", "--data", data, "--out", folder / name]
    return [str(one) for one in given]


def written_as_files(folder: Path, num_images: int) -> None:
    """A folder of two class folders with so many pictures each."""
    for label in (0, 1):
        (folder / CLASS_NAMES[label]).mkdir(parents=True)
        for number in range(num_images):
            (folder / CLASS_NAMES[label] / f"{number}.png").write_bytes(striped(label, 2 * number + label))


def _run(folder: Path, names: list[str]) -> int:
    with distribution.joined() as world:
        # torchrun's processes can join once only.
        distribution.joined = lambda: contextlib.nullcontext(world)
        return _train(folder, names)


def _train(folder: Path, names: list[str]) -> int:
    for name in names:
        with special(name):
            code = main([*arguments(folder, name), "--checkpoint-every", "0"])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(_run(Path(sys.argv[1]), sys.argv[2:]))
