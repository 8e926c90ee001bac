"""torchvision's networks without their last layer."""

from __future__ import annotations

from torch import nn

from pipelines.core.recipe import Model
from pipelines.training.networks.network import Body, Traits

# Every convolution of a ResNet is followed by a batch norm; those of squeeze-and-excitation blocks are not.
RESNET_TRAITS = Traits(scale_invariant=True)


def from_torchvision(model: Model) -> Body:
    """The backbone as torchvision builds it, without dropout before the head."""
    import torchvision  # half a second that the small nets need not pay for

    body: nn.Module = torchvision.models.get_model(model.backbone, weights=None)
    head_name = "fc" if hasattr(body, "fc") else "classifier"
    head: nn.Module = getattr(body, head_name)
    layers = list(head.children()) or [head]
    first = next(position for position, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    # ConvNeXt normalizes and flattens inside its head; the rest of what precedes a linear layer is dropout.
    kept = [layer for layer in layers[:first] if not isinstance(layer, nn.Dropout)]
    setattr(body, head_name, nn.Sequential(*kept) if kept else nn.Identity())
    last = layers[first]
    assert isinstance(last, nn.Linear)
    return Body(body, last.in_features)
