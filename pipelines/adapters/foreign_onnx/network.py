"""A foreign ONNX file, understood: run as it is, and written as the house's graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.adapters.foreign_onnx import outputs
from pipelines.adapters.foreign_onnx.images import find_input
from pipelines.adapters.foreign_onnx.reading import files_of, read
from pipelines.adapters.foreign_onnx.wrapping import Plan, wrap
from pipelines.core.errors import UserError
from pipelines.core.foreign import ForeignModel, Origin
from pipelines.core.inference import Runtime
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import PreprocessingSpec
from pipelines.core.results import sha256_file

_BATCH = 64
_TOLERANCE = 1e-3
"""How far answers to several images may be from those one by one, as a share of the largest."""


class OnnxNetwork:
    """Fulfils `core.ports.ForeignNetwork`.

    `pixels_of` makes some images' pixels [N, H, W, 3] by a spec: what the outputs mean is seen on them. Raises
    UserError that lists what was found where a word is missing.
    """

    def __init__(self, model: ForeignModel, pixels_of: Callable[[PreprocessingSpec], Pixels]) -> None:
        self._path = Path(model.file)
        self.class_names = model.classes
        self._model = read(self._path)
        self._images = find_input(self._model.graph, model)
        self.spec = self._images.spec
        self._session: Any = None
        self._threads = 0
        sample = pixels_of(self.spec)
        answers = self._run(sample, self._opened(1))
        output = outputs.find_output(answers, model)
        rows = answers[output].reshape(len(sample), -1).astype(np.float32)
        kind = outputs.find_kind(rows, model)
        embedding, dim, pools, note = self._embedding(model, output, sample)
        self._plan = Plan(
            images=self._images,
            output=output,
            kind=kind,
            num_classes=len(model.classes),
            embedding=embedding,
            embedding_dim=dim,
            pools=pools,
        )
        found = "said so" if model.output_kind else "found on the images"
        self.notes: Sequence[str] = (*self._images.notes, f"output: {output}, {kind} ({found})", note)
        self.origin = _origin(self._path)
        self._check_batch(sample)

    def logits(self, pixels_NHWC: Pixels, threads: int) -> NDArray[np.float32]:  # noqa: N803
        session = self._opened(threads)
        parts = [
            self._run(pixels_NHWC[start : start + _BATCH], session)[self._plan.output]
            for start in range(0, len(pixels_NHWC), _BATCH)
        ]
        rows = np.concatenate(parts).reshape(len(pixels_NHWC), -1).astype(np.float32)
        return np.log(np.maximum(rows, np.float32(outputs.FLOOR))) if self._plan.kind == "probabilities" else rows

    def write(self, temperature: float, path: Path) -> int:
        wrapped = wrap(self._model, self._plan, temperature)
        path.write_bytes(wrapped.SerializeToString(deterministic=True))
        return int(next(one.version for one in wrapped.opset_import if one.domain in ("", "ai.onnx")))

    def _opened(self, threads: int) -> Any:
        """The original file in a session, as it came."""
        if self._session is None or self._threads != threads:
            self._session, self._threads = _session(str(self._path), self._path, threads), threads
        return self._session

    def _run(self, pixels_NHWC: Pixels, session: Any) -> dict[str, NDArray[Any]]:  # noqa: N803
        """Every output by name, for any number of images, whatever batch the file insists on."""
        names = [one.name for one in session.get_outputs()]
        size = self._images.batch or len(pixels_NHWC)
        parts: list[list[NDArray[Any]]] = []
        for start in range(0, len(pixels_NHWC), size):
            images = pixels_NHWC[start : start + size]
            padded = np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])
            try:
                found = session.run(names, {self._images.name: self._images.feed(padded)})
            except Exception as error:  # onnxruntime's own kinds
                raise UserError(f"--onnx {self._path}: fails on images: {_first_line(error)}") from error
            parts.append([np.asarray(one)[: len(images)] for one in found])
        return {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(names)}

    def _embedding(self, model: ForeignModel, output: str, sample: Pixels) -> tuple[str, int, bool, str]:
        """Tensor (empty for the logits), width, whether it is pooled, and what a person should know."""
        if model.embedding:
            outputs.check_embedding(model.embedding, self._model.graph)
        name = model.embedding or outputs.find_embedding(self._model.graph, output)
        shape = self._shape(name, sample) if name else ()
        if len(shape) in (2, 4):
            how = "said so" if model.embedding else "what the last product multiplies"
            pooled = ", the mean over the image" if len(shape) == 4 and shape[2:] != (1, 1) else ""
            return name, shape[1], len(shape) == 4, f"embedding: {name}, {shape[1]} numbers ({how}{pooled})"
        if model.embedding:
            raise UserError(
                f"--embedding {name}: {['N', *shape[1:]]} for N images; it must have two dimensions, or four with the "
                "image's last"
            )
        note = "embedding: the logits themselves, for no layer before them was found; --embedding TENSOR names one"
        return "", len(model.classes), False, note

    def _shape(self, tensor: str, sample: Pixels) -> Sequence[int]:
        """Of a tensor inside the graph, for some images."""
        import onnx

        opened = onnx.ModelProto()
        opened.CopyFrom(self._model)
        if tensor not in {one.name for one in opened.graph.output}:
            opened.graph.output.append(onnx.ValueInfoProto(name=tensor))
        found = self._run(sample[:1], _session(opened.SerializeToString(), self._path, 1))[tensor]
        return tuple(found.shape)

    def _check_batch(self, sample: Pixels) -> None:
        """Raises UserError where several images at once have other answers than one by one."""
        images = np.concatenate([sample, sample])[: max(2, len(sample))]
        expected = self.logits(images, 1)
        why = "other answers"
        try:
            runtime = Runtime(wrap(self._model, self._plan, 1.0).SerializeToString(), 1, provider="cpu")
            together = runtime.run_batch(images).logits
            alone = np.concatenate([runtime.run_batch(image[None]).logits for image in images])
            bound = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
            if together.shape == expected.shape and np.abs(together - alone).max() <= bound:
                return
        except Exception as error:  # onnxruntime's own kinds
            why = _first_line(error)
        fixed = f"its batch is fixed at {self._images.batch} and" if self._images.batch else "it"
        raise UserError(
            f"--onnx {self._path}: {fixed} cannot take several images at once ({why}); export it with a dynamic batch"
        )


def _session(model: str | bytes, path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds
        raise UserError(f"--onnx {path}: onnxruntime cannot run it: {_first_line(error)}") from error


def _origin(path: Path) -> Origin:
    _, *data = files_of(path)
    return Origin(
        form="onnx",
        file=path.name,
        sha256=sha256_file(path),
        size_bytes=sum(one.stat().st_size for one in (path, *data)),
        data={one.name: sha256_file(one) for one in data},
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
