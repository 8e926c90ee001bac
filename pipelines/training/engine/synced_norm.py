"""Batch norm over the parts of a batch in several processes.

torch's own does this on GPUs only. On CPUs a process's sums are exchanged here, so that two processes on CPUs train as
one would: with the statistics of the whole batch, forth and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedBatchNorm(nn.SyncBatchNorm):
    """Takes the place of a batch norm of any dimension, with its parameters and statistics."""

    alone = False
    """True takes the statistics of this process's part; the same on all processes."""

    def __init__(self, replaced: _BatchNorm) -> None:
        assert replaced.momentum is not None, "a mean over all batches is nobody's choice here"
        super().__init__(replaced.num_features, replaced.eps, replaced.momentum)
        self.weight, self.bias = replaced.weight, replaced.bias
        self.running_mean, self.running_var = replaced.running_mean, replaced.running_var
        self.num_batches_tracked = replaced.num_batches_tracked
        self.train(replaced.training)

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or self.alone:
            return self._by_itself(features)
        if features.is_cuda:
            normalized: Tensor = super().forward(features)
            return normalized
        return self._together(features)

    def _by_itself(self, features: Tensor) -> Tensor:
        if self.training:
            cast(Tensor, self.num_batches_tracked).add_(1)
        return nn.functional.batch_norm(
            features,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            cast(float, self.momentum),
            self.eps,
        )

    def _together(self, features: Tensor) -> Tensor:
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


def synchronize(network: nn.Module) -> None:
    """Replace every batch norm below `network`, in place; weights, statistics and their names stay."""
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            setattr(network, name, SyncedBatchNorm(child))
        else:
            synchronize(child)


@contextmanager
def each_alone() -> Iterator[None]:
    """Within, no process waits for another in a batch norm."""
    SyncedBatchNorm.alone = True
    try:
        yield
    finally:
        SyncedBatchNorm.alone = False
