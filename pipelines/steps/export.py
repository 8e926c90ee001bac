"""`export`: trained weights to a model package whose variants are proved and measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.core import golden, model_package, pixelset, variants
from pipelines.core.calibration import fit_temperature
from pipelines.core.errors import GateRejected, SourceError
from pipelines.core.inference import Classifier, Runtime, changed_answers, prove
from pipelines.core.model_package import Description, GoldenImage, Lineage, ModelPackage, Parity, Variant
from pipelines.core.pixelset import DecodedImages, Pixels, Rows, Split
from pipelines.core.ports import Quantizer
from pipelines.core.preprocessing import PreprocessingSpec, preprocess
from pipelines.core.recipe import Recipe
from pipelines.core.values import Exported
from pipelines.core.variants import Judged
from pipelines.training import export as exporter

MAX_IMAGES = 5000
"""Validation images that judge, in the order of their digests: enough, and bounded in time."""
_TIE = 1e-4
"""Logits closer than this share of the largest are a tie: float32 sums in another order differ by as much."""
_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
# Sums in another order (fp32), TF32 products (cuda), instruction sets that saturate differently (int8).
_TOLERANCES = {"fp32": {"cpu": 1e-3, "cuda": 2e-2}, "int8": {"cpu": 0.1, "cuda": 0.1}}


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Stored images, and how serving makes pixels of them."""

    spec: PreprocessingSpec
    read: Callable[[str], bytes]

    def pixels(self, split: Split, rows: Rows) -> Pixels:
        """uint8 [len(rows), H, W, 3] as serving makes them, whatever way the split is stored for training."""
        if isinstance(split.images, DecodedImages) and split.images.sizes is None:
            return split.images.rows(rows)
        return np.stack([preprocess(self.read(split.ids[int(row)]), self.spec) for row in rows])


@dataclass(kw_only=True)
class _Work:
    """What is known so far of the package in the making."""

    recipe: Recipe
    folder: Path
    train: Split
    held_out: Split
    images: _Images
    threads: int
    temperatures: dict[str, float] = field(default_factory=dict)
    runtimes: dict[str, Runtime] = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)
    decisions: dict[str, str] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)


def export(
    trained: Path,
    prepared: Path,
    recipe: Recipe,
    lineage: Lineage,
    quantizer: Quantizer,
    read_image: Callable[[str], bytes],
    out: Path,
) -> tuple[Exported, dict[str, float]]:
    """Write package/ and variants.json to `out`; also return each variant's latency in ms.

    Latencies differ between equal runs, so they are in no file. Raises GateRejected where the fp32 graph does not match
    the network, or where int8 is required and out of its bounds.
    """
    data = pixelset.load(prepared)
    images = _Images(spec=PreprocessingSpec.from_json(data.preprocessing), read=read_image)
    train = data.splits["train" if data.embedded is None else pixelset.CALIBRATION]
    work = _Work(
        recipe=recipe,
        folder=out / "package",
        train=train,
        held_out=_held_out(data.splits["val"], train, images),
        images=images,
        threads=recipe.training.threads,
    )
    work.folder.mkdir()
    parity, fp32 = _export_fp32(work, trained / "weights.pt", len(data.class_names))
    _export_int8(work, fp32, quantizer)
    for name in work.runtimes:
        model = (work.folder / _FILES[name]).read_bytes()
        work.latency_ms[name] = variants.measure_latency_ms(model, work.held_out.pixels)
    serving, why = variants.choose(work.judged, work.latency_ms, recipe.export.latency_budget_ms)
    work.decisions[serving] = f"serves: {why}"
    golden_images = _write_golden(work)
    description = Description(
        name=recipe.name,
        class_names=data.class_names,
        variant=serving,
        variants={
            name: Variant(file=_FILES[name], temperature=work.temperatures[name], tolerances=_TOLERANCES[name])
            for name in work.runtimes
        },
        golden=tuple(golden_images),
        parity=parity,
        lineage=lineage,
        embedding_dim=work.runtimes["fp32"].embedding_dim,
        decisions=work.decisions,
    )
    package = model_package.write(work.folder, description, images.spec)
    _prove_all(package, work.threads)
    _write_variants(out / "variants.json", work, parity)
    exported = Exported(variant=serving, variants=tuple(sorted(work.runtimes)), temperature=work.temperatures[serving])
    return exported, work.latency_ms


def _held_out(val: Split, train: Split, images: _Images) -> Split:
    """Validation images; where there are none, training images have to do."""
    split = val if len(val) else train
    num_images = min(MAX_IMAGES, len(split))
    if split is val:
        pixels = split.pixels.first(num_images)
    else:
        pixels = DecodedImages([images.pixels(split, np.arange(num_images))])
    return Split(
        images=pixels,
        labels=split.labels[:num_images],
        weights=split.weights[:num_images],
        ids=split.ids[:num_images],
    )


def _export_fp32(work: _Work, weights: Path, num_classes: int) -> tuple[Parity, NDArray[np.float32]]:
    """Export, compare with the network, and return the certificate and the graph's logits."""
    recipe, held_out = work.recipe, work.held_out
    network = exporter.load_network(weights, recipe, num_classes)
    expected = exporter.reference_logits(network, held_out.pixels, work.threads)
    work.temperatures["fp32"] = fit_temperature(expected, held_out.labels)
    path = work.folder / _FILES["fp32"]
    exporter.export_onnx(network, work.temperatures["fp32"], work.images.spec, path)
    work.runtimes["fp32"] = Runtime(path.read_bytes(), work.threads, provider="cpu")
    found = _logits(work.runtimes["fp32"], held_out)
    work.judged["fp32"] = variants.judge_fp32(found, held_out.labels)
    work.decisions["fp32"] = "passed"
    return check_parity(expected, found, recipe.export.max_logit_difference), found


def check_parity(expected: NDArray[np.float32], found: NDArray[np.float32], bound: float) -> Parity:
    """The certificate of logits [N, C] against the network's. Raises GateRejected where they are out of bounds."""
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
        opset=exporter.OPSET,
    )


def _export_int8(work: _Work, fp32: NDArray[np.float32], quantizer: Quantizer) -> None:
    """Quantize and judge; what does not pass is not in the package, and the reason is."""
    bounds, held_out = work.recipe.export, work.held_out
    if not bounds.int8:
        work.decisions["int8"] = "not asked for: export.int8 = false"
        return
    if len(held_out) < bounds.min_int8_images:
        work.decisions["int8"] = (
            f"not made: {len(held_out)} validation images, {bounds.min_int8_images} are needed to judge it"
        )
        return
    path = work.folder / _FILES["int8"]
    chosen = np.linspace(0, len(work.train) - 1, min(bounds.num_calibration_images, len(work.train))).astype(np.int64)
    if not quantizer.quantize(work.folder / _FILES["fp32"], path, work.images.pixels(work.train, chosen)):
        work.decisions["int8"] = "not made: there is no convolution to quantize"
        return
    logits = _logits(Runtime(path.read_bytes(), work.threads, provider="cpu"), held_out)
    judged = variants.judge_int8(fp32, logits, held_out.labels, bounds)
    work.judged["int8"] = judged
    if not judged.passed and bounds.require_int8:
        raise GateRejected(f"export: int8 is out of its bounds: {judged.reason}; nothing is registered")
    if not judged.passed:
        work.decisions["int8"] = f"refused: {judged.reason}"
        path.unlink()
        return
    work.decisions["int8"] = "passed"
    work.temperatures["int8"] = fit_temperature(logits, held_out.labels)
    quantizer.set_temperature(path, work.temperatures["int8"])
    work.runtimes["int8"] = Runtime(path.read_bytes(), work.threads, provider="cpu")


def _logits(runtime: Runtime, split: Split) -> NDArray[np.float32]:
    return runtime.run(len(split), split.pixels.image).logits


def _write_golden(work: _Work) -> list[GoldenImage]:
    """Bytes, pixel hashes and every variant's logits of the golden images."""
    (work.folder / "golden").mkdir()
    cases = list(golden.choose(work.held_out.ids, work.held_out.labels.tolist(), work.images.read))
    if not cases:
        raise SourceError("no image for the golden set")
    cases += golden.special_cases(cases[0][2])
    images, pixels = [], []
    for number, (case, extension, data) in enumerate(cases):
        file = f"golden/{number:03d}-{case}.{extension}"
        (work.folder / file).write_bytes(data)
        pixels.append(preprocess(data, work.images.spec))
        images.append(GoldenImage(file=file, case=case, pixels_sha256=model_package.pixels_sha256(pixels[-1])))
    for name, runtime in work.runtimes.items():
        logits = runtime.run(len(pixels), lambda position: pixels[position]).logits
        np.save(work.folder / model_package.golden_logits_file(name), logits)
    return images


def _prove_all(package: ModelPackage, threads: int) -> None:
    """The package as anyone would load it, each variant through the serving path."""
    for name in package.variants:
        prove(Classifier(package, name, threads, provider="cpu"))


def _write_variants(path: Path, work: _Work, parity: Parity) -> None:
    names: Sequence[str] = sorted({*work.decisions, *work.judged})
    table = {
        name: {
            "decision": work.decisions[name],
            "temperature": work.temperatures.get(name),
            "judged": asdict(work.judged[name]) if name in work.judged else None,
        }
        for name in names
    }
    table["fp32"]["parity"] = asdict(parity)
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
