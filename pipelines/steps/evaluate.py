"""Measure the variant that will serve on the snapshot's test images, and seal the final model package."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.core import manifest, model_package
from pipelines.core.errors import UserError
from pipelines.core.inference import Classifier
from pipelines.core.metrics import Metrics, log_softmax, measure
from pipelines.core.ports import Mistake, Pictures
from pipelines.core.results import to_json
from pipelines.core.scoring import score
from pipelines.core.values import Evaluated, Interval

MAX_MISTAKES = 24


def evaluate(
    exported: Path,
    snapshot: Path,
    read_image: Callable[[str], bytes],
    pictures: Pictures,
    out: Path,
    *,
    confidence: float,
    threads: int,
) -> Evaluated:
    """Bytes of the test images (by image_id from `read_image`) go through the serving path, once.

    `exported` is the package without metrics, `snapshot` the snapshot's manifest. Images of classes that the model does
    not know, as a foreign one may not, are left out. Raises UserError for a snapshot without test images.
    """
    package = model_package.load(exported)
    table = manifest.read(snapshot, ["image_id", "label", "split", "source_uri"])
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    if not rows:
        raise UserError("the snapshot has no test images: add images or raise split.test_share")
    positions = {name: label for label, name in enumerate(package.class_names)}
    rows = [row for row in rows if row["label"] in positions]
    image_ids = [row["image_id"] for row in rows]
    labels = np.array([positions[row["label"]] for row in rows], np.int64)

    logits = score(Classifier(package), image_ids, read_image, threads)
    metrics = measure(logits, labels, package.class_names, package.temperature, confidence)

    (out / "metrics.json").write_text(json.dumps(to_json(metrics), indent=1))
    pictures.confusion(out / "confusion.png", metrics.confusion, package.class_names)
    mistakes = worst_mistakes(logits, labels, package.class_names, package.temperature)
    pictures.mistakes(
        out / "mistakes.png",
        [mistake for position, mistake in mistakes],
        [read_image(image_ids[position]) for position, _ in mistakes],
        num_mistakes=int((logits.argmax(axis=1) != labels).sum()),
    )
    final = model_package.with_metrics(package, out / "package", headline(metrics), len(rows))
    return Evaluated(package_digest=final.digest, accuracy=metrics.accuracy, num_images=len(rows))


def headline(metrics: Metrics) -> dict[str, Interval]:
    """The figures that travel in package.json."""
    return {
        "accuracy": metrics.accuracy,
        **{f"top_{k}_accuracy": interval for k, interval in metrics.top_k.items()},
        "nll": metrics.nll,
        "nll_uncalibrated": metrics.nll_uncalibrated,
        "calibration_error": metrics.calibration_error,
        "calibration_error_uncalibrated": metrics.calibration_error_uncalibrated,
    }


def worst_mistakes(
    logits: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str], temperature: float
) -> list[tuple[int, Mistake]]:
    """Positions and answers of the wrong images that the model was surest of, surest first."""
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    probabilities = np.exp(log_softmax(logits[wrong].astype(np.float64) / temperature))
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")[:MAX_MISTAKES]
    return [
        (
            int(wrong[index]),
            Mistake(
                true_class=class_names[labels[wrong[index]]],
                predicted_class=class_names[int(probabilities[index].argmax())],
                probability=float(probabilities[index].max()),
                true_probability=float(probabilities[index, labels[wrong[index]]]),
            ),
        )
        for index in surest
    ]
