"""Running out of memory, and being as before."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")


class Statistics:
    """The batch-norm statistics of a network, to be put back."""

    def __init__(self, network: nn.Module) -> None:
        buffers = list(network.buffers())
        # One kind at a time: a GPU then copies many in one go.
        self._kinds = [[one for one in buffers if one.dtype == kind] for kind in {one.dtype for one in buffers}]
        self._saved = [[one.clone() for one in kind] for kind in self._kinds]

    @torch.no_grad()
    def save(self) -> None:
        for kind, saved in zip(self._kinds, self._saved, strict=True):
            torch._foreach_copy_(saved, kind)

    @torch.no_grad()
    def restore(self) -> None:
        for kind, saved in zip(self._kinds, self._saved, strict=True):
            torch._foreach_copy_(kind, saved)


def attempt(work: Callable[[], Tensor]) -> Tensor | None:
    """What `work` returns; None where memory ran out, with what it had allocated free again."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Out here nothing refers to the error's frames any more, nor to their tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, of torch's CPU allocator, or of the libraries below."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(word in str(error) for word in _WORDS)
