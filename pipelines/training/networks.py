"""Networks by name. Each takes uint8 pixels and ends in an embedding layer and a classifier."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.core.errors import UserError
from pipelines.core.recipe import Model

# Mean and standard deviation of ImageNet's RGB in 0..255: what torchvision's weights were trained with.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


class Network(nn.Module):
    """Normalization, a body, an embedding and a linear classifier."""

    mean: Tensor
    scale: Tensor

    def __init__(self, body: nn.Module, num_features: int, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("scale", 1.0 / torch.tensor(_STD).view(1, 3, 1, 1))
        self.body = body
        self.embedding = nn.Linear(num_features, embedding_dim, bias=False)
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.classifier = nn.Linear(embedding_dim, num_classes)

    def forward(self, pixels_NHWC: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """uint8 [N, H, W, 3] → logits [N, num classes] and embedding [N, embedding_dim], both before any activation."""
        # Moving axes, not bytes: NHWC memory seen as NCHW is torch's channels_last.
        pixels = pixels_NHWC.permute(0, 3, 1, 2).float()
        features = self.body((pixels - self.mean) * self.scale)
        embedding = self.norm(self.embedding(features))
        logits: Tensor = self.classifier(torch.relu(embedding))
        return logits, embedding


def build(model: Model, num_classes: int) -> Network:
    """A network on the CPU, in channels_last. Raises UserError for a weights file that does not fit."""
    body, num_features = _small() if model.backbone == "small" else _torchvision(model.backbone)
    network = Network(body, num_features, model.embedding_dim, num_classes)
    if model.weights:
        _load_weights(network, Path(model.weights), model.backbone)
    return network.to(memory_format=torch.channels_last)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = _convolution(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = features + self.convolution(features)
        return added


def _convolution(num_in: int, num_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, kernel, stride=stride, padding=1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()
    )


def _small(widths: tuple[int, ...] = (32, 64, 128)) -> tuple[nn.Module, int]:
    """For images up to 64 px: three halvings with a residual convolution after each, then the mean over the image.

    The first halving comes at once: at full resolution a convolution costs four times as much, and at 32 px it took
    three quarters of the time.
    """
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise((3, *widths)):
        layers += [_convolution(num_in, num_out, kernel=4, stride=2), _Residual(num_out)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1]


def _torchvision(name: str) -> tuple[nn.Module, int]:
    """torchvision's network without its last layer, and the number of features that reach it."""
    import torchvision  # half a second that the small net need not pay for

    body: nn.Module = torchvision.models.get_model(name, weights=None)
    head_name = "fc" if hasattr(body, "fc") else "classifier"
    head: nn.Module = getattr(body, head_name)
    layers = list(head.children()) or [head]
    first = next(position for position, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    # ConvNeXt normalizes and flattens inside its head; the rest of what precedes a linear layer is dropout.
    kept = [layer for layer in layers[:first] if not isinstance(layer, nn.Dropout)]
    setattr(body, head_name, nn.Sequential(*kept) if kept else nn.Identity())
    last = layers[first]
    assert isinstance(last, nn.Linear)
    return body, last.in_features


def _load_weights(network: Network, path: Path, backbone: str) -> None:
    """Start from a state dict of torchvision's network or of one of ours; what belongs to another head is left out."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"model.weights = {str(path)!r}: not a readable state dict ({error})") from error
    target: nn.Module = network if any(key.startswith("body.") for key in state) else network.body
    own = target.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and (target is network.body or key.startswith("body."))]
    if missing:
        raise UserError(f"model.weights = {str(path)!r}: not of {backbone}, it lacks {missing[0]}")
    target.load_state_dict(fitting, strict=False)
