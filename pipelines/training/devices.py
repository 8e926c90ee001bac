"""Where and how exactly a training computes: device, number format, threads, algorithms."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from dataclasses import dataclass

import torch

from pipelines.core.errors import UserError
from pipelines.core.recipe import Training
from pipelines.training import host_memory

_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What `prepare` decided."""

    device: torch.device
    precision: str = "fp32"
    """fp32, bf16 or fp16: the format of convolutions and products; weights, sums and losses stay float32."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_FORMATS[self.precision])

    def seed(self, seed: int) -> None:
        """For random numbers without a generator of their own; a fifth of torch.manual_seed's time."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16's gradients within its narrow range; does nothing for the other formats."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def prepare(training: Training, local_rank: int = 0) -> Compute:
    """Fix threads and algorithms of this process. On a CPU, and deterministic on a GPU, the same inputs then give the
    same bits. Raises UserError where CUDA is asked for and there is none.
    """
    device = choose_device(training.device, local_rank)
    torch.set_num_threads(training.threads)
    repeats = training.deterministic or device.type == "cpu"
    # Filling fresh memory would guard against reading it unwritten, at the cost of writing everything twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(repeats)
    if device.type == "cpu":
        host_memory.keep()
    else:
        if repeats:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's products are first used
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = repeats
        torch.backends.cudnn.benchmark = not repeats
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return Compute(device=device, precision=_precision(training.precision, device))


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Raises UserError where CUDA is asked for and there is none, or too few GPUs for this machine's processes."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError("training.device = 'cuda': torch sees no GPU here; use 'auto' or 'cpu'")
    if not has_cuda or name == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank + 1} on a machine with {torch.cuda.device_count()} GPUs: one process a GPU"
        )
    return torch.device("cuda", local_rank)


def should_compile(choice: str, device: torch.device) -> bool:
    """Whether to use torch.compile: on a GPU, where its tools are. On 2 CPU cores it was slower than plain torch."""
    if choice != "auto":
        return choice == "on"
    has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None and has_compiler


def is_fast_at_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _precision(choice: str, device: torch.device) -> str:
    if choice != "auto":
        return choice
    if is_fast_at_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"
