"""What steps ask of the adapters that are handed to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.core.model_package import ModelPackage
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


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A registered version of a model."""

    model: str
    version: int
    package_digest: str
    tracking_run_id: str
    aliases: tuple[str, ...]
    """Of `champion` and `challenger`."""
    tags: Mapping[str, str]
    """snapshot, recipe, code, package, content, run, verdict and the figures of the test set."""
    created_at: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Everything that the registry keeps of a candidate."""

    model: str
    package: ModelPackage
    tracking_run_id: str
    """The training's record; where there is none, one is made from parameters and history."""
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    history: Sequence[tuple[str, float, int]]
    """(name, value, step)."""
    pictures: Sequence[Path]
    tags: Mapping[str, str]


class ModelRegistry(Protocol):
    """Registered models, their versions and aliases."""

    def register(self, registration: Registration) -> ModelVersion:
        """The version of this package, made if its content is not there yet; `challenger` unless it is the champion."""

    def versions(self, model: str = "") -> list[ModelVersion]:
        """Newest first; of all models where none is named."""

    def version(self, model: str, version: int) -> ModelVersion:
        """Raises NotFound."""

    def alias(self, model: str, alias: str) -> ModelVersion | None:
        """The version that an alias points to."""

    def promote(self, model: str, version: int) -> ModelVersion:
        """Move `champion` to a version that serves now. Raises NotFound."""
