"""Several processes that train one network: torchrun's, over GPUs and hosts, or on CPUs."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.training.engine.compilation import compiled_for_any_size

_LONGEST_WAIT = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a training, this one's place among them, and what they tell each other. Alone by default."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Place among the processes of this machine: the number of its GPU."""
    patient: dist.ProcessGroup | None = None
    """All of them, for `wait`."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and talks to people."""
        return self.rank == 0

    def total(self, numbers: Tensor) -> Tensor:
        """Element-wise sum over the processes."""
        if self.size > 1:
            numbers = numbers.clone()
            dist.all_reduce(numbers)
        return numbers

    def smallest(self, number: int, device: torch.device) -> int:
        if self.size == 1:
            return number
        found = torch.tensor(number, device=device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def wait(self) -> None:
        """Until every process has come here, were it hours: preparing a million images takes longer than the half hour
        after which an exchange counts as lost.
        """
        if self.size > 1:
            dist.all_reduce(torch.zeros(()), group=self.patient)

    def leaders(self, data: bytes, device: torch.device) -> bytes:
        """The bytes that the leading process passes; the others' own are ignored."""
        if self.size == 1:
            return data
        length = torch.tensor(len(data), device=device)
        dist.broadcast(length, src=0)
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.leads and data else None
        found = (
            content.to(device) if content is not None else torch.empty(int(length), dtype=torch.uint8, device=device)
        )
        dist.broadcast(found, src=0)
        return found.cpu().numpy().tobytes()

    def gathered(self, texts: list[str]) -> list[str]:
        """Those of all processes, in order of rank."""
        if self.size == 1:
            return texts
        parts: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, texts)
        return [text for part in parts for text in part]

    def part(self, length: int) -> slice:
        """This process's share of `length` rows."""
        return slice(length * self.rank // self.size, length * (self.rank + 1) // self.size)


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun made, or that of a process alone. Every process must come and leave."""
    if not dist.is_torchelastic_launched():
        yield World()
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    # Tensors on GPUs go through NCCL, those on CPUs through Gloo: the recipe decides where it trains.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_LONGEST_WAIT))
        yield World(rank=rank, size=size, local_rank=local_rank, patient=patient)
    finally:
        dist.destroy_process_group()


class Replica:
    """The network as this process trains it: forward passes whose gradients become those of all processes.

    Parameters may come to need no gradient while the training goes on (`Network.set_progress`). The gradient exchange
    counts on every one of them, so it is set up anew then.
    """

    def __init__(self, network: nn.Module, forward: nn.Module, world: World) -> None:
        """`forward` is the network or its compiled form."""
        self.world = world
        self._network, self._forward = network, forward
        self._wrapped: DistributedDataParallel | None = None
        self._trained: tuple[bool, ...] = ()

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = (self._wrapped or self._forward)(pixels)
        return outputs

    def alone(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """A forward pass that no other process hears of."""
        outputs: tuple[Tensor, Tensor] = self._forward(pixels)
        return outputs

    @property
    def is_compiled(self) -> bool:
        return self._forward is not self._network

    def expect_any_size(self) -> None:
        """Where compiled: one graph for all sizes of batches from now on, which are about to change."""
        if self.is_compiled:
            self._forward = compiled_for_any_size(self._network)
            self._trained = ()  # so that the exchange is set up for it

    def prepare(self) -> None:
        """Before a step: make sure that the exchange knows which parameters take part."""
        if self.world.size == 1:
            return
        trained = tuple(one.requires_grad for one in self._network.parameters())
        if trained != self._trained:
            self._trained = trained
            self._wrapped = None
            gc.collect()  # the former exchange is told of gradients as long as it lives
            # Statistics are exchanged by the batch norms themselves; other buffers do not change.
            self._wrapped = DistributedDataParallel(
                self._forward, forward_sync_buffers=False, gradient_as_bucket_view=True
            )

    def gathering(self) -> contextlib.AbstractContextManager[object]:
        """Within, gradients add up in this process and are not exchanged yet."""
        return self._wrapped.no_sync() if self._wrapped else contextlib.nullcontext()
