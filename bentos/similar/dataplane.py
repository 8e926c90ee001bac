"""What the service does, knowing no transport: an image in, the nearest stored ones out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from bentos.kit.budget import IN_FLIGHT
from bentos.kit.errors import RequestRefused
from bentos.kit.settings import SearchSettings
from bentos.kit.telemetry import stage_seconds
from bentos.kit.tracing import CURRENT, say
from bentos.similar.catalog import Catalog
from bentos.similar.engine import Engine
from bentos.similar.label_index import LabelIndex
from bentos.similar.vectors import VectorStore
from pipelines.core.embedders import open_embedder
from pipelines.core.embedding import Embedder, Embeddings
from pipelines.core.embedding_name import parse
from pipelines.core.errors import DarkroomError, NeedsTorch, NotFound, RecipeError
from pipelines.core.labels import Found
from pipelines.core.neighbours import Neighbour, table_of
from pipelines.core.storage import open_storage

TOP_K, MAX_TOP_K = 5, 100
_MAX_EMBEDDERS = 4
"""Kept open: a package's network is its file's size in memory, and more."""

_SECONDS = {stage: stage_seconds(stage) for stage in ("search", "labels")}

logger = logging.getLogger("darkroom.similar")


@dataclass(frozen=True, kw_only=True)
class Similar:
    """A stored image near the asked one."""

    image_id: str
    """SHA-256 of its bytes."""
    similarity: float
    """Cosine, 1 for the same picture."""
    label: str | None
    """Class name of its newest accepted label; None where it was withdrawn or is not accepted (yet)."""
    event_timestamp: datetime
    source_uri: str | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The stored images nearest to an image."""

    model_name: str
    embedding: str
    """As the recipe names it."""
    embedding_version: str | None
    """Of an embedding that is code, 1 for hog-color-v1; None for a package's, whose number is the registry's."""
    package_digest: str | None
    """Of the package that computed the embeddings; None where none did."""
    view: str
    """Feature view that was searched: its name stands for what computed the embeddings."""
    dataset_digest: str
    """Of the dataset's head that the labels are of."""
    neighbours: tuple[Similar, ...]
    """Nearest first."""


class Dataplane:
    """Belongs to one event loop."""

    def __init__(self, settings: SearchSettings) -> None:
        self.settings = settings
        self._storage = open_storage(settings.store_uri, endpoint_url=settings.s3_endpoint_url)
        self._catalog = Catalog(settings.recipe_folders)
        self._vectors = VectorStore(settings.vectors_url_file) if settings.vectors_url_file else None
        self._labels = LabelIndex(self._storage, settings.cache)
        self._engine = Engine(
            threads=settings.concurrency, max_waiting=settings.max_waiting, max_wait_s=settings.max_wait_s
        )
        self._embedders: OrderedDict[str, Embedder] = OrderedDict()
        self._opening = asyncio.Lock()

    async def similar(self, name: str, image: bytes, top_k: int | None = None) -> Answer:
        """The stored images of a model's dataset that are nearest to one encoded image.

        Raises ImageError; NotFound where there is no such model; RequestRefused where nothing is stored (404), where it
        cannot be answered here (501), or not now (503).
        """
        with IN_FLIGHT.holding(len(image)), self._engine.place():
            recipe = await asyncio.to_thread(self._catalog.recipe, name)
            say("darkroom.model_name", recipe.name)
            if self._vectors is None:
                raise _not_here(
                    "features_in_redis",
                    "the online features of this installation are in Redis, which is not searched; without "
                    "DARKROOM_FEATURES_REDIS they are in PostgreSQL",
                )
            embedder = await self._embedder(recipe.features.embedding)
            vector = await self._engine.embed(embedder, image)
            with _timed("search"):
                near = await self._nearest(self._vectors, name, embedder.view, vector, top_k or TOP_K)
            with _timed("labels"):
                found = await self._labels.find(recipe.name, [one.image_id for one in near])
        version, digest = _made_by(recipe.features.embedding)
        return Answer(
            model_name=recipe.name,
            embedding=recipe.features.embedding,
            embedding_version=version,
            package_digest=digest,
            view=embedder.view,
            dataset_digest=found.head_digest,
            neighbours=tuple(_with_label(one, found) for one in near),
        )

    async def _nearest(
        self, vectors: VectorStore, name: str, view: str, vector: Embeddings, top: int
    ) -> list[Neighbour]:
        try:
            return await vectors.nearest(table_of(name, view), vector, top)
        except NotFound as error:
            detail = f"model {name!r}: no embeddings of its images are stored in {view}; `darkroom run` stores them"
            raise RequestRefused(404, "nothing_stored", detail) from error

    async def close(self) -> None:
        await self._labels.close()
        if self._vectors is not None:
            await self._vectors.close()
        await asyncio.to_thread(self._engine.close)

    async def _embedder(self, text: str) -> Embedder:
        """Open, where it is not yet: a package's network takes a second."""
        if text not in self._embedders:
            async with self._opening:
                if text not in self._embedders:
                    self._embedders[text] = await asyncio.to_thread(self._open, text)
                while len(self._embedders) > _MAX_EMBEDDERS:
                    self._embedders.popitem(last=False)
        self._embedders.move_to_end(text)
        return self._embedders[text]

    def _open(self, text: str) -> Embedder:
        try:
            return open_embedder(text, self._storage, self.settings.cache, threads=self.settings.threads)
        except NeedsTorch as error:
            raise _not_here(
                "embedding_needs_torch",
                "this dataset's embedding is computed by torch, which no serving process has: `darkroom similar` "
                "answers on the command line; with features.embedding = 'hog-color-v1' or 'package:<digest>' in the "
                "recipe, and the data stored again by `darkroom run`, it is answered here",
            ) from error
        except (NotFound, RecipeError) as error:
            raise _not_here("embedding_unavailable", str(error)) from error
        except (DarkroomError, OSError) as error:
            logger.error("an embedding cannot be opened", extra={"embedding": text, "reason": str(error)})
            detail = "the network of this dataset's embedding cannot be read from the store; try again"
            raise RequestRefused(503, "embedding_unavailable", detail, retry_after_s=5) from error


def _not_here(reason: str, detail: str) -> RequestRefused:
    return RequestRefused(501, reason, detail)


def _made_by(embedding: str) -> tuple[str | None, str | None]:
    """Version and package digest of what computes an embedding, as far as its name says them."""
    name = parse(embedding)
    if name.kind == "package":
        return None, name.digest
    return name.kind.rpartition("-v")[2], None


def _with_label(one: Neighbour, found: Found) -> Similar:
    known = found.images.get(one.image_id)
    return Similar(
        image_id=one.image_id,
        similarity=one.similarity,
        label=known.label if known else None,
        event_timestamp=one.event_timestamp,
        source_uri=known.source_uri if known else None,
    )


@contextlib.contextmanager
def _timed(stage: str) -> Iterator[None]:
    """As a metric, and as a part of the request's span."""
    began = time.perf_counter()
    failed = True
    try:
        yield
        failed = False
    finally:
        ended = time.perf_counter()
        _SECONDS[stage].observe(ended - began)
        span = CURRENT.get()
        if span is not None:
            span.add(stage, began, ended, failed=failed)
