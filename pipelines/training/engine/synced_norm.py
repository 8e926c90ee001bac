"""Batch norm over the parts of a batch in several processes: torch's on GPUs, ours on CPUs, where torch has none.

The same batch in two processes then trains as in one: with the statistics of the whole, forth and back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize(network: nn.Module, device: torch.device) -> None:
    """Replace every batch norm below `network`, in place; weights, statistics and their names stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            setattr(network, name, SyncedBatchNorm(child))
        else:
            synchronize(child, device)


@contextmanager
def each_alone(network: nn.Module) -> Iterator[None]:
    """Within, no process waits for another in a batch norm; to be entered by all of them."""
    ours = [module for module in network.modules() if isinstance(module, SyncedBatchNorm)]
    torchs = [module for module in network.modules() if isinstance(module, nn.SyncBatchNorm)]
    groups = [module.process_group for module in torchs]
    for one in ours:
        one.alone = True
    for other in torchs:
        other.process_group = _alone()
    try:
        yield
    finally:
        for one in ours:
            one.alone = False
        for other, group in zip(torchs, groups, strict=True):
            other.process_group = group


@functools.cache
def _alone() -> dist.ProcessGroup:
    """A group of this process only."""
    group, _ = dist.new_subgroups(1)
    return group


class SyncedBatchNorm(_BatchNorm):
    """Takes the place of a batch norm of any dimension, with its parameters and statistics."""

    def __init__(self, replaced: _BatchNorm) -> None:
        assert replaced.momentum is not None, "a mean over all batches is nobody's choice here"
        super().__init__(replaced.num_features, replaced.eps, replaced.momentum)
        self.weight, self.bias = replaced.weight, replaced.bias
        self.running_mean, self.running_var = replaced.running_mean, replaced.running_var
        self.num_batches_tracked = replaced.num_batches_tracked
        self.alone = False
        self.train(replaced.training)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Any number of dimensions."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or self.alone:
            return super().forward(features)
        axes = [axis for axis in range(features.dim()) if axis != 1]
        shape = [1, -1] + [1] * (features.dim() - 2)
        values = features.float()
        count = torch.tensor([values.numel() / values.shape[1]])
        sums: Tensor = _Total.apply(torch.cat([values.sum(axes), count]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = values - mean.view(shape)
        variance: Tensor = _Total.apply(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        normalized = centred * (variance + self.eps).rsqrt().view(shape)
        scaled: Tensor = normalized * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(features.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        cast(Tensor, self.num_batches_tracked).add_(1)
        cast(Tensor, self.running_mean).lerp_(mean, cast(float, self.momentum))
        cast(Tensor, self.running_var).lerp_(variance, cast(float, self.momentum))


class _Total(torch.autograd.Function):
    """Sum over processes; each one's loss depends on the sum, so the gradients add up the same way."""

    @staticmethod
    def forward(ctx: object, numbers: Tensor) -> Tensor:  # noqa: ARG004
        total = numbers.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.clone()
        dist.all_reduce(total)
        return total
