"""A model's weights as the processor wants them, in a file that all processes of this machine map: shared memory.

A session that opens a model's bytes holds them, what it read from them, and the weights reordered for the processor:
of a ResNet-50 of 95 MB each process keeps 364 MB for itself. Opened from the graph as ONNX Runtime has optimized it,
with the weights beside it in a file, it keeps 41 MB, and that file's pages are there once for all. Answers are the
same. int8 products reorder their weights when the session opens, so that those stay each process's own: 62 of 109 MB.

The package stays as it is: these files are made from verified bytes, once, and belong to one runtime on one kind of
processor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.core.results import sha256_file

_GRAPH, _WEIGHTS, _SEAL = "model.onnx", "weights.bin", "digests.json"
_LEAST_BYTES = 1024
"""Smaller tensors stay in the graph."""
_PATIENCE_S = 120.0
_PARTIAL = ".partial-"

logger = logging.getLogger("darkroom.weights")


def shared(model: bytes, folder: Path) -> Path | None:
    """The optimized graph of these bytes below the folder, made there where it is missing or damaged.

    None where it cannot be made: the bytes themselves do as well, only they take more memory.
    """
    place = folder / _key(model)
    if _intact(place):
        return place / _GRAPH
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make(model, folder, place)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        logger.warning("weights are not shared", extra={"reason": f"{error} {said[-500:].decode(errors='replace')}"})
    return place / _GRAPH if _intact(place) else None


def _key(model: bytes) -> str:
    """Another layout of weights is right on another processor, and on this one it would be wrong without a word."""
    import onnxruntime

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    machine = f"{onnxruntime.__version__} {platform.machine()} {features}"
    return f"{hashlib.sha256(model).hexdigest()[:32]}-{hashlib.sha256(machine.encode()).hexdigest()[:16]}"


def _intact(place: Path) -> bool:
    try:
        digests: dict[str, str] = json.loads((place / _SEAL).read_text())
        return {name: sha256_file(place / name) for name in (_GRAPH, _WEIGHTS)} == digests
    except (OSError, ValueError):
        return False


def _make(model: bytes, folder: Path, place: Path) -> None:
    """Several processes may do so at a time: one is first, and the others' work is thrown away.

    In a process of its own, since optimizing takes three times what this one is to keep.
    """
    _sweep(folder)
    made = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        command = [sys.executable, "-m", "pipelines.core.shared_weights", str(made)]
        subprocess.run(command, input=model, check=True, capture_output=True, timeout=_PATIENCE_S)
        digests = {name: sha256_file(made / name) for name in (_GRAPH, _WEIGHTS)}
        (made / _SEAL).write_text(json.dumps(digests))
        if place.exists():
            if _intact(place):
                return
            place.rename(made / "damaged")
        made.rename(place)
        shutil.rmtree(place / "damaged", ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """What killed processes have left."""
    for left in folder.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 2 * _PATIENCE_S:
                shutil.rmtree(left, ignore_errors=True)


def optimize(model: bytes, folder: Path) -> None:
    """Write graph and weights, as ONNX Runtime makes them for this processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / _GRAPH)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(_LEAST_BYTES)
    )
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (folder / _WEIGHTS).touch()  # a model may have none that is large


if __name__ == "__main__":
    os.umask(0o077)
    optimize(sys.stdin.buffer.read(), Path(sys.argv[1]))
