"""What steps ask of the adapters that are handed to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipelines.core.deployments import Build, Deployment, ServingSpec, Withdrawn
from pipelines.core.foreign import Origin
from pipelines.core.model_package import ModelPackage
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import PreprocessingSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipelines.core.features import EmbeddingView


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

    def quantize(self, model: Path, out: Path, calibration_pixels_NHWC: Pixels) -> bool:  # noqa: N803
        """Write `out`, an int8 QDQ model with the same inputs and outputs. `calibration_pixels_NHWC`: [N, H, W, 3].

        False, with nothing written, where the model has no convolution: there int8 would save nothing.
        """

    def set_temperature(self, model: Path, temperature: float) -> None:
        """Change what divides the logits before the softmax, in place."""


class ForeignNetwork(Protocol):
    """A model that was trained elsewhere, understood."""

    spec: PreprocessingSpec
    class_names: tuple[str, ...]
    origin: Origin
    notes: Sequence[str]
    """What was found, and what was assumed for lack of a word."""

    def logits(self, pixels_NHWC: Pixels, threads: int) -> NDArray[np.float32]:  # noqa: N803
        """The original's own logits [N, C] of uint8 [N, H, W, 3]."""

    def write(self, temperature: float, path: Path) -> int:
        """Make an ONNX file with the house's inputs and outputs of it, and return its opset."""


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

    def package(self, model: str, version: int) -> ModelPackage:
        """The version's package, on this machine and verified. Raises NotFound, IntegrityError."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A test image that the model got wrong."""

    true_class: str
    predicted_class: str
    probability: float
    """Of the predicted class."""
    true_probability: float


class Pictures(Protocol):
    """Draws what evaluation found, as PNG files that do not depend on when they are drawn."""

    def confusion(self, path: Path, counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> None:
        """Rows of `counts` are true classes, columns predicted ones."""

    def mistakes(self, path: Path, mistakes: Sequence[Mistake], images: Sequence[bytes], *, num_mistakes: int) -> None:
        """The worst mistakes beside their encoded images, out of `num_mistakes`."""


class FeatureRepository(Protocol):
    """A recipe's feature definitions and their point-in-time reads."""

    def ensure(self, embedding: EmbeddingView) -> bool:
        """Apply the definitions if they changed; whether they had."""

    def historical(self, entities: pa.Table, features: Sequence[str]) -> pa.Table:
        """Statistics of images as known at their event times. `entities`: image_id, event_timestamp (UTC).

        Rows in no particular order; nulls where nothing was known.
        """

    def embeddings(self, entities: pa.Table, view: str, out: Path) -> NDArray[np.bool_]:
        """Embeddings of images as known at their event times: `out` becomes a NumPy file float32 [N, D].

        `entities`: image_id, event_timestamp (UTC); rows are in their order. Returns which were known.
        """


class OnlineWriter(Protocol):
    """Takes batches of feature rows."""

    def write(self, rows: pa.Table) -> None:
        """Upsert rows: image_id, event_timestamp, created_timestamp and features. A newer event time stays."""


class OnlineFeatures(Protocol):
    """The online store of a recipe's views."""

    def loading(self, view: str, num_rows: int, dim: int | None) -> AbstractContextManager[OnlineWriter]:
        """A writer for about `num_rows` images; `dim` is the width of the view's vectors, None where it has none."""

    def remove(self, view: str, image_ids: Sequence[str], until: datetime) -> None:
        """Drop images whose stored event time is not after `until`."""


class BentoBuilder(Protocol):
    """Makes a version's bento."""

    def __call__(self, package: ModelPackage, *, version: int, out: Path) -> Path:
        """Make `out`, a self-contained bento folder with the package inside."""


class BentoKeeper(Protocol):
    """Keeps bentos where serving machines find them."""

    def keep(self, bento: Path, *, model: str, version: int, package_digest: str) -> Build:
        """Store a bento folder and say where; the same content is stored once."""


class Deployments(Protocol):
    """What each model should serve, and did."""

    def request(
        self, build: Build, spec: ServingSpec, *, kind: str = "deploy", origin: int | None = None
    ) -> Deployment:
        """Ask for a build to serve, or return the deployment that already does or is about to."""

    def wait(self, deployment_id: int, timeout_s: float) -> Deployment:
        """The deployment once it is live, retired or failed. Raises PlatformError where nobody brings it up."""

    def confirm(self, build: Build, timeout_s: float) -> None:
        """See clients get this build's answers. Raises PlatformError where they do not: a row alone serves nobody."""

    def current(self, model: str) -> Deployment | None:
        """The deployment that serves."""

    def previous(self, model: str) -> Deployment | None:
        """The last successful one before the current, of another package."""


class Withdrawals(Protocol):
    """What a person has rolled back from."""

    def find(self, model: str, content_digest: str) -> Withdrawn | None:
        """The withdrawn version with this content; None where there is none, or it has served again since."""
