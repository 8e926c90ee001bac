"""What the `feast` command finds here: one object of each name."""

from __future__ import annotations

from feature_repo.entities import image
from feature_repo.services import similar_images, training_set
from feature_repo.views import image_embedding, image_statistics

__all__ = ["image", "image_embedding", "image_statistics", "similar_images", "training_set"]
