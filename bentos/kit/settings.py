"""The only reader of the environment in the serving tier (variables DARKROOM_*)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How one serving process works. Build it with `load()`."""

    model_folder: Path
    """The model package."""
    cluster: str
    """The gateway's name for the deployment that this process is part of; it vouches for the process on /readyz."""
    threads: int
    """Threads of the model for one request."""
    concurrency: int
    """Images that are decoded and classified at once."""
    max_waiting: int
    """Requests beyond these are refused with 503 instead of queueing."""
    max_body_bytes: int
    top_k: int
    """Classes in an answer unless the request asks otherwise."""
    provider: str
    """auto, cpu or cuda."""


def load(default_model_folder: Path) -> ServiceSettings:
    """Settings from the environment. Raises UserError naming the variable."""
    threads = _number("DARKROOM_THREADS", 1, maximum=256)
    return ServiceSettings(
        model_folder=Path(os.environ.get("DARKROOM_MODEL_FOLDER") or default_model_folder),
        cluster=os.environ.get("DARKROOM_CLUSTER") or "",
        threads=threads,
        # One more than the model keeps busy, so that the next image is decoded meanwhile.
        concurrency=_number("DARKROOM_CONCURRENCY", threads + 1, maximum=1024),
        max_waiting=_number("DARKROOM_MAX_WAITING", 256, maximum=100_000),
        max_body_bytes=_number("DARKROOM_MAX_BODY_BYTES", 20 * 1024 * 1024, maximum=2**31),
        top_k=_number("DARKROOM_TOP_K", 5, maximum=1000),
        provider=_choice("DARKROOM_PROVIDER", ("auto", "cpu", "cuda")),
    )


def _number(name: str, default: int, *, maximum: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= maximum:
        raise UserError(f"{name}={text!r}: expected a number from 1 to {maximum}")
    return int(text)


def _choice(name: str, allowed: tuple[str, ...]) -> str:
    text = os.environ.get(name) or allowed[0]
    if text not in allowed:
        raise UserError(f"{name}={text!r}: expected one of {', '.join(allowed)}")
    return text
