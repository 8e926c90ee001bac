"""What a bare GPU machine or a serving process must not have to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ABSENT = (
    "airflow",
    "mlflow",
    "feast",
    "pydantic",
    "great_expectations",
    "pyarrow",
    "simplejpeg",
    "boto3",
    "onnx",
    "onnxruntime",
    "pandas",
    "bentoml",
)
PROGRAM = """
import importlib, pkgutil, sys
import pipelines.training
for module in pkgutil.walk_packages(pipelines.training.__path__, "pipelines.training."):
    importlib.import_module(module.name)
print([name for name in {absent!r} if name in sys.modules], "torch" in sys.modules)
"""


def test_a_fresh_interpreter_imports_all_of_training_without_the_rest_of_the_house() -> None:
    program = PROGRAM.format(absent=ABSENT)
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"
