"""The steps that make a model, as the command runs them: results, facts, reuse, and a tracking server that is down."""

from __future__ import annotations

from pathlib import Path

import pytest
from striped_images import CLASS_NAMES, SIDE, write_training_set

from pipelines.cli.execute import StepOutcome, execute, result_key, storage_of
from pipelines.cli.wiring import STEPS
from pipelines.core import model_package
from pipelines.core.recipe import from_dict, override
from pipelines.core.results import ResultStore
from pipelines.core.runs import Reference, RunFolder, RunId, RunRequest
from pipelines.core.values import Snapshotted, TrainingSet
from pipelines.settings import Settings

RUN = RunId(dag_id="train_classifier", run_id="test")
RECIPE = from_dict(
    {
        "name": "stripes",
        "preprocessing": {"height": SIDE, "width": SIDE},
        "model": {"embedding_dim": 8},
        "training": {"epochs": 1, "threads": 1, "device": "cpu"},
        "export": {"int8": False},
    }
)


def _given(settings: Settings, step: str, value: object, folder: Path) -> None:
    """A finished result of an earlier step of the run."""
    storage = storage_of(settings)
    folder.mkdir(exist_ok=True)
    stored = ResultStore(storage, settings.home / "cache").publish(step, "given", folder, value, {})
    reference = Reference(
        step=step,
        key="given",
        digest=stored.digest,
        reused=False,
        started_at="2024-01-01T00:00:00",
        finished_at="2024-01-01T00:00:00",
        function_s=0.0,
        process_s=0.0,
    )
    RunFolder(storage, RUN).record(reference)


@pytest.fixture
def settings(home_settings: Settings) -> Settings:
    storage = storage_of(home_settings)
    RunFolder(storage, RUN).begin(RunRequest(recipe=RECIPE))
    _, training_set = write_training_set(home_settings.home, {"train": 30, "val": 30})
    splits = {"train": 30, "val": 30}
    snapshot = Snapshotted(
        snapshot_id="5" * 64, dataset="stripes", class_names=CLASS_NAMES, num_images=60, split_counts=splits
    )
    _given(home_settings, "snapshot", snapshot, home_settings.home / "snapshot")
    given = home_settings.home / "given"
    given.mkdir()
    training_set.rename(given / "training_set.parquet")
    value = TrainingSet(snapshot_id="5" * 64, num_images=60, num_filtered=0, features=())
    _given(home_settings, "training_set", value, given)
    return home_settings


def test_from_a_training_set_to_a_package_without_a_tracking_server(settings: Settings) -> None:
    def run(step: str) -> StepOutcome:
        return execute(settings, STEPS[step], RUN)

    outcomes = [run(step) for step in ("prepare", "train", "export")]
    assert [outcome.reused for outcome in outcomes] == [False, False, False]
    assert outcomes[1].value["tracking_run_id"] == ""
    assert outcomes[2].facts["latency_ms"]["fp32"] > 0
    (reference,) = (one for one in RunFolder(storage_of(settings), RUN).references() if one.step == "export")
    stored = ResultStore(storage_of(settings), settings.home / "cache").find("export", reference.key)
    assert stored is not None
    package = model_package.load(stored.folder / "package")
    assert package.lineage.snapshot_id == "5" * 64
    assert package.lineage.recipe_digest == RECIPE.digest
    assert package.lineage.run_id == str(RUN)
    assert not list((settings.home / "checkpoints").glob("*"))
    assert [run(step).reused for step in ("prepare", "train", "export")] == [True, True, True]


def test_other_weights_in_the_same_file_are_another_training(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    request = RunRequest(recipe=override(RECIPE, {"model.weights": str(path)}))
    storage = storage_of(settings)
    keys = set()
    for content in (None, b"one", b"two"):
        if content is not None:
            path.write_bytes(content)
        keys.add(result_key(settings, storage, STEPS["train"], request, {}, None, RUN))
    assert len(keys) == 3
