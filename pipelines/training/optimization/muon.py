"""Muon: momentum whose every update is made orthogonal.

From KellerJordan/Muon and KellerJordan/cifar10-airbench (MIT); https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.training.devices import is_fast_at_bf16

# The quintic whose slope at zero is steepest: singular values end between about 0.7 and 1.2 instead of at 1, in fewer
# steps, which trains as well.
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_TINY = 1e-12


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized. For matrices, and filter banks seen as [outputs, inputs * height * width].

    `normalize` is for filters whose scale a batch norm takes away: before each update a bank of n filters is scaled to
    norm sqrt(n), so that the rate alone sets how far it turns (airbench). Otherwise weights decay, decoupled from the
    gradient, and tall matrices take longer steps, so that the change of the outputs does not depend on the shape.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        normalize: bool = False,
        iterations: int = 5,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "normalize": normalize,
            "iterations": iterations,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group, [one for one in group["params"] if one.grad is not None])
        return loss

    def _update(self, group: Mapping[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        rate, momentum = group["lr"], group["momentum"]
        gradients = [one.grad for one in parameters if one.grad is not None]
        buffers = [self._momentum_buffer(one) for one in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        ahead = torch._foreach_add(gradients, buffers, alpha=momentum)
        if group["normalize"]:
            _normalize(parameters)
        elif group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        updates = orthogonalized([one.flatten(1) for one in ahead], group["iterations"])
        for parameter, update in zip(parameters, updates, strict=True):
            rows, columns = update.shape
            stretch = 1.0 if group["normalize"] else math.sqrt(max(1.0, rows / columns))
            parameter.add_(update.view(parameter.shape), alpha=-rate * stretch)

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def orthogonalized(matrices: Sequence[Tensor], iterations: int) -> list[Tensor]:
    """U V^T of each [R, C] = U S V^T, nearly: by Newton-Schulz, in the device's fast format.

    Matrices of one shape are worked on together on a GPU, where launches cost; not on a CPU, where a batched product is
    no faster, in bfloat16 half as fast.
    """
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        alike[matrix.shape if matrix.is_cuda else (place,)].append(place)
    results: dict[int, Tensor] = {}
    for places in alike.values():
        stacked = torch.stack([matrices[place] for place in places])
        results.update(zip(places, _newton_schulz(stacked, iterations), strict=True))
    return [results[place] for place in range(len(matrices))]


def _newton_schulz(matrices: Tensor, iterations: int) -> Tensor:
    """[N, R, C] to the same shape, in the device's fast format."""
    # The largest singular value must not exceed 1; the Frobenius norm is no smaller.
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    values = (matrices / norms.clamp_min(_TINY)).to(_fast_format(matrices.device))
    is_tall = values.shape[1] > values.shape[2]
    if is_tall:
        values = values.mT.contiguous()  # the products below are then of the smaller side
    for _ in range(iterations):
        squares = values @ values.mT
        polynomial = torch.baddbmm(squares, squares, squares, beta=_CUBIC, alpha=_QUINTIC)
        values = torch.baddbmm(values, polynomial, values, beta=_LINEAR)
    result: Tensor = values.mT.contiguous() if is_tall else values
    return result


def _normalize(parameters: list[Tensor]) -> None:
    norms = torch._foreach_norm(parameters)
    for parameter, norm in zip(parameters, norms, strict=True):
        parameter.mul_(math.sqrt(len(parameter)) / norm.clamp_min(_TINY))


@functools.cache
def _fast_format(device: torch.device) -> torch.dtype:
    """bfloat16 where there are instructions for it: three digits are enough here."""
    return torch.bfloat16 if is_fast_at_bf16(device) else torch.float32
