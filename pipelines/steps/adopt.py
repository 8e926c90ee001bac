"""`export` of an import: a model that was trained elsewhere becomes a model package, proved against the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.core import manifest
from pipelines.core.model_package import Lineage
from pipelines.core.packing import UNLABELLED, Packing
from pipelines.core.pixelset import DecodedImages, Pixels, Split
from pipelines.core.ports import ForeignNetwork, Quantizer
from pipelines.core.preprocessing import PreprocessingSpec, preprocess
from pipelines.core.recipe import Recipe
from pipelines.core.values import Exported

MAX_IMAGES = 1024
"""Decoded images that prove, calibrate and judge: 150 MB at 224 px, and enough for the recipe's bounds of int8."""
_SAMPLE = 8
"""Images on which is seen what a model's outputs mean."""

OpenNetwork = Callable[[Callable[[PreprocessingSpec], Pixels]], ForeignNetwork]
"""Opens the model; it may ask for some images' pixels by the spec that it finds."""


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Images of the snapshot, by id."""

    ids: list[str]
    labels: list[str | None]
    """Class names of those that may calibrate."""


def adopt(
    open_network: OpenNetwork,
    snapshot: Path,
    read_image: Callable[[str], bytes],
    recipe: Recipe,
    lineage: Lineage,
    quantizer: Quantizer,
    out: Path,
) -> tuple[Exported, dict[str, float]]:
    """Write package/, variants.json and notes.json to `out`; also return each variant's latency in ms.

    The temperature is fitted on validation images of classes that the model knows, and is 1 without them. Raises
    UserError for a model that is not understood, GateRejected where the graph does not answer as the original does.
    """
    chosen = _choose(snapshot)

    def pixels_of(spec: PreprocessingSpec, num_images: int = _SAMPLE) -> Pixels:
        return np.stack([preprocess(read_image(image_id), spec) for image_id in chosen.ids[:num_images]])

    network = open_network(pixels_of)
    pixels = pixels_of(network.spec, MAX_IMAGES)
    packing = Packing(
        folder=out / "package",
        name=recipe.name,
        class_names=network.class_names,
        spec=network.spec,
        held_out=_held_out(chosen, pixels, network.class_names),
        read_image=read_image,
        bounds=recipe.export,
        threads=recipe.training.threads,
    )
    packing.folder.mkdir()
    packing.add_fp32(network.logits(pixels, packing.threads), network.write)
    calibration = np.linspace(0, len(pixels) - 1, min(recipe.export.num_calibration_images, len(pixels)))
    packing.add_int8(quantizer, lambda: pixels[calibration.astype(np.int64)])
    exported = packing.seal(lineage, out / "variants.json", network.origin)
    notes = [*network.notes, _temperature_note(packing)]
    (out / "notes.json").write_text(json.dumps(notes, indent=1))
    return exported, packing.latency_ms


def _temperature_note(packing: Packing) -> str:
    num_fitted = int((packing.held_out.labels >= 0).sum())
    how = f"fitted on {num_fitted:,} validation images" if num_fitted else "no labelled validation image to fit it on"
    return f"temperature: {packing.temperatures['fp32']:g}, {how}"


def _choose(snapshot: Path) -> _Chosen:
    """Validation images, in the order of their digests; where there are none, others prove but may not calibrate."""
    rows = manifest.read(snapshot, ["image_id", "label", "split"]).to_pylist()
    val = [row for row in rows if row["split"] == "val"]
    found = (val or [row for row in rows if row["split"] == "test"] or rows)[:MAX_IMAGES]
    return _Chosen(ids=[row["image_id"] for row in found], labels=[row["label"] if val else None for row in found])


def _held_out(chosen: _Chosen, pixels_NHWC: Pixels, class_names: tuple[str, ...]) -> Split:  # noqa: N803
    positions: dict[str | None, int] = {name: label for label, name in enumerate(class_names)}
    return Split(
        images=DecodedImages([pixels_NHWC]),
        labels=np.array([positions.get(label, UNLABELLED) for label in chosen.labels], np.int64),
        weights=np.ones(len(chosen.ids), np.float32),
        ids=chosen.ids,
    )
