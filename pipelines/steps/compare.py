"""Score the candidate and the champion now, on the same images that neither has learned from, and judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.core import manifest, model_package
from pipelines.core.inference import Classifier
from pipelines.core.model_package import ModelPackage
from pipelines.core.ports import Withdrawals
from pipelines.core.recipe import Gate, Split
from pipelines.core.scoring import score
from pipelines.core.unseen import COLUMNS, unseen_test_rows
from pipelines.core.values import Compared
from pipelines.core.verdicts import Verdict, against_champion, against_majority


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The version that serves, or served last."""

    version: int
    package: ModelPackage
    snapshot: Path
    """Manifest of the snapshot that it was trained on."""


def compare(
    candidate: Path,
    snapshot: Path,
    champion: Champion | None,
    withdrawals: Withdrawals,
    read_image: Callable[[str], bytes],
    out: Path,
    *,
    gate: Gate,
    split: Split,
    threads: int,
    deploy_unmeasured: bool = False,
) -> Compared:
    """`candidate` is the final package's folder, `snapshot` the manifest it was trained on.

    Content that a person has rolled back from is refused unseen: figures let it pass once, and reality did not. A
    candidate that no test image can measure, as a foreign one may be, is accepted where a person says so.
    Images of classes that neither model knows judge neither. The images judged on, and who was right, go to
    `out`/judged.json.
    """
    package = model_package.load(candidate)
    version = champion.version if champion else None
    if champion and champion.package.content_digest == package.content_digest:
        reason = f"the candidate is champion version {champion.version}"
        return Compared(verdict="same", accepted=True, reason=reason, champion_version=version, num_images=0)
    if withdrawn := withdrawals.find(package.name, package.content_digest):
        reason = (
            f"it is what version {withdrawn.version} is, which was rolled back from, to version "
            f"{withdrawn.returned_to}, at {withdrawn.at[:19]} UTC"
        )
        return Compared(verdict="rolled_back", accepted=False, reason=reason, champion_version=version, num_images=0)
    table = manifest.read(snapshot, COLUMNS)
    if not _measurable(table, package):
        return Compared(
            verdict="unmeasured",
            accepted=deploy_unmeasured,
            reason="no test image is of a class that the model knows, so its accuracy is unknown; class folders with "
            "the names of its classes would tell",
            champion_version=version,
            num_images=0,
        )
    rows = unseen_test_rows(table, manifest.read(champion.snapshot, COLUMNS) if champion else None, split)
    known = {*package.class_names, *(champion.package.class_names if champion else ())}
    rows = rows.filter(pc.is_in(rows["label"], pa.array(sorted(known))))
    hits = _hits(package, rows, read_image, threads)
    if champion:
        others = _hits(champion.package, rows, read_image, threads) if rows.num_rows else hits
        verdict = against_champion(hits, others, champion.version, gate)
    else:
        others = None
        labels = np.unique(np.array(rows["label"].to_pylist()), return_inverse=True)[1]
        verdict = against_majority(hits, labels.astype(np.int64), gate)
    _write(out / "judged.json", rows, hits, others, verdict)
    return Compared(
        verdict=verdict.name,
        accepted=verdict.accepted,
        reason=verdict.reason,
        champion_version=version,
        num_images=rows.num_rows,
    )


def _measurable(snapshot: pa.Table, package: ModelPackage) -> bool:
    labels = set(snapshot.filter(pc.equal(snapshot["split"], "test"))["label"].to_pylist())
    return not labels.isdisjoint(package.class_names)


def _hits(package: ModelPackage, rows: pa.Table, read_image: Callable[[str], bytes], threads: int) -> NDArray[np.bool_]:
    """Whether the package answers with each row's class. Classes match by name: one it does not know is a miss."""
    logits = score(Classifier(package), rows["image_id"].to_pylist(), read_image, threads)
    names = np.array(package.class_names, dtype=object)
    answers = names[logits.argmax(axis=1)] if len(logits) else names[:0]
    return np.asarray(answers == np.array(rows["label"].to_pylist(), dtype=object), dtype=np.bool_)


def _write(
    path: Path, rows: pa.Table, candidate: NDArray[np.bool_], champion: NDArray[np.bool_] | None, verdict: Verdict
) -> None:
    table = {
        "verdict": verdict.name,
        "reason": verdict.reason,
        "image_ids": rows["image_id"].to_pylist(),
        "candidate_right": candidate.tolist(),
        "champion_right": champion.tolist() if champion is not None else None,
    }
    path.write_text(json.dumps(table))
