"""Which features are asked for together."""

from __future__ import annotations

from feast import FeatureService, FeatureView

from feature_repo.views import image_embedding, image_statistics


def training_service(statistics: FeatureView) -> FeatureService:
    """What a training set can be filtered and weighted by."""
    return FeatureService(name="training_set", features=[statistics], description="Filters and weights of samples.")


def similarity_service(view: FeatureView) -> FeatureService:
    """What `darkroom similar` searches."""
    return FeatureService(name=f"similar_{view.name}", features=[view], description="Nearest stored images.")


training_set = training_service(image_statistics)
similar_images = similarity_service(image_embedding)
