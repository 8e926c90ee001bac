"""int8 variants of ONNX graphs."""

from pipelines.adapters.quantization.quantizer import OnnxQuantizer

__all__ = ["OnnxQuantizer"]
