"""Small models as others export them: ONNX files of a torch network in the forms that are about."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 16
NUM_CLASSES = 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class TinyNetwork(nn.Module):
    """Float images to logits; `features` before the last layer are 8 numbers. Colour decides."""

    def __init__(self, *, softmax: bool = False, layout: str = "NCHW", uint8: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.classifier = nn.Linear(8, NUM_CLASSES)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.softmax, self.layout, self.uint8 = softmax, layout, uint8

    def forward(self, images: Tensor) -> Tensor:
        if self.uint8:
            images = images.float() / 255
        if self.layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        features = torch.relu(self.convolution(images)).mean((2, 3))
        logits: Tensor = self.classifier(features)
        return torch.softmax(logits, 1) if self.softmax else logits


class MeanColour(nn.Module):
    """The channel that is brightest on average is the class; `order` says which class a channel stands for."""

    def __init__(self, order: tuple[int, int, int] = (0, 1, 2)) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, NUM_CLASSES, bias=False)
        self.classifier.weight.data = 10 * torch.eye(3)[list(order)]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images.mean((2, 3)))
        return logits


def export(network: nn.Module, path: Path, *, dynamic: bool = True, opset: int = 17, side: int = SIDE) -> Path:
    """The file as torch's exporter writes it; the batch is 1 where it is not dynamic."""
    nhwc = getattr(network, "layout", "NCHW") == "NHWC"
    shape = (1, side, side, 3) if nhwc else (1, 3, side, side)
    example = torch.zeros(shape, dtype=torch.uint8 if getattr(network, "uint8", False) else torch.float32)
    axes: Mapping[str, Mapping[int, str]] = {"images": {0: "batch"}, "answers": {0: "batch"}} if dynamic else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (example,),
            str(path),
            input_names=["images"],
            output_names=["answers"],
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    return path


def pixels(num_images: int = 5, side: int = SIDE) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 [num_images, side, side, 3]"""
    return np.random.default_rng(0).integers(0, 256, (num_images, side, side, 3), dtype=np.uint8)
