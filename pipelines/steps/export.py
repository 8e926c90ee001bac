"""`export`: trained weights to a model package whose variants are proved and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.core import pixelset
from pipelines.core.model_package import Lineage
from pipelines.core.packing import MAX_IMAGES, Packing
from pipelines.core.pixelset import DecodedImages, Pixels, Rows, Split
from pipelines.core.ports import Quantizer
from pipelines.core.preprocessing import PreprocessingSpec, preprocess
from pipelines.core.recipe import Recipe
from pipelines.core.values import Exported
from pipelines.training import export as exporter


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
    packing = Packing(
        folder=out / "package",
        name=recipe.name,
        class_names=data.class_names,
        spec=images.spec,
        held_out=_held_out(data.splits["val"], train, images),
        read_image=read_image,
        bounds=recipe.export,
        threads=recipe.training.threads,
    )
    packing.folder.mkdir()
    network = exporter.load_network(trained / "weights.pt", recipe, len(data.class_names))
    packing.add_fp32(
        exporter.reference_logits(network, packing.held_out.pixels, packing.threads),
        lambda temperature, path: exporter.export_onnx(network, temperature, images.spec, path),
    )
    chosen = np.linspace(0, len(train) - 1, min(recipe.export.num_calibration_images, len(train))).astype(np.int64)
    packing.add_int8(quantizer, lambda: images.pixels(train, chosen))
    return packing.seal(lineage, out / "variants.json"), packing.latency_ms


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
