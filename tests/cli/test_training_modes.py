"""Each training mode through the steps as the command runs them: from stored images to a package that is proved."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from feature_house import House
from small_datasets import COLOURS, class_folders, picture
from torch import nn

from pipelines.cli.execute import execute
from pipelines.cli.wiring import STEPS
from pipelines.core import model_package, pixelset
from pipelines.core.datasets import blob_key
from pipelines.core.embedding import HogColorV1
from pipelines.core.errors import NotFound
from pipelines.core.features import HOG_COLOR, partition_key
from pipelines.core.inference import Classifier, prove
from pipelines.core.preprocessing import PreprocessingSpec, preprocess
from pipelines.core.recipe import Recipe, from_dict
from pipelines.core.results import ResultStore
from pipelines.core.runs import RunFolder, RunId, RunRequest
from pipelines.settings import Settings

CHAIN = ("snapshot", "training_set", "prepare", "train", "export", "evaluate")
DAYS = ("2024-01-01", "2024-01-02")


@dataclass
class _Chain:
    """A dataset in a feature store, and the training steps on it."""

    house: House
    settings: Settings

    def recipe(self, **sections: Mapping[str, Any]) -> Recipe:
        """Trainings of a second."""
        table: dict[str, dict[str, Any]] = {
            "split": {"val_share": 0.2, "test_share": 0.2, "near_duplicate_distance": 0},
            "preprocessing": {"height": 16, "width": 16},
            "training": {"threads": 1, "device": "cpu", "epochs": 3, "batch_size": 16},
            "export": {"min_int8_images": 10},
        }
        for section, keys in sections.items():
            table[section] = {**table.get(section, {}), **keys}
        return from_dict({"name": self.house.name, **table})

    def run(self, recipe: Recipe, steps: tuple[str, ...] = CHAIN) -> dict[str, Path]:
        """The result folder of each step."""
        run = RunId(dag_id="train_classifier", run_id=recipe.digest[:8])
        RunFolder(self.house.storage, run).begin(RunRequest(recipe=recipe))
        results = ResultStore(self.house.storage, self.settings.home / "cache")
        for step in steps:
            execute(self.settings, STEPS[step], run)
        found = {}
        for reference in RunFolder(self.house.storage, run).references():
            stored = results.find(reference.step, reference.key)
            assert stored is not None
            found[reference.step] = stored.folder
        return found


@pytest.fixture
def chain(postgres_settings: Settings, tmp_path: Path) -> _Chain:
    house = House(postgres_settings, tmp_path)
    for day, first_seed in zip(DAYS, (0, 100), strict=True):
        class_folders(house.data / f"dt={day}", {"red": 25, "green": 25, "blue": 25}, first_seed)
        house.run(day)
    return _Chain(house, replace(postgres_settings, store_uri=house.storage.uri))


def _answers(package: Path) -> list[str]:
    """What the package says to a red, a green and a blue picture that nobody has seen."""
    classifier = Classifier(model_package.load(package), provider="cpu")
    prove(classifier)
    answers = []
    for colour in COLOURS.values():
        file = io.BytesIO()
        picture(7_000, colour).save(file, "PNG")
        logits = classifier.predict_bytes([file.getvalue()]).logits
        answers.append(classifier.package.class_names[int(logits.argmax())])
    return answers


def test_from_scratch_and_then_finetuned_from_what_came_out(chain: _Chain) -> None:
    scratch = chain.run(chain.recipe(model={"embedding_dim": 16}))
    assert _answers(scratch["evaluate"] / "package") == list(COLOURS)
    weights = str(scratch["train"] / "weights.pt")
    recipe = chain.recipe(model={"embedding_dim": 16, "weights": weights}, training={"mode": "finetune", "epochs": 1})
    finetuned = chain.run(recipe)
    assert _answers(finetuned["evaluate"] / "package") == list(COLOURS)


def test_finetuned_from_a_state_dict_as_torchvision_publishes_them(chain: _Chain, tmp_path: Path) -> None:
    """With weights that chance drew, which teach nothing: what comes out is theirs, and a package that is proved."""
    torch.manual_seed(0)
    start = torchvision.models.mobilenet_v2().state_dict()
    path = tmp_path / "mobilenet_v2-0123abcd.pth"
    torch.save(start, path)
    recipe = chain.recipe(
        model={"backbone": "mobilenet_v2", "weights": str(path), "embedding_dim": 0},
        training={"mode": "finetune", "epochs": 1},
        preprocessing={"height": 32, "width": 32},
    )
    found = chain.run(recipe)
    learned = torch.load(found["train"] / "weights.pt", weights_only=True)["body.layers.features.0.0.weight"]
    # The first block's rate is a hundredth of the head's: it is still the file's, and not what chance would draw.
    kept = nn.functional.cosine_similarity(learned.flatten(), start["features.0.0.weight"].flatten(), dim=0)
    assert kept > 0.99
    package = model_package.load(found["evaluate"] / "package")
    assert package.description.embedding_dim == 1280
    prove(Classifier(package, provider="cpu"))


def test_a_head_on_stored_embeddings(chain: _Chain) -> None:
    found = chain.run(chain.recipe(training={"mode": "head"}))
    prepared = pixelset.load(found["prepare"])
    stored = prepared.embedded
    assert stored is not None
    assert stored.view == HOG_COLOR.name
    assert set(prepared.splits) == {"calibration", "val"}
    spec = PreprocessingSpec.from_json(prepared.preprocessing)
    assert (spec.height, spec.width, spec.fit) == (32, 32, "squash"), "the embedding's, not the recipe's 16 x 16"
    for split, ids in (("val", prepared.splits["val"].ids), ("train", np.load(found["prepare"] / "train-ids.npy"))):
        image_ids = [one if isinstance(one, str) else one.decode() for one in ids]
        pixels = np.stack([preprocess(chain.house.storage.read(blob_key(image)), spec) for image in image_ids])
        np.testing.assert_allclose(stored.splits[split].embeddings, HogColorV1().embed(pixels), atol=1e-6)
    package = model_package.load(found["evaluate"] / "package")
    assert (package.preprocessing.height, package.preprocessing.fit) == (32, "squash")
    assert package.description.embedding_dim == HOG_COLOR.dim
    assert package.description.decisions["int8"] == "not made: there is no convolution to quantize"
    assert _answers(found["evaluate"] / "package") == list(COLOURS)


def test_an_image_without_an_embedding_stops_it_with_the_interval_to_ingest_again(chain: _Chain) -> None:
    chain.house.storage.delete(partition_key(chain.house.name, HOG_COLOR.name, DAYS[1]))
    with pytest.raises(NotFound, match=rf"no embedding in {HOG_COLOR.name}.*ingest interval {DAYS[1]} again"):
        chain.run(chain.recipe(training={"mode": "head"}), CHAIN[:3])
