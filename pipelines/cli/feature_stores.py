"""Feature adapters built from settings, for steps and commands alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.core import embedders, embedding
from pipelines.core.embedding import Embedder
from pipelines.core.embedding_name import parse
from pipelines.core.errors import UserError
from pipelines.core.storage import Storage
from pipelines.settings import Settings

if TYPE_CHECKING:
    from pipelines.adapters.features import FeatureRepository
    from pipelines.core.ports import OnlineFeatures


def open_repository(settings: Settings, name: str) -> FeatureRepository:
    """The Feast repository of a recipe."""
    from pipelines.adapters.features import FeatureRepository

    return FeatureRepository(
        recipe=name,
        database_url=settings.database_url("feast"),
        store_uri=settings.store_uri,
        s3_endpoint_url=settings.s3_endpoint_url,
        redis_url=settings.features_redis,
    )


def open_online_store(settings: Settings, name: str) -> OnlineFeatures:
    """Where a recipe's online rows are written: PostgreSQL, or Redis where the settings say so."""
    if settings.features_redis:
        from pipelines.adapters.features import FeastOnlineStore

        return FeastOnlineStore(open_repository(settings, name))
    from pipelines.adapters.online_store import OnlineStore

    return OnlineStore(settings.database_url("feast"), name)


def open_embedder(settings: Settings, storage: Storage, text: str) -> Embedder:
    """The embedder that `features.embedding` names. Raises RecipeError, UserError or NotFound."""
    parsed = parse(text)
    if parsed.path is None:
        return embedders.open_embedder(text, storage, settings.home / "cache")
    from pipelines.training.embedding import TorchvisionEmbedder

    view = embedding.view_name(text)
    try:
        return TorchvisionEmbedder(parsed.backbone, parsed.path, view)
    except ValueError as error:
        raise UserError(f"features.embedding = {text!r}: {error}") from error
