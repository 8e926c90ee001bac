"""What every network has in common: pixels in, logits and an embedding out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipelines.training.pixel_rows import by_rows

# Mean and standard deviation of ImageNet's RGB in 0..255: what torchvision's weights were trained with.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)

_PIXELS_AT_ONCE = 2**20
"""Of the thousands of images that a data-dependent start sees: what is made of each pixel takes a hundred bytes."""


class Body(nn.Module):
    """A network without its head: normalized float [N, 3, H, W] to features [N, num_features]."""

    def __init__(self, layers: nn.Module, num_features: int) -> None:
        super().__init__()
        self.layers = layers
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features

    def initialize(self, images: Iterable[Tensor]) -> None:
        """Adapt the start to some training images, normalized [N, 3, H, W], a part after the other."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What an optimizer should know about a backbone."""

    scale_invariant: bool = False
    """A batch norm follows every convolution, so that only a filter bank's direction matters: Muon may normalize it."""
    summed_rates: tuple[float, float] | None = None
    """Under Muon, SGD's rates of biases and classifier for a loss summed over the batch, the classifier's outputs being
    divided by its inputs; None leaves them to AdamW and an ordinary classifier."""
    early: Mapping[str, float] = field(default_factory=dict)
    """Parameters whose rate falls to zero sooner, at this share of the training."""


class Network(nn.Module):
    """Normalization, a body, and a head: an embedding layer with a classifier, or a classifier on the features."""

    mean: Tensor
    scale: Tensor

    def __init__(self, body: Body, embedding_dim: int, num_classes: int, traits: Traits) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("scale", 1.0 / torch.tensor(_STD).view(1, 3, 1, 1))
        self.body = body
        self.head: nn.Module
        if embedding_dim:
            self.head = EmbeddingHead(body.num_features, embedding_dim, num_classes)
        else:
            self.head = FeatureHead(body.num_features, num_classes, scaled=traits.summed_rates is not None)
        self.scale_invariant = traits.scale_invariant
        self.summed_rates = None if embedding_dim else traits.summed_rates
        self.early = dict(traits.early)
        self.has_weights = False
        """Whether it starts from weights that were trained before."""
        named = dict(self.named_parameters())
        self._early = [(named[name], until) for name, until in traits.early.items()]

    def forward(self, pixels_NHWC: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """uint8 [N, H, W, 3] to logits [N, num classes] and embedding [N, D], the latter before any activation."""
        logits, embedding = self.head(self.body(self._normalized(pixels_NHWC)))
        return logits, embedding

    @property
    def adapts(self) -> bool:
        """Whether it is to be initialized: its start depends on data, and there are no weights that would be lost."""
        return not self.has_weights and type(self.body).initialize is not Body.initialize

    def initialize(self, pixels_NHWC: Tensor) -> None:  # noqa: N803
        """Data-dependent start, from some training pixels uint8 [N, H, W, 3]; the same pixels give the same weights."""
        images_at_once = max(1, _PIXELS_AT_ONCE // pixels_NHWC[0, ..., 0].numel())
        parts = torch.split(pixels_NHWC.to(self.mean.device), images_at_once)
        self.body.initialize(self._normalized(part) for part in parts)

    def set_progress(self, share: float) -> None:
        """Once their time is over, parameters in `early` stop asking for gradients, which shortens the way back."""
        for parameter, until in self._early:
            if parameter.requires_grad != (share < until):
                parameter.requires_grad_(share < until)

    def blocks(self) -> list[list[nn.Parameter]]:
        """Trainable parameters by depth, from the input to the head."""
        parts = [*_stages(self.body.layers), self.head]
        found = [[one for one in part.parameters() if one.requires_grad] for part in parts]
        return [block for block in found if block]

    def _normalized(self, pixels_NHWC: Tensor) -> Tensor:  # noqa: N803
        return by_rows(pixels_NHWC, lambda values, each: (values - each(self.mean)) * each(self.scale))


class EmbeddingHead(nn.Module):
    """Features to an embedding of a chosen width, and a classifier on it."""

    def __init__(self, num_features: int, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(num_features, embedding_dim, bias=False)
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.classifier = nn.Linear(embedding_dim, num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.norm(self.embedding(features))
        return self.classifier(torch.relu(embedding)), embedding


class FeatureHead(nn.Module):
    """A classifier on the features, which are the embedding.

    `scaled`: weights of size one and outputs divided by the width, so that rates that suit one width suit another.
    """

    def __init__(self, num_features: int, num_classes: int, *, scaled: bool) -> None:
        super().__init__()
        self.classifier = nn.Linear(num_features, num_classes, bias=not scaled)
        self.divisor = num_features if scaled else 1
        if scaled:
            with torch.no_grad():
                self.classifier.weight.div_(self.classifier.weight.std())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(features) / self.divisor, features


def _stages(layers: nn.Module) -> list[nn.Module]:
    """The children in order; torchvision's `features` are looked into."""
    stages: list[nn.Module] = []
    for name, child in layers.named_children():
        stages += list(child.children()) if name == "features" else [child]
    return stages
