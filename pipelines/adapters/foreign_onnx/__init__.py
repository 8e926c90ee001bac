"""ONNX files from elsewhere: read, understood on data, and wrapped into the house's graph."""

from pipelines.adapters.foreign_onnx.network import OnnxNetwork
from pipelines.adapters.foreign_onnx.reading import files_of

__all__ = ["OnnxNetwork", "files_of"]
