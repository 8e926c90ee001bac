"""What steps ask of the adapters that are handed to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipelines.core.pixelset import Pixels


class Tracker(Protocol):
    """A tracking server's record of one run. Nothing here may fail a training: an unreachable server is logged."""

    def start(self, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Begin a record and return its id (empty where the server does not answer)."""

    def log(self, metrics: Sequence[tuple[str, float, int]]) -> None:
        """Append (name, value, step) in one request."""

    def finish(self, status: str) -> None:
        """End the record: `FINISHED` or `FAILED`."""


class Quantizer(Protocol):
    """Makes the int8 variant of an fp32 ONNX file."""

    def __call__(self, model: Path, out: Path, calibration_pixels_NHWC: Pixels) -> None:  # noqa: N803
        """Write `out`, an int8 QDQ model with the same inputs and outputs. `calibration_pixels_NHWC`: [N, H, W, 3]."""
