"""An exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """The average of a network's weights and batch-norm statistics; counters are copied.

    The decay of the n-th update, from 0, is min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten.
    Make it once the network is on its device.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._network = dict(network.state_dict())  # the network's own memory
        self._average = {name: value.clone() for name, value in self._network.items()}
        self._averaged = [name for name, value in self._network.items() if value.is_floating_point()]
        self._copied = [name for name, value in self._network.items() if not value.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take up the network's weights after a step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages = [self._average[name] for name in self._averaged]
        torch._foreach_lerp_(averages, [self._network[name] for name in self._averaged], 1 - decay)
        if self._copied:
            counters = [self._average[name] for name in self._copied]
            torch._foreach_copy_(counters, [self._network[name] for name in self._copied])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The network holds the average within, and afterwards its own bits again."""
        own = {name: value.clone() for name, value in self._network.items()}
        _copy(self._average, self._network)
        try:
            yield
        finally:
            _copy(own, self._network)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s values, which are copied."""
        self.num_updates = int(state["num_updates"])
        _copy(state["average"], self._average)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
