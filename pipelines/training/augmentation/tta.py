"""Test-time augmentation: a network's answer averaged over views of the image, as one graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_PAIR_WEIGHTS = {"none": (), "mirror": (1.0,), "mirror_shift": (0.5, 0.25, 0.25)}
"""Of the image and its mirror image; of the two moved up and left; of the two moved down and right."""


class Views(nn.Module):
    """A network asked for several views at once, in one batch, so that an exported graph holds it once.

    'mirror' averages the logits of the image and its mirror image. 'mirror_shift' weights these two by half and, by a
    quarter each, the pair moved by one pixel up and left and the pair moved down and right, the border reflected. Views
    and weights are those of KellerJordan/cifar10-airbench (MIT licence).
    """

    def __init__(self, network: nn.Module, tta: str) -> None:
        super().__init__()
        self.network = network
        self.pair_weights = _PAIR_WEIGHTS[tta]
        self.num_views = 2 * len(self.pair_weights) or 1

    def forward(self, pixels_NHWC: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """uint8 [N, H, W, 3] to logits [N, C], averaged, and the embedding [N, D] of the image as it is."""
        if not self.pair_weights:
            plain: tuple[Tensor, Tensor] = self.network(pixels_NHWC)
            return plain
        num_pairs = len(self.pair_weights)
        images = [pixels_NHWC]
        if num_pairs > 1:
            images += [_moved(pixels_NHWC, up_left=True), _moved(pixels_NHWC, up_left=False)]
        views = torch.cat([view for image in images for view in (image, image.flip(2))])
        logits, embedding = self.network(views)
        pairs = logits.reshape(num_pairs, 2, -1, logits.shape[1]).mean(dim=1)
        weighted = [weight * pairs[index] for index, weight in enumerate(self.pair_weights)]
        return torch.stack(weighted).sum(dim=0), embedding[: pixels_NHWC.shape[0]]


def _moved(pixels: Tensor, *, up_left: bool) -> Tensor:
    """uint8 [N, H, W, 3] moved by one pixel along both sides; the row and column that come in are reflected ones."""
    if up_left:
        pixels = torch.cat([pixels[:, 1:], pixels[:, -2:-1]], dim=1)
        return torch.cat([pixels[:, :, 1:], pixels[:, :, -2:-1]], dim=2)
    pixels = torch.cat([pixels[:, 1:2], pixels[:, :-1]], dim=1)
    return torch.cat([pixels[:, :, 1:2], pixels[:, :, :-1]], dim=2)
