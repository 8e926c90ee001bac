"""torch.compile for the training's forward and backward pass."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from pipelines.core.recipe import Recipe
from pipelines.training.devices import should_compile


def compiled(network: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The network as the recipe wants it run; parameters and their names stay those of `network`.

    Batches differ by one image at most, which makes two graphs of fixed sizes, the fastest kind. Where images grow, one
    graph for all sizes keeps the number of compilations down.
    """
    if not should_compile(recipe.training.compile, device):
        return network
    # A graph that does not compile is run as it is: 'auto' must not end a training that would do without.
    torch._dynamo.config.suppress_errors = recipe.training.compile == "auto"
    dynamic = None if recipe.augmentation.start_size < 1 else False
    return cast(nn.Module, torch.compile(network, dynamic=dynamic))


def compiled_for_any_size(network: nn.Module) -> nn.Module:
    """For batches whose size keeps falling, as it does where memory runs out."""
    return cast(nn.Module, torch.compile(network, dynamic=True))
