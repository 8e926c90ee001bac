"""Images taken through the chain's own steps up to the pixel set: plan, ingest, assemble, accept, snapshot, prepare.

`training_set` needs a feature store; here every image of the snapshot counts alike, which is what that step writes
for a recipe without filters and weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.adapters.pictures import MatplotlibPictures
from pipelines.adapters.quantization import OnnxQuantizer
from pipelines.core import datasets, manifest
from pipelines.core.datasets import STATIC, blob_key
from pipelines.core.model_package import Lineage
from pipelines.core.recipe import Recipe, Source
from pipelines.core.sources import open_source
from pipelines.core.storage import LocalStorage
from pipelines.core.values import Evaluated, Exported, Snapshotted
from pipelines.steps.accept import accept
from pipelines.steps.assemble import assemble
from pipelines.steps.evaluate import evaluate
from pipelines.steps.export import export
from pipelines.steps.ingest import ingest
from pipelines.steps.plan import plan
from pipelines.steps.snapshot import snapshot


@dataclass(frozen=True, kw_only=True)
class ChainData:
    """A snapshot in a store of its own."""

    work: Path
    recipe: Recipe
    storage: LocalStorage
    snapshotted: Snapshotted
    notes: tuple[str, ...]

    @property
    def manifest(self) -> Path:
        return self.work / "snapshot" / "manifest.parquet"

    @property
    def training_set(self) -> Path:
        return self.work / "training_set.parquet"

    def read_image(self, image_id: str) -> bytes:
        return self.storage.read(blob_key(image_id))

    def lineage(self) -> Lineage:
        return Lineage(
            snapshot_id=self.snapshotted.snapshot_id,
            recipe_digest=self.recipe.digest,
            code_digest="benchmark",
            run_id="train_classifier/benchmark",
        )


def take(uri: str, recipe: Recipe, work: Path) -> ChainData:
    """Ingest an undated source whole and snapshot it. Raises what the steps raise."""
    storage = LocalStorage(work / "store")
    source = open_source(Source(uri=str(Path(uri).expanduser().resolve())), home=work)
    planned = plan(source, STATIC, _folder(work, "plan"))
    shards = [_folder(work, f"ingest-{shard}") for shard in range(planned.num_shards)]
    for shard, out in enumerate(shards):
        ingest(work / "plan", shard, storage, out, cache=work / "cache", endpoint_url=None)
    assembled = assemble(planned, shards, _folder(work, "assemble"))
    accept(storage, recipe.name, STATIC, "ingest_images/benchmark", work / "assemble", _folder(work, "accept"))
    head = datasets.read_head(storage, recipe.name)
    found = snapshot(storage, recipe.name, head, "", recipe.split, _folder(work, "snapshot"), work / "cache")
    data = ChainData(
        work=work,
        recipe=recipe,
        storage=storage,
        snapshotted=found,
        notes=(*assembled.notes, *found.warnings),
    )
    _write_training_set(data)
    return data


def _write_training_set(data: ChainData) -> None:
    rows = manifest.read(data.manifest, ["image_id", "label", "split"])
    rows = rows.filter(pc.not_equal(rows.column("split"), manifest.EXCLUDED)).sort_by("image_id")
    weights = pa.array(np.ones(rows.num_rows, np.float32))
    pq.write_table(rows.append_column("weight", weights), data.training_set)


def judge(
    data: ChainData, prepared: Path, trained: Path, recipe: Recipe, out: Path, threads: int
) -> tuple[Exported, Evaluated]:
    """Export what was trained and send the test images' bytes through the serving path."""
    exported, _ = export(
        trained, prepared, recipe, data.lineage(), OnnxQuantizer(), data.read_image, _folder(out, "export")
    )
    evaluated = evaluate(
        out / "export" / "package",
        data.manifest,
        data.read_image,
        MatplotlibPictures(),
        _folder(out, "evaluate"),
        confidence=recipe.gate.confidence,
        threads=threads,
    )
    return exported, evaluated


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
