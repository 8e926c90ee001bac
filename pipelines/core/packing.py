"""A model package in the making: variants proved and judged on the same images, a golden set, the seal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.core import golden, model_package, variants
from pipelines.core.calibration import fit_temperature
from pipelines.core.errors import GateRejected, SourceError
from pipelines.core.foreign import Origin
from pipelines.core.inference import Classifier, Runtime, changed_answers, prove
from pipelines.core.model_package import Description, GoldenImage, Lineage, ModelPackage, Parity, Variant
from pipelines.core.pixelset import Pixels, Split
from pipelines.core.ports import Quantizer
from pipelines.core.preprocessing import PreprocessingSpec, preprocess
from pipelines.core.recipe import Export
from pipelines.core.values import Exported
from pipelines.core.variants import Judged

MAX_IMAGES = 5000
"""Images that judge, in the order of their digests: enough, and bounded in time."""
UNLABELLED = -1
"""The label of an image whose class is unknown, or unknown to the model: it proves, and judges nothing."""
_TIE = 1e-4
"""Logits closer than this share of the largest are a tie: float32 sums in another order differ by as much."""
_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
# Sums in another order (fp32), TF32 products (cuda), instruction sets that saturate differently (int8).
_TOLERANCES = {"fp32": {"cpu": 1e-3, "cuda": 2e-2}, "int8": {"cpu": 0.1, "cuda": 0.1}}


@dataclass(kw_only=True)
class Packing:
    """What is known so far of a package. First `add_fp32`, then perhaps `add_int8`, then `seal`."""

    folder: Path
    """Of the package; there, and empty."""
    name: str
    class_names: tuple[str, ...]
    spec: PreprocessingSpec
    held_out: Split
    """Decoded images that prove and judge; those with a label below 0 only prove."""
    read_image: Callable[[str], bytes]
    bounds: Export
    threads: int
    temperatures: dict[str, float] = field(default_factory=dict)
    runtimes: dict[str, Runtime] = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)
    decisions: dict[str, str] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    parity: Parity | None = None
    _fp32: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        self._labelled = np.flatnonzero(self.held_out.labels >= 0)
        self._labels = self.held_out.labels[self._labelled]

    def add_fp32(self, expected: NDArray[np.float32], write: Callable[[float, Path], int]) -> None:
        """Make the graph and compare it with `expected`, the original's logits [N, C] of the held-out images.

        `write` makes the file with a temperature inside and says its opset. Raises GateRejected where they differ.
        """
        self.temperatures["fp32"] = fit_temperature(expected[self._labelled], self._labels)
        path = self.folder / _FILES["fp32"]
        opset = write(self.temperatures["fp32"], path)
        self.runtimes["fp32"] = Runtime(path.read_bytes(), self.threads, provider="cpu")
        found = self._logits(self.runtimes["fp32"])
        self.parity = check_parity(expected, found, self.bounds.max_logit_difference, opset)
        self.judged["fp32"] = variants.judge_fp32(found[self._labelled], self._labels)
        self.decisions["fp32"] = "passed"
        self._fp32 = found

    def add_int8(self, quantizer: Quantizer, calibration_pixels: Callable[[], Pixels]) -> None:
        """Quantize and judge; what does not pass is not in the package, and the reason is.

        Raises GateRejected where int8 is required and out of its bounds.
        """
        assert self._fp32 is not None
        bounds, held_out = self.bounds, self.held_out
        if not bounds.int8:
            self.decisions["int8"] = "not asked for: export.int8 = false"
            return
        if len(self._labels) < bounds.min_int8_images:
            self.decisions["int8"] = (
                f"not made: {len(self._labels)} validation images, {bounds.min_int8_images} are needed to judge it"
            )
            return
        path = self.folder / _FILES["int8"]
        if not quantizer.quantize(self.folder / _FILES["fp32"], path, calibration_pixels()):
            self.decisions["int8"] = "not made: there is no convolution to quantize"
            return
        logits = self._logits(Runtime(path.read_bytes(), self.threads, provider="cpu"))[self._labelled]
        judged = variants.judge_int8(self._fp32[self._labelled], logits, self._labels, bounds)
        self.judged["int8"] = judged
        if not judged.passed and bounds.require_int8:
            raise GateRejected(f"export: int8 is out of its bounds: {judged.reason}; nothing is registered")
        if not judged.passed:
            self.decisions["int8"] = f"refused: {judged.reason}"
            path.unlink()
            return
        self.decisions["int8"] = "passed"
        self.temperatures["int8"] = fit_temperature(logits, held_out.labels[self._labelled])
        quantizer.set_temperature(path, self.temperatures["int8"])
        self.runtimes["int8"] = Runtime(path.read_bytes(), self.threads, provider="cpu")

    def seal(self, lineage: Lineage, report: Path, origin: Origin | None = None) -> Exported:
        """Choose what serves, write the golden set and package.json, and prove every variant as anyone would load it.

        What was decided, and why, goes to `report` as JSON.
        """
        assert self.parity is not None
        for name in self.runtimes:
            model = (self.folder / _FILES[name]).read_bytes()
            self.latency_ms[name] = variants.measure_latency_ms(model, self.held_out.pixels)
        serving, why = variants.choose(self.judged, self.latency_ms, self.bounds.latency_budget_ms)
        self.decisions[serving] = f"serves: {why}"
        description = Description(
            name=self.name,
            class_names=self.class_names,
            variant=serving,
            variants={
                name: Variant(file=_FILES[name], temperature=self.temperatures[name], tolerances=_TOLERANCES[name])
                for name in self.runtimes
            },
            golden=tuple(self._write_golden()),
            parity=self.parity,
            lineage=lineage,
            embedding_dim=self.runtimes["fp32"].embedding_dim,
            decisions=self.decisions,
            origin=origin,
        )
        package = model_package.write(self.folder, description, self.spec)
        _prove_all(package, self.threads)
        self._write_report(report)
        return Exported(variant=serving, variants=tuple(sorted(self.runtimes)), temperature=self.temperatures[serving])

    def _logits(self, runtime: Runtime) -> NDArray[np.float32]:
        return runtime.run(len(self.held_out), self.held_out.pixels.image).logits

    def _write_golden(self) -> list[GoldenImage]:
        """Bytes, pixel hashes and every variant's logits of the golden images."""
        (self.folder / "golden").mkdir()
        cases = list(golden.choose(self.held_out.ids, self.held_out.labels.tolist(), self.read_image))
        if not cases:
            raise SourceError("no image for the golden set")
        cases += golden.special_cases(cases[0][2])
        images, pixels = [], []
        for number, (case, extension, data) in enumerate(cases):
            file = f"golden/{number:03d}-{case}.{extension}"
            (self.folder / file).write_bytes(data)
            pixels.append(preprocess(data, self.spec))
            images.append(GoldenImage(file=file, case=case, pixels_sha256=model_package.pixels_sha256(pixels[-1])))
        for name, runtime in self.runtimes.items():
            logits = runtime.run(len(pixels), lambda position: pixels[position]).logits
            np.save(self.folder / model_package.golden_logits_file(name), logits)
        return images

    def _write_report(self, path: Path) -> None:
        assert self.parity is not None
        names: Sequence[str] = sorted({*self.decisions, *self.judged})
        table = {
            name: {
                "decision": self.decisions[name],
                "temperature": self.temperatures.get(name),
                "judged": asdict(self.judged[name]) if name in self.judged else None,
            }
            for name in names
        }
        table["fp32"]["parity"] = asdict(self.parity)
        path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def check_parity(expected: NDArray[np.float32], found: NDArray[np.float32], bound: float, opset: int) -> Parity:
    """The certificate of logits [N, C] against the original's. Raises GateRejected where they are out of bounds."""
    difference = float(np.abs(found - expected).max())
    changed = changed_answers(expected, found, _TIE * max(1.0, float(np.abs(expected).max())))
    if not difference <= bound or changed.size:
        raise GateRejected(
            f"export: the ONNX graph is up to {difference:.3g} from the network's logits ({bound:.3g} is allowed) and "
            f"changes {changed.size} of {len(expected)} answers; nothing is registered"
        )
    return Parity(
        num_images=len(expected),
        max_logit_difference=difference,
        bound=bound,
        num_changed_answers=0,
        opset=opset,
    )


def _prove_all(package: ModelPackage, threads: int) -> None:
    for name in package.variants:
        prove(Classifier(package, name, threads, provider="cpu"))
