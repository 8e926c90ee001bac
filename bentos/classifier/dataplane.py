"""What the classifier does, knowing no transport. HTTP converts to and from it; gRPC will too."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bentos.kit.errors import Overloaded
from bentos.kit.settings import ServiceSettings
from bentos.kit.telemetry import CLASSIFY_SECONDS, MODEL, WAITING
from pipelines.core import model_package
from pipelines.core.errors import IntegrityError, NotFound
from pipelines.core.inference import Classifier

T = TypeVar("T")

IDENTITY = "identity.json"
"""Beside the model package: {"model", "version", "package_digest"}, written when the bento was built."""

logger = logging.getLogger("darkroom.classifier")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which registered version this is."""

    model_name: str
    model_version: str
    package_digest: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    class_name: str
    label: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The answer to one image."""

    predictions: tuple[Prediction, ...]
    """Most probable first."""
    identity: Identity


class Dataplane:
    """A loaded, verified model and the threads that work on it."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Load and verify. Raises IntegrityError where package or preprocessing are not what was registered."""
        started = time.perf_counter()
        self.settings = settings
        self.identity = _identity(settings.model_folder)
        package = model_package.load(settings.model_folder, digest=self.identity.package_digest)
        self.classifier = Classifier(package, threads=settings.threads, provider=settings.provider)
        self.class_names = package.class_names
        # The first run allocates; a client should not wait for it.
        self.classifier.predict_bytes([package.read(package.golden[0].file)])
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="classify")
        self._num_waiting = 0
        MODEL.labels(
            self.identity.model_name,
            self.identity.model_version,
            self.identity.package_digest,
            self.classifier.variant,
            self.classifier.provider,
        ).set(1)
        logger.info(
            "model loaded",
            extra={
                **self.describe(),
                "class_names": len(self.class_names),
                "pid": os.getpid(),
                # Where this code came from: inside the bento, never a clone that happens to be installed.
                "sources": str(Path(model_package.__file__).parents[2]),
                "seconds": round(time.perf_counter() - started, 3),
            },
        )

    def describe(self) -> dict[str, object]:
        """What serves, for clients and for whoever proves this process."""
        spec = self.classifier.package.preprocessing
        return {
            "model_name": self.identity.model_name,
            "model_version": self.identity.model_version,
            "package_digest": self.identity.package_digest,
            "variant": self.classifier.variant,
            "provider": self.classifier.provider,
            "input_height": spec.height,
            "input_width": spec.width,
            "class_names": list(self.class_names),
        }

    def check_name(self, model_name: str) -> None:
        """Raises NotFound for the name of another model."""
        if model_name != self.identity.model_name:
            raise NotFound(f"model {model_name!r}: this process serves {self.identity.model_name!r}")

    async def classify(self, image: bytes, top_k: int | None = None) -> Classification:
        """Classes of one encoded image. Raises ImageError, or Overloaded where too many wait."""
        return await self._in_thread(lambda: self._classify(image, top_k or self.settings.top_k))

    def _classify(self, image: bytes, top_k: int) -> Classification:
        with CLASSIFY_SECONDS.time():
            probabilities = self.classifier.predict_bytes([image]).probabilities[0]
        labels = np.argsort(-probabilities, kind="stable")[:top_k]
        return Classification(
            predictions=tuple(
                Prediction(
                    class_name=self.class_names[label], label=int(label), probability=float(probabilities[label])
                )
                for label in labels
            ),
            identity=self.identity,
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._num_waiting >= self.settings.max_waiting:
            raise Overloaded(self._num_waiting)
        self._num_waiting += 1
        WAITING.set(self._num_waiting)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._num_waiting -= 1
            WAITING.set(self._num_waiting)

    def close(self) -> None:
        self._threads.shutdown(wait=True)


def _identity(folder: Path) -> Identity:
    """Raises IntegrityError where the bento was not built with one."""
    path = folder.parent / IDENTITY
    try:
        table = json.loads(path.read_text("utf-8"))
        return Identity(
            model_name=table["model"], model_version=str(table["version"]), package_digest=table["package_digest"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: not readable ({error!r}); build the bento again") from error
