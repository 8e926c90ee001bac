"""Networks by name: a new backbone is one function and one line here (and its name in recipe.Model.backbone)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pipelines.core.recipe import Model
from pipelines.training.networks import airbench, small
from pipelines.training.networks.from_torchvision import RESNET_TRAITS, from_torchvision
from pipelines.training.networks.network import Body, Network, Traits
from pipelines.training.networks.weights import load_weights

BACKBONES: Mapping[str, tuple[Callable[[Model], Body], Traits]] = {
    "small": (small.small, small.TRAITS),
    "airbench": (airbench.airbench, airbench.TRAITS),
    "resnet18": (from_torchvision, RESNET_TRAITS),
    "resnet50": (from_torchvision, RESNET_TRAITS),
    "mobilenet_v2": (from_torchvision, Traits()),
    "mobilenet_v3_large": (from_torchvision, Traits()),
    "efficientnet_b0": (from_torchvision, Traits()),
    "convnext_tiny": (from_torchvision, Traits()),
}


def build(model: Model, num_classes: int) -> Network:
    """A network on the CPU, in channels_last. Raises UserError for a weights file that does not fit."""
    make_body, traits = BACKBONES[model.backbone]
    network = Network(make_body(model), model.embedding_dim, num_classes, traits)
    if model.weights:
        load_weights(network, model)
    return network.to(memory_format=torch.channels_last)


__all__ = ["BACKBONES", "Network", "build"]
