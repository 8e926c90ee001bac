"""Run under torchrun: the training command, several times in the processes of one launch, which takes seconds.

    torchrun --nproc-per-node 2 two_processes.py FOLDER NAME…

For each name, FOLDER/NAME.toml is trained on FOLDER/data into FOLDER/NAME. In 'narrow' the second process has memory
for five images at once; in 'plain' the network has no batch norm, so that micro-batches add up to the batch.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training import networks
from pipelines.training.__main__ import main
from pipelines.training.engine import distribution
from pipelines.training.networks.network import Body, Traits

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


_BUILDERS = {"narrow": _narrow, "plain": plain}


def _run(folder: Path, names: list[str]) -> int:
    with distribution.joined() as world:
        # torchrun's processes can join once only.
        distribution.joined = lambda: contextlib.nullcontext(world)
        return _train(folder, names)


def _train(folder: Path, names: list[str]) -> int:
    for name in names:
        networks.build = _BUILDERS.get(name, _build)
        arguments = ["--recipe", folder / f"{name}.toml", "--data", folder / "data", "--out", folder / name]
        arguments += ["--checkpoint-every", "0"]
        code = main([str(argument) for argument in arguments])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(_run(Path(sys.argv[1]), sys.argv[2:]))
