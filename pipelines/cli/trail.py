"""`darkroom trace`: from a model version, or from what it answered, back to the files that taught it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipelines.cli.execute import storage_of
from pipelines.cli.model_names import find_version
from pipelines.core import manifest, package_store
from pipelines.core.datasets import snapshot_key
from pipelines.core.errors import NotFound
from pipelines.core.results import to_json
from pipelines.core.storage import Storage

if TYPE_CHECKING:
    from pipelines.core.model_package import ModelPackage
    from pipelines.settings import Settings


def find_trail(settings: Settings, text: str, *, with_images: bool) -> dict[str, Any]:
    """Everything known of a version's making. Raises NotFound where a part is gone, naming it."""
    storage = storage_of(settings)
    version = find_version(settings, text)
    package = package_store.get(storage, version.package_digest, settings.home / "cache", verify=False)
    recipe = json.loads(storage.read(package_store.lineage_key(package.digest, "recipe.json")))
    trail = {
        "model": version.model,
        "version": version.version,
        "aliases": list(version.aliases),
        "package_digest": package.digest,
        "snapshot_id": package.lineage.snapshot_id,
        "recipe": package.lineage.recipe_digest,
        "code": package.lineage.code_digest,
        "run": package.lineage.run_id,
        "tracking_run_id": version.tracking_run_id,
        "verdict": version.tags.get("verdict", ""),
        "reason": version.tags.get("reason", ""),
        "registered_at": version.created_at,
        "source": recipe["source"]["uri"],
        "recipe_keys": recipe,
    }
    if package.origin is not None:
        trail["origin"] = to_json(package.origin)
    if with_images:
        trail["images"] = _training_images(settings, storage, package)
        trail["num_images"] = len(trail["images"])
    return trail


def answered_by(settings: Settings, request_id: str) -> str:
    """Digest of the package that answered a request, by the prediction log. Raises NotFound."""
    from pipelines.core.predictions import Selection, newest

    selection = Selection(request_id=request_id)
    for row in newest(storage_of(settings), selection, limit=1, columns=["at", "package_digest"]):
        return str(row["package_digest"])
    raise NotFound(not_logged(settings, request_id))


def not_logged(settings: Settings, request_id: str) -> str:
    """Why a request may not be in the prediction log."""
    return (
        f"request {request_id!r} is not in the prediction log of {settings.store_uri}: {settings.log_predictions:.0%} "
        "of all answers are chosen for it (DARKROOM_LOG_PREDICTIONS), and it takes five minutes to get there "
        "(`darkroom predictions collect` is quicker)"
    )


def _training_images(settings: Settings, storage: Storage, package: ModelPackage) -> list[dict[str, str]]:
    """image_id, label and source_uri of each image of the training split, by source_uri; none for an import."""
    import pyarrow.compute as pc

    if package.origin is not None:
        return []

    cache = settings.home / "cache"
    learned = manifest.read(
        storage.local(package_store.lineage_key(package.digest, "training_set.parquet"), cache), ["image_id", "split"]
    )
    learned = learned.filter(pc.equal(learned["split"], "train"))["image_id"].combine_chunks()
    table = manifest.read(
        storage.local(snapshot_key(package.lineage.snapshot_id), cache), ["source_uri", "image_id", "label"]
    )
    rows: list[dict[str, str]] = table.filter(pc.is_in(table["image_id"], learned)).sort_by("source_uri").to_pylist()
    return rows
