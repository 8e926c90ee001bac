"""A trained network as an ONNX file that takes uint8 pixels and answers with logits, probabilities and embedding."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.core.pixelset import DecodedImages, Pixels
from pipelines.core.preprocessing import PreprocessingSpec
from pipelines.core.recipe import Recipe
from pipelines.training import devices, heads, networks
from pipelines.training.augmentation.tta import Views
from pipelines.training.engine.prediction import predict

OPSET = 18
_INPUTS = ["pixels_NHWC"]
_OUTPUTS = ["logits", "probabilities", "embedding"]


class _Exported(nn.Module):
    """The network with its temperature."""

    temperature: Tensor

    def __init__(self, network: nn.Module, temperature: float, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, pixels_NHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: N803
        logits, embedding = self.network(pixels_NHWC)
        logits = logits.reshape(-1, self.num_classes)  # a number in the graph, whatever views were averaged
        return logits, torch.softmax(logits / self.temperature, dim=1), embedding


def load_network(weights: Path, recipe: Recipe, num_classes: int) -> nn.Module:
    """The network that `trainer.train` wrote, with the recipe's test-time views, on the CPU, in evaluation mode."""
    network: nn.Module
    if recipe.training.mode == "head":
        network = heads.load(weights, recipe.features.embedding)
    else:
        network = networks.build(dataclasses.replace(recipe.model, weights=""), num_classes)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return Views(network, recipe.evaluation.tta).eval()


def reference_logits(
    network: nn.Module,
    pixels_NHWC: DecodedImages | Pixels,  # noqa: N803
    threads: int,
) -> NDArray[np.float32]:
    """Logits [N, num classes] of the network itself, in float32 on the CPU: what the exported graph has to match."""
    torch.set_num_threads(threads)
    return predict(network, pixels_NHWC, devices.Compute(device=torch.device("cpu")))


def export_onnx(network: nn.Module, temperature: float, spec: PreprocessingSpec, path: Path) -> int:
    """Write the graph, one file with all data inside and any batch size, and return its opset.

    By the tracing exporter: on these networks it gives the same answers as the newer one in 0.1 s instead of 4 s, the
    same bytes every time, no paths of this machine in the file, and needs no further library.
    """
    example = torch.zeros((2, spec.height, spec.width, 3), dtype=torch.uint8)
    with torch.inference_mode():
        num_classes = network(example)[0].shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Exported(network, temperature, num_classes).eval(),
            (example,),
            str(path),
            input_names=_INPUTS,
            output_names=_OUTPUTS,
            dynamic_axes={name: {0: "N"} for name in (*_INPUTS, *_OUTPUTS)},
            opset_version=OPSET,
            dynamo=False,
        )
    return OPSET
