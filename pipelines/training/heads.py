"""training.mode = 'head': a linear head on stored embeddings, as one convex problem.

The decay is chosen on the validation split, and what standardized the embeddings is folded into the head. A killed
training starts over: it takes seconds.

Of the recipe's `training` section only weight_decay, label_smoothing, class_balance, device, deterministic and threads
mean something here; there is nothing to augment, neither in training nor in evaluation, which `core.recipe` refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.core.embedded import Embedded
from pipelines.core.embedding import view_name
from pipelines.core.errors import IntegrityError, SourceError
from pipelines.core.pixelset import PixelSet, Split
from pipelines.core.recipe import Recipe
from pipelines.training import embedders
from pipelines.training.devices import Compute
from pipelines.training.logistic import Problem, Solution, search
from pipelines.training.observers import Observer

_CHECKED_ROWS = 64
_MAX_DIFFERENCE = 1e-3
"""Between an embedding as stored and as computed here; sums in another order differ by 1e-6."""


class HeadNetwork(nn.Module):
    """An embedder and a linear classifier on its rows."""

    def __init__(self, embedder: nn.Module, dim: int, num_classes: int) -> None:
        super().__init__()
        self.embedder = embedder
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, pixels_NHWC: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """uint8 [N, H, W, 3] to logits [N, num classes] and embedding [N, D] of unit length."""
        embedding = self.embedder(pixels_NHWC)
        return self.classifier(embedding), embedding


def load(weights: Path, embedding: str) -> HeadNetwork:
    """The network that `train` wrote, on the CPU, in evaluation mode. The embedding's own weights are in the file."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    num_classes, dim = state["classifier.weight"].shape
    network = HeadNetwork(embedders.build(embedding, weights=False), dim, num_classes)
    network.load_state_dict(state)
    return network.eval()


def train(
    data: PixelSet, recipe: Recipe, compute: Compute, weights: Path, observers: Sequence[Observer]
) -> list[Solution]:
    """Write the whole network's state dict to `weights`; returns what was tried, the best of which is kept.

    Raises SourceError where the pixel set has no embeddings or those of another recipe, IntegrityError where they are
    not what the embedder computes.
    """
    embedded = _embedded(data, recipe)
    embedder = embedders.build(recipe.features.embedding)
    _check_stored(embedder, data.splits.get("val"), embedded)
    num_classes = len(data.class_names)
    problem = Problem(embedded.splits["train"], recipe.training, num_classes, compute.device)
    val = embedded.splits.get("val")
    history, head = search(problem, val if val is not None and len(val) else None, recipe.training, observers)
    network = HeadNetwork(embedder, problem.dim, num_classes)
    with torch.no_grad():
        network.classifier.weight.copy_(head.weight)
        network.classifier.bias.copy_(head.bias)
    torch.save(network.state_dict(), weights)
    for observer in observers:
        observer.on_finish(history)
    return history


def _embedded(data: PixelSet, recipe: Recipe) -> Embedded:
    found, view = data.embedded, view_name(recipe.features.embedding)
    if found is None or not len(found.splits["train"]):
        raise SourceError(
            "training.mode = 'head': the data hold no stored embeddings; take the folder that step `prepare` wrote "
            "for a recipe with this mode"
        )
    if found.view != view:
        raise SourceError(
            f"training.mode = 'head': the data hold embeddings of {found.view}, features.embedding is {view}"
        )
    return found


def _check_stored(embedder: nn.Module, val: Split | None, embedded: Embedded) -> None:
    """Compute some validation images' embeddings: what serves must be what was learned on."""
    if val is None or not len(val):
        return
    rows = np.unique(np.linspace(0, len(val) - 1, _CHECKED_ROWS).astype(np.int64))
    with torch.inference_mode():
        found = embedder(torch.from_numpy(val.pixels.rows(rows))).numpy()
    stored = embedded.splits["val"].embeddings[rows]
    difference = float(np.abs(found - stored).max()) if found.shape == stored.shape else float("inf")
    if not difference <= _MAX_DIFFERENCE:
        raise IntegrityError(
            f"feature store: embeddings in {embedded.view} are up to {difference:.2g} from what features.embedding "
            "computes here; ingest their intervals again"
        )
