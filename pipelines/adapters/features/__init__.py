"""Feast: definitions, registry, point-in-time joins. The only importer of `feast` beside `feature_repo`."""

from pipelines.adapters.features.loading import import_feast
from pipelines.adapters.features.redis import FeastOnlineStore
from pipelines.adapters.features.repository import FeatureRepository

__all__ = ["FeastOnlineStore", "FeatureRepository", "import_feast"]
