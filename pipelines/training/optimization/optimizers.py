"""Which optimizer moves which parameter, how fast, and which decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.core.recipe import Training
from pipelines.training.networks import Network
from pipelines.training.optimization import schedules
from pipelines.training.optimization.muon import Muon

_FINETUNE = 0.1
"""Pretrained weights need a tenth of the rate, whichever the optimizer."""
_ADAMW_RATE = 0.003
_ADAMW_DECAY = 0.02
_SGD_RATE = 0.1 / 256
"""An image of the batch: https://arxiv.org/abs/1706.02677"""
_SGD_DECAY = 5e-4
_SGD_MOMENTUM = 0.9
_MUON_DECAY = 0.01
_SUMMED_MOMENTUM = 0.85
_SUMMED_DECAY = 2e-6
"""Shrinkage of biases and classifier a step and an image, at full rate; with the momentum it is airbench's."""

_STATE_TENSORS: Mapping[type, int] = {torch.optim.AdamW: 2, Muon: 1}
"""Of a parameter's size, made in the first step; SGD's are there before."""

_Group = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _MuonDefaults:
    rate: float
    momentum: float
    iterations: int


_MUON = _MuonDefaults(rate=0.02, momentum=0.95, iterations=5)
_AIRBENCH = _MuonDefaults(rate=0.24, momentum=0.6, iterations=3)


class Optimizers:
    """One or more torch optimizers seen as one; each group's rate is its "peak" times the schedule.

    A group with a share "until" falls linearly to zero at that share of the training instead.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer], peak: float, training: Training) -> None:
        self.members = tuple(members)
        self.peak = peak
        self.rate = 0.0
        """The recipe's learning rate at this point of the schedule; lower blocks and helpers have their own."""
        self._training = training

    def set_progress(self, step: int, num_steps: int) -> None:
        """Set the rates of a step, counted from 0 over the whole training."""
        factor = schedules.factor(step, num_steps, self._training)
        self.rate = self.peak * factor
        for group in self._groups():
            until = group["until"]
            group["lr"] = group["peak"] * (max(0.0, 1 - step / num_steps / until) if until else factor)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Update the weights. With a scaler, members whose gradients overflowed are left as they are."""
        for member in self.members:
            if scaler is None:
                member.step()
            else:
                scaler.step(member)

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Bring gradients back to their size, for clipping."""
        for member in self.members:
            scaler.unscale_(member)

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    @property
    def missing_bytes(self) -> int:
        """Of the state that the next step makes: all of it before the first, none afterwards."""
        return sum(
            _STATE_TENSORS.get(type(member), 0) * one.numel() * one.element_size()
            for member in self.members
            for group in member.param_groups
            for one in group["params"]
            if not (member.state.get(one))
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers of these: torch.load reads it with weights_only=True."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s values, which are copied."""
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)
            _match_layout(member)

    def _groups(self) -> list[_Group]:
        return [group for member in self.members for group in member.param_groups]


def build(network: Network, training: Training) -> Optimizers:
    """The recipe's optimizer, with its own defaults where the recipe leaves them open.

    Build once the network is on its device and in its memory format: fused steps take for granted that weight, gradient
    and state lie alike in memory. Matrices and filters decay; biases and normalization do not.
    """
    placed = _placed(network, training)
    if training.optimizer == "muon":
        return _muon(network, placed, training)
    if training.optimizer == "sgd":
        peak = _peak(_SGD_RATE * training.batch_size, training)
        groups = _grouped(placed, peak, _chosen(training.weight_decay, _SGD_DECAY))
        return Optimizers([_sgd(groups, _chosen(training.momentum, _SGD_MOMENTUM))], peak, training)
    peak = _peak(_ADAMW_RATE, training)
    groups = _grouped(placed, peak, _chosen(training.weight_decay, _ADAMW_DECAY))
    return Optimizers([_adamw(groups)], peak, training)


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A parameter and what its place in the network says about its rate."""

    parameter: nn.Parameter
    factor: float
    """On the rate: below 1 under the head when fine-tuning."""
    until: float
    """Share of the training at which its rate reaches zero; 0: with all others."""
    in_head: bool

    @property
    def is_matrix(self) -> bool:
        """Filters too; not ConvNeXt's scales of shape [C, 1, 1]."""
        return self.parameter.ndim > 1 and self.parameter[0].numel() > 1

    @property
    def is_orthogonalizable(self) -> bool:
        """Whether its rows see the same inputs, which those of depthwise filters do not; heads do better without."""
        return self.is_matrix and not self.in_head and self.parameter.shape[1] > 1


def _placed(network: Network, training: Training) -> list[_Placed]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decay = training.layer_decay if training.mode == "finetune" else 1.0
    blocks = network.blocks()
    return [
        _Placed(
            parameter=parameter,
            factor=decay**above,
            until=network.early.get(names[id(parameter)], 0.0),
            in_head=above == 0,
        )
        for above, block in zip(range(len(blocks) - 1, -1, -1), blocks, strict=True)
        for parameter in block
    ]


def _muon(network: Network, placed: Sequence[_Placed], training: Training) -> Optimizers:
    """Muon for matrices and filters below the head, a helper for the rest; the rates of both keep their ratio."""
    normalize = network.scale_invariant
    defaults = _AIRBENCH if normalize else _MUON
    peak = _peak(defaults.rate, training)
    ratio = peak / defaults.rate
    inner = [one for one in placed if one.is_orthogonalizable]
    outer = [one for one in placed if not one.is_orthogonalizable]
    members: list[torch.optim.Optimizer] = []
    if inner:
        decay = 0.0 if normalize else _chosen(training.weight_decay, _MUON_DECAY)
        muon = Muon(
            _grouped(inner, peak, decay),
            momentum=_chosen(training.momentum, defaults.momentum),
            normalize=normalize,
            iterations=defaults.iterations,
        )
        members.append(muon)
    if network.summed_rates is not None:
        groups = _summed_groups(outer, network.summed_rates, ratio, training)
        members.append(_sgd(groups, _SUMMED_MOMENTUM))
    else:
        decay = _chosen(training.weight_decay, _ADAMW_DECAY)
        members.append(_adamw(_grouped(outer, _ADAMW_RATE * ratio, decay)))
    return Optimizers(members, peak, training)


def _summed_groups(
    placed: Sequence[_Placed], rates: tuple[float, float], ratio: float, training: Training
) -> list[_Group]:
    """Airbench's groups: rates for a loss summed over the batch. Ours is its mean, so that they grow by the batch.

    Unless the recipe says otherwise, biases decay too.
    """

    def options(one: _Placed) -> _Group:
        rate = rates[1 if one.is_matrix else 0] * training.batch_size * ratio * one.factor
        decay = _SUMMED_DECAY * training.batch_size / rate
        if training.weight_decay >= 0:
            decay = training.weight_decay if one.is_matrix else 0.0
        return {"peak": rate, "weight_decay": decay, "until": one.until}

    return _merged(placed, options)


def _grouped(placed: Sequence[_Placed], peak: float, decay: float) -> list[_Group]:
    def options(one: _Placed) -> _Group:
        return {"peak": peak * one.factor, "weight_decay": decay if one.is_matrix else 0.0, "until": one.until}

    return _merged(placed, options)


def _merged(placed: Sequence[_Placed], options: Callable[[_Placed], _Group]) -> list[_Group]:
    """One group for all parameters of the same options, so that a step is few kernels."""
    groups: dict[tuple[float, ...], _Group] = {}
    for one in placed:
        chosen = options(one)
        group = groups.setdefault(tuple(chosen.values()), {**chosen, "lr": chosen["peak"], "params": []})
        group["params"].append(one.parameter)
    return list(groups.values())


def _peak(default: float, training: Training) -> float:
    if training.learning_rate:
        return training.learning_rate
    return default * (_FINETUNE if training.mode == "finetune" else 1.0)


def _chosen(value: float, default: float) -> float:
    return default if value < 0 else value


def _adamw(groups: list[_Group]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True)


def _sgd(groups: list[_Group], momentum: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum:
        # The fused step leaves its first buffers uninitialized where a scaler skips it, and takes them up in the next.
        for parameter in (one for group in groups for one in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the memory layout of its weights: the fused steps would mix elements up, silently."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
