"""Training images on their way to the device."""

from pipelines.training.loading.loader import Loader

__all__ = ["Loader"]
