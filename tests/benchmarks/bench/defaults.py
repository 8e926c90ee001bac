"""torch as it comes, for controls that share a process with our engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pipelines.core.cores import num_cores

_RECOMPILATIONS = 256


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """What a script that sets nothing but cudnn.benchmark, as torchvision's and airbench's do, would find; whatever our
    engine has set holds again afterwards.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    flags = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(num_cores())
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = True, False, True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = flags


def allow_recompiling() -> None:
    """For many trainings in one process: past torch's limit of eight, networks run uncompiled without a word."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _RECOMPILATIONS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * _RECOMPILATIONS)
