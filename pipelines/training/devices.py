"""Where and how exactly a training computes: device, number format, threads, seeds."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.core.errors import UserError
from pipelines.core.recipe import Training

_FAST_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What `prepare` decided."""

    device: torch.device
    bf16: bool

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix work in bfloat16 where decided so; weights, sums and losses stay float32."""
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def prepare(training: Training) -> Compute:
    """Fix threads, seed and algorithms of this process. On a CPU the same inputs then give the same bits."""
    device = choose_device(training.device)
    torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return Compute(device=device, bf16=_use_bf16(training.precision, device))


def choose_device(name: str) -> torch.device:
    """Raises UserError where CUDA is asked for and there is none."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError("training.device = 'cuda': torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def _use_bf16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(_FAST_BF16_FLAGS & _cpu_flags())


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
