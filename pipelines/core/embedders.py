"""Embedders by the name that a recipe gives, and the embedding of one encoded image.

What is stored and what is asked for go through the same few lines, so that a query's embedding is the stored one's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.core import embedding
from pipelines.core.embedding import Embedder, Embeddings
from pipelines.core.embedding_name import EmbeddingName, parse
from pipelines.core.errors import NeedsTorch, NotFound
from pipelines.core.preprocessing import PreprocessingSpec, preprocess, spec_of
from pipelines.core.recipe import Preprocessing
from pipelines.core.storage import Storage


def open_embedder(text: str, storage: Storage, cache: Path, *, threads: int = 0) -> Embedder:
    """The embedder of a recipe's `features.embedding`, where NumPy or ONNX Runtime computes it.

    `threads` of ONNX Runtime; 0 takes every core. Raises RecipeError for another text, NeedsTorch for torchvision's
    networks, NotFound where the store has no such package.
    """
    name = parse(text)
    if name.kind == "torchvision":
        raise NeedsTorch(
            f"features.embedding = {text!r} is computed by torch; 'hog-color-v1' and 'package:<digest>' are not"
        )
    if name.kind == "package":
        return _of_package(name, storage, cache, threads, embedding.view_name(text))
    return embedding.HogColorV1()


def _of_package(name: EmbeddingName, storage: Storage, cache: Path, threads: int, view: str) -> Embedder:
    """One of our own registered packages."""
    from pipelines.core import package_store
    from pipelines.core.package_embedding import PackageEmbedder

    try:
        package = package_store.get(storage, name.digest, cache)
    except NotFound as error:
        raise NotFound(
            f"features.embedding = 'package:{name.digest}': no registered package has this digest; "
            "see `darkroom models`"
        ) from error
    return PackageEmbedder(package, view, threads=threads)


def pixel_spec(embedder: Embedder) -> PreprocessingSpec:
    """How the pixels are made that it wants."""
    return spec_of(Preprocessing(height=embedder.height, width=embedder.width, fit=embedder.fit))


def embed_image(embedder: Embedder, data: bytes) -> Embeddings:
    """The unit vector, float32 [D], of one encoded image. Raises ImageError."""
    row: Embeddings = embedder.embed(np.stack([preprocess(data, pixel_spec(embedder))]))[0]
    return row
