"""A model package as an MLflow model of the ONNX flavour, with the package itself inside."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.core.model_package import ModelPackage

_REQUIREMENTS = ("onnxruntime-gpu", "numpy", "pillow")


def save_model(package: ModelPackage, folder: Path, run_id: str, model_id: str, tags: Mapping[str, str]) -> None:
    """Write `folder` (made): MLmodel, model.onnx (the variant that serves), requirements.txt, package/."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    spec, num_classes = package.preprocessing, len(package.class_names)
    # -1 is any number of images. Requirements are explicit: MLflow's own guess lists two onnxruntimes side by side.
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, spec.height, spec.width, 3), "pixels_NHWC")]),
        outputs=Schema(
            [
                TensorSpec(np.dtype(np.float32), (-1, num_classes), "logits"),
                TensorSpec(np.dtype(np.float32), (-1, num_classes), "probabilities"),
                TensorSpec(np.dtype(np.float32), (-1, package.description.embedding_dim), "embedding"),
            ]
        ),
    )
    mlflow.onnx.save_model(
        onnx.load_model_from_string(package.read(package.variants[package.variant].file)),
        str(folder),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        signature=signature,
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        onnx_execution_providers=["CPUExecutionProvider"],
        metadata={**tags, "class_names": list(package.class_names), "variant": package.variant},
        save_as_external_data=False,
    )
    shutil.copytree(package.folder, folder / "package")
