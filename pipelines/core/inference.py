"""A model package at work: bytes in, logits, probabilities and embeddings out.

Evaluation and the online classifier use this one class, so that what was measured is what serves.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import IntegrityError, PlatformError, UserError
from pipelines.core.model_package import ModelPackage
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import preprocess
from pipelines.core.shared_weights import shared

INPUT = "pixels_NHWC"
OUTPUTS = ("logits", "probabilities", "embedding")
_NAMES = list(OUTPUTS)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_MAX_BUFFERS = 8
"""Batch sizes whose input stays allocated on a GPU, a thread: 64 images of 224 px take 10 MB."""

logger = logging.getLogger("darkroom.weights")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Answers to N images."""

    logits: NDArray[np.float32]
    """[N, num classes], before the temperature."""
    probabilities: NDArray[np.float32]
    """[N, num classes], after the temperature."""
    embedding: NDArray[np.float32]
    """[N, embedding_dim]."""

    def part(self, start: int, stop: int) -> Outputs:
        """Those of some images, as views."""
        rows = slice(start, stop)
        return Outputs(logits=self.logits[rows], probabilities=self.probabilities[rows], embedding=self.embedding[rows])

    def copy(self) -> Outputs:
        """The same in memory of its own."""
        return Outputs(
            logits=self.logits.copy(), probabilities=self.probabilities.copy(), embedding=self.embedding.copy()
        )

    @property
    def nbytes(self) -> int:
        return self.logits.nbytes + self.probabilities.nbytes + self.embedding.nbytes

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS})


class Runtime:
    """An ONNX file with the house's inputs and outputs, in a session. Safe to call from several threads."""

    def __init__(
        self,
        model: bytes,
        threads: int = 1,
        *,
        provider: str = "auto",
        batch_size: int = 64,
        weights: Path | None = None,
    ) -> None:
        """`provider` is `cpu`, `cuda`, or `auto` (CUDA where this machine has a GPU and the runtime for it). On a CPU,
        `weights` is the folder of `core.shared_weights`: processes with the same one share their memory.

        Raises PlatformError where the runtime falls back to another provider, IntegrityError for other inputs or
        outputs than ours.
        """
        self.provider = _choose_provider() if provider == "auto" else provider
        self.batch_size = batch_size
        optimized = shared(model, weights) if weights is not None and self.provider == "cpu" else None
        self._session = _open_shared(optimized, threads) or _open_session(model, self.provider, threads)
        self._bound = threading.local()
        self.num_classes, self.embedding_dim = _check_contract(self._session)

    def run_batch(self, pixels_NHWC: Pixels) -> Outputs:  # noqa: N803
        """Answers to uint8 [N, H, W, 3] in one run of the model."""
        if self.provider == "cpu":
            logits, probabilities, embedding = self._session.run(_NAMES, {INPUT: pixels_NHWC})
        else:
            if not hasattr(self._bound, "run"):  # a binding is one thread's
                self._bound.run = BoundRun(self._session, self.provider)
            logits, probabilities, embedding = self._bound.run(pixels_NHWC)
        return Outputs(logits=logits, probabilities=probabilities, embedding=embedding)

    def run(self, num_images: int, pixels_of: Callable[[int], Pixels]) -> Outputs:
        """Answers to images 0..N-1, in batches of at most `batch_size`: memory is bounded whatever N is."""
        batches: list[Outputs] = []
        for start in range(0, num_images, self.batch_size):
            positions = range(start, min(start + self.batch_size, num_images))
            batches.append(self.run_batch(np.stack([pixels_of(position) for position in positions])))
        if not batches:
            empty = np.zeros((0, self.num_classes), np.float32)
            return Outputs(logits=empty, probabilities=empty, embedding=np.zeros((0, self.embedding_dim), np.float32))
        return Outputs.joined(batches)


class BoundRun:
    """Runs of a session by ONNX Runtime's IO binding: the input lies in a buffer of the device, into which the next
    batch of the same size is written, and outputs stay there until all are computed. Belongs to one thread.
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session, self._device = session, device
        self._inputs: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, pixels_NHWC: Pixels) -> list[NDArray[np.float32]]:  # noqa: N803
        """The outputs, in the order of OUTPUTS."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT, self._on_device(np.ascontiguousarray(pixels_NHWC)))
        for name in OUTPUTS:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        found: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return found

    def _on_device(self, pixels: Pixels) -> Any:
        import onnxruntime

        shape = pixels.shape
        if shape in self._inputs:
            self._inputs[shape].update_inplace(pixels)
        else:
            self._inputs[shape] = onnxruntime.OrtValue.ortvalue_from_numpy(pixels.copy(), self._device, 0)
            if len(self._inputs) > _MAX_BUFFERS:
                self._inputs.popitem(last=False)
        self._inputs.move_to_end(shape)
        return self._inputs[shape]


class Classifier:
    """One variant of a package at work. Safe to call from several threads."""

    def __init__(
        self,
        package: ModelPackage,
        variant: str | None = None,
        threads: int = 1,
        *,
        provider: str = "auto",
        batch_size: int = 64,
        weights: Path | None = None,
    ) -> None:
        """Raises UserError for an unknown variant, else what `Runtime` raises."""
        self.package = package
        self.variant = variant or package.variant
        if self.variant not in package.variants:
            raise UserError(f"variant {self.variant!r}: {package.folder} has {', '.join(sorted(package.variants))}")
        model = package.read(package.variants[self.variant].file)
        self._runtime = Runtime(model, threads, provider=provider, batch_size=batch_size, weights=weights)
        if self._runtime.num_classes != len(package.class_names):
            raise IntegrityError(
                f"{package.folder}: {self._runtime.num_classes} logits for {len(package.class_names)} class names"
            )

    @property
    def provider(self) -> str:
        """`cpu` or `cuda`."""
        return self._runtime.provider

    @property
    def embedding_dim(self) -> int:
        return self._runtime.embedding_dim

    def predict_bytes(self, images: Sequence[bytes]) -> Outputs:
        """Answers to encoded images. Raises ImageError for the first one that is refused."""
        spec = self.package.preprocessing
        return self._runtime.run(len(images), lambda position: preprocess(images[position], spec))

    def predict_batch(self, pixels_NHWC: Pixels) -> Outputs:  # noqa: N803
        """Answers to preprocessed images, uint8 [N, H, W, 3], in one run of the model."""
        return self._runtime.run_batch(pixels_NHWC)

    def predict_pixels(self, pixels_NHWC: Pixels) -> Outputs:  # noqa: N803
        """Answers to preprocessed images, uint8 [N, H, W, 3]."""
        return self._runtime.run(len(pixels_NHWC), lambda position: pixels_NHWC[position])


def _choose_provider() -> str:
    import onnxruntime

    has_gpu = Path("/proc/driver/nvidia/version").exists()
    return "cuda" if has_gpu and _PROVIDERS["cuda"] in onnxruntime.get_available_providers() else "cpu"


def _open_shared(optimized: Path | None, threads: int) -> Any:
    """None where there is none, or the runtime does not take what it has written itself: the package's bytes serve."""
    if optimized is None:
        return None
    try:
        return _open_session(optimized, "cpu", threads)
    except Exception as error:  # the runtime's have no base of their own
        logger.warning("shared weights do not open", extra={"file": str(optimized), "reason": str(error)[:500]})
        return None


def _open_session(model: bytes | Path, provider: str, threads: int) -> Any:
    """`model` is a path where the graph is optimized already."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads take the core from whoever shares it: preprocessing, the event loop, other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if provider == "cuda":
        onnxruntime.preload_dlls()
    if isinstance(model, Path):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(given, options, providers=[_PROVIDERS[provider]])
    # The runtime falls back to the CPU with no more than a log line.
    if session.get_providers()[0] != _PROVIDERS[provider]:
        raise PlatformError(
            f"onnxruntime runs on {session.get_providers()[0]}, asked for {_PROVIDERS[provider]}: install the CUDA "
            "libraries it needs, or choose the CPU"
        )
    return session


def _check_contract(session: Any) -> tuple[int, int]:
    """Number of classes and width of the embedding."""
    inputs = [(one.name, one.type) for one in session.get_inputs()]
    outputs = {one.name: one.shape for one in session.get_outputs()}
    if inputs != [(INPUT, "tensor(uint8)")] or set(outputs) != set(OUTPUTS):
        raise IntegrityError(
            f"model with inputs {inputs} and outputs {sorted(outputs)}, where {INPUT} → {OUTPUTS} is ours"
        )
    return outputs["logits"][-1], outputs["embedding"][-1]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The golden set on this node."""

    num_images: int
    max_logit_difference: float
    tolerance: float
    """The variant's on this provider, times the largest |logit| (at least 1)."""


def prove(classifier: Classifier) -> Proof:
    """Run the golden images through the serving path and compare with what the package says.

    Raises IntegrityError where a logit is off by more than the tolerance or an answer has changed beyond a tie.
    """
    package = classifier.package
    expected = package.golden_logits(classifier.variant)
    images = [package.read(image.file) for image in package.golden]
    found = classifier.predict_bytes(images).logits
    tolerance = package.variants[classifier.variant].tolerances[classifier.provider] * max(1.0, np.abs(expected).max())
    difference = np.abs(found - expected).max(axis=1)
    if not np.isfinite(found).all() or (difference > tolerance).any():
        worst = int(np.argmax(np.where(np.isfinite(difference), difference, np.inf)))
        raise IntegrityError(
            f"{package.folder / package.golden[worst].file}: {classifier.variant} on {classifier.provider} is "
            f"{difference[worst]:.3g} from the package's logits; {tolerance:.3g} is allowed"
        )
    changed = changed_answers(expected, found, tolerance)
    if changed.size:
        raise IntegrityError(
            f"{package.folder / package.golden[changed[0]].file}: {classifier.variant} answers "
            f"{package.class_names[int(found[changed[0]].argmax())]} where the package says "
            f"{package.class_names[int(expected[changed[0]].argmax())]}"
        )
    return Proof(num_images=len(images), max_logit_difference=float(difference.max()), tolerance=float(tolerance))


def changed_answers(expected: NDArray[np.float32], found: NDArray[np.float32], tie: float) -> NDArray[np.intp]:
    """Rows whose answer differs although it was no tie: `expected` prefers its own by more than `tie`."""
    rows = np.arange(len(expected))
    answer, other = expected.argmax(axis=1), found.argmax(axis=1)
    margin = expected[rows, answer] - expected[rows, other]
    changed: NDArray[np.intp] = np.flatnonzero((answer != other) & (margin > tie))
    return changed
