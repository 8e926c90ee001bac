"""What the classifier does, knowing no transport: REST, gRPC and WebSocket convert to and from it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bentos.classifier import identity
from bentos.classifier.answers import AnswerCodec, Answers
from bentos.classifier.engine import Engine
from bentos.classifier.identity import Identity
from bentos.classifier.prediction_log import NOBODY, Asker, PredictionLog
from bentos.kit.budget import IN_FLIGHT
from bentos.kit.settings import ServiceSettings
from bentos.kit.shared.cache import SharedCache
from bentos.kit.shared.server import RedisServer
from bentos.kit.telemetry import MODEL
from pipelines.core import model_package
from pipelines.core.errors import NotFound
from pipelines.core.inference import Classifier, Outputs
from pipelines.core.pixelset import Pixels

logger = logging.getLogger("darkroom.classifier")


class Prediction(NamedTuple):
    """One class of an answer."""

    class_name: str
    label: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The answer to one image."""

    predictions: tuple[Prediction, ...]
    """Most probable first."""
    identity: Identity


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """An image as a point, for search and clustering."""

    values: tuple[float, ...]
    identity: Identity


class Dataplane:
    """A loaded, verified model and the threads that work on it."""

    def __init__(self, settings: ServiceSettings, redis: RedisServer | None = None) -> None:
        """Load and verify. Answers are shared through `redis`.

        Raises IntegrityError where package or preprocessing are not what was registered.
        """
        started = time.perf_counter()
        self.settings = settings
        self.identity = identity.read(settings.model_folder)
        package = model_package.load(settings.model_folder, digest=self.identity.package_digest)
        self.classifier = Classifier(
            package, threads=settings.threads, provider=settings.provider, weights=settings.weights
        )
        self.class_names = package.class_names
        # The first run allocates; a client should not wait for it.
        self.classifier.predict_bytes([package.read(package.golden[0].file)])
        self.engine = Engine(
            self.classifier,
            threads=settings.concurrency,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            max_wait_s=settings.max_wait_s,
        )
        self._answers = Answers(settings.cache_bytes, self._shared_answers(redis), self.classifier)
        self._log = (
            PredictionLog(settings.prediction_log, self.identity, self.classifier.variant, self.class_names)
            if settings.prediction_log
            else None
        )
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

    def _shared_answers(self, redis: RedisServer | None) -> SharedCache[Outputs] | None:
        """None where answers are not to be shared, or are larger than they may be."""
        settings = self.settings.redis
        if redis is None or settings is None or not settings.answers_s:
            return None
        codec = AnswerCodec(num_classes=len(self.class_names), embedding_dim=self.classifier.embedding_dim)
        if codec.num_bytes > settings.max_answer_bytes:
            told = {"answer_bytes": codec.num_bytes, "max_bytes": settings.max_answer_bytes}
            logger.warning("answers are not shared: they are larger than DARKROOM_REDIS_MAX_ANSWER_BYTES", extra=told)
            return None
        return SharedCache(redis, codec, ttl_s=settings.answers_s)

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

    def check_name(self, model_name: str, model_version: str = "") -> None:
        """Raises NotFound for the name of another model, or another version of this one."""
        if model_name != self.identity.model_name:
            raise NotFound(f"model {model_name!r}: this process serves {self.identity.model_name!r}")
        if model_version not in ("", self.identity.model_version):
            raise NotFound(
                f"model {model_name!r} version {model_version!r}: this process serves version "
                f"{self.identity.model_version}"
            )

    async def classify(
        self, image: bytes, top_k: int | None = None, threshold: float = 0.0, *, asker: Asker = NOBODY
    ) -> Classification:
        """The most probable classes of one encoded image, none below the threshold.

        Raises ImageError, or Overloaded where too many wait.
        """
        outputs = await self._outputs(image, asker)
        probabilities = outputs.probabilities[0]
        labels = np.argsort(-probabilities, kind="stable")[: top_k or self.settings.top_k].tolist()
        found = probabilities[labels].tolist()
        return Classification(
            predictions=tuple(
                Prediction(class_name=self.class_names[label], label=label, probability=probability)
                for label, probability in zip(labels, found, strict=True)
                if probability >= threshold
            ),
            identity=self.identity,
        )

    async def embed(self, image: bytes, *, asker: Asker = NOBODY) -> Embedding:
        """The embedding of one encoded image. Raises ImageError, or Overloaded where too many wait."""
        outputs = await self._outputs(image, asker)
        return Embedding(values=tuple(outputs.embedding[0].tolist()), identity=self.identity)

    async def _outputs(self, image: bytes, asker: Asker) -> Outputs:
        """What the model says of one encoded image, from the cache where it was asked before."""
        with IN_FLIGHT.holding(len(image)):
            if self._answers.enabled:
                return await self._cached(image, asker)
            outputs = await self._computed(image)
            if self._log is not None:
                self._log.offer(asker, image, outputs)
            return outputs

    async def _computed(self, image: bytes) -> Outputs:
        self.engine.admit()
        return await self.engine.run([image])

    async def _cached(self, image: bytes, asker: Asker) -> Outputs:
        sha256 = hashlib.sha256(image).digest()
        found = kept = await self._answers.find(asker, sha256)
        if found is None:
            # A copy: a view would keep alive the whole batch that the image was part of.
            found = (await self._computed(image)).copy()
            self._answers.keep(asker, sha256, found)
        if self._log is not None:
            self._log.offer(asker, image, found, sha256=sha256, cached=kept is not None)
        return found

    async def infer(
        self,
        images: Sequence[bytes],
        pixels_NHWC: Pixels | None,  # noqa: N803
        *,
        asker: Asker = NOBODY,
    ) -> Outputs:
        """Everything the model says of encoded images, or of pixels uint8 [N, H, W, 3].

        Raises ImageError for the first image that is refused, naming its place; Overloaded where too many wait.
        """
        if len(images) == 1:
            return await self._outputs(images[0], asker)
        with IN_FLIGHT.holding(sum(map(len, images)) if pixels_NHWC is None else pixels_NHWC.nbytes):
            outputs = await self._infer_many(images, pixels_NHWC)
        if self._log is not None:
            for place, image in enumerate(images if pixels_NHWC is None else pixels_NHWC):
                self._log.offer(asker._replace(place=place), image, outputs, row=place)
        return outputs

    async def _infer_many(self, images: Sequence[bytes], pixels_NHWC: Pixels | None) -> Outputs:  # noqa: N803
        size = self.settings.max_batch
        # Once for all: its own first images must not keep its last ones out.
        self.engine.admit()
        if pixels_NHWC is not None:
            parts = [pixels_NHWC[first : first + size] for first in range(0, len(pixels_NHWC), size)]
            return Outputs.joined(await asyncio.gather(*(self.engine.run_pixels(part) for part in parts)))
        starts = range(0, len(images), size)
        return Outputs.joined(
            await asyncio.gather(*(self.engine.run(images[first : first + size], first) for first in starts))
        )

    async def settle(self) -> None:
        """Write what others may still want to know."""
        await self._answers.settle()

    def close(self) -> None:
        self.engine.close()
        if self._log is not None:
            self._log.close()
