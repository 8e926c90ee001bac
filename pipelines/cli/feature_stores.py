"""Feature adapters built from settings, for steps and commands alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.core import embedding
from pipelines.core.embedding import Embedder
from pipelines.core.embedding_name import parse
from pipelines.core.errors import NotFound, UserError
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
    view = embedding.view_name(text)
    if parsed.path is not None:
        from pipelines.training.embedding import TorchvisionEmbedder

        try:
            return TorchvisionEmbedder(parsed.backbone, parsed.path, view)
        except ValueError as error:
            raise UserError(f"features.embedding = {text!r}: {error}") from error
    if parsed.kind == "package":
        return _package_embedder(settings, storage, parsed.digest, view)
    return embedding.HogColorV1()


def _package_embedder(settings: Settings, storage: Storage, digest: str, view: str) -> Embedder:
    """One of our own registered packages."""
    from pipelines.core import package_store
    from pipelines.core.package_embedding import PackageEmbedder

    try:
        return PackageEmbedder(package_store.get(storage, digest, settings.home / "cache"), view)
    except NotFound as error:
        raise NotFound(
            f"features.embedding = 'package:{digest}': no registered package has this digest; see `darkroom models`"
        ) from error
