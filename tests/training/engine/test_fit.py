"""Whole trainings on small sets: they learn, repeat bit for bit, and keep what they should."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from striped_pixels import CLASS_NAMES, recipe, striped

from pipelines.core.errors import RecipeError, SourceError, UserError
from pipelines.core.pixelset import DecodedImages, PixelSet, Split
from pipelines.core.recipe import Recipe, override
from pipelines.training import networks, trainer
from pipelines.training.augmentation.tta import Views
from pipelines.training.devices import Compute
from pipelines.training.engine.fit import Fit
from pipelines.training.loading import strategies
from pipelines.training.networks import weights
from pipelines.training.observers import History, Observer
from pipelines.training.trainer import TrainingResult, train


class Killed(Exception):
    pass


class KillAfter(Observer):
    """Ends the training like a kill would, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step: int, num_steps: int) -> None:
        if step == self.step:
            raise Killed


class Count(Observer):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, step: int, num_steps: int) -> None:
        self.steps.append(step)


def _train(folder: Path, asked: Recipe, *observers: Observer, every_s: float = 0) -> TrainingResult:
    folder.mkdir(exist_ok=True)
    return train(
        striped(), asked, folder, checkpoints=folder / "checkpoints", observers=observers, checkpoint_every_s=every_s
    )


def _files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("weights.pt", "history.json")]


def test_it_learns(tmp_path: Path) -> None:
    result = _train(tmp_path, recipe(training={"epochs": 6}))
    assert result.val_accuracy == 1.0
    assert (result.device, result.strategy, result.micro_batch) == ("cpu", "resident", 16)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_cpu_run_repeats_bit_for_bit_and_so_does_an_interrupted_one(tmp_path: Path, precision: str) -> None:
    asked = recipe(
        training={"precision": precision, "ema_decay": 0.9, "clip_norm": 1.0},
        augmentation={"flip": "random", "shift_share": 0.2, "mixup": 0.2},
    )
    for name in ("straight", "again"):
        _train(tmp_path / name, asked, every_s=1e9)
    for step in (2, 5, 8):
        with pytest.raises(Killed):
            _train(tmp_path / "broken", asked, KillAfter(step))
    _train(tmp_path / "broken", asked)
    assert _files(tmp_path / "again") == _files(tmp_path / "straight")
    assert _files(tmp_path / "broken") == _files(tmp_path / "straight")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backbone", ["small", "airbench", "resnet18"])
def test_a_deterministic_gpu_run_repeats_bit_for_bit_and_so_does_an_interrupted_one(
    tmp_path: Path, backbone: str
) -> None:
    asked = recipe(
        side=32,
        model={"backbone": backbone, "embedding_dim": 0},
        training={"device": "cuda", "deterministic": True, "ema_decay": 0.9},
        augmentation={"flip": "random", "shift_share": 0.2, "mixup": 0.2},
    )
    data = striped(side=32)
    for name, steps in (("straight", ()), ("again", ()), ("broken", (2, 5, 8))):
        out = tmp_path / name
        for step in steps:
            with pytest.raises(Killed):
                train(
                    data,
                    asked,
                    out,
                    checkpoints=out / "checkpoints",
                    observers=[KillAfter(step)],
                    checkpoint_every_s=0,
                )
        result = train(data, asked, out, checkpoints=out / "checkpoints", checkpoint_every_s=0)
        assert result.device == "cuda"
    assert _files(tmp_path / "again") == _files(tmp_path / "straight")
    assert _files(tmp_path / "broken") == _files(tmp_path / "straight")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_torn_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    _train(tmp_path / "straight", recipe(), every_s=1e9)
    with pytest.raises(Killed):
        _train(tmp_path / "broken", recipe(), KillAfter(7))
    newest = max((tmp_path / "broken" / "checkpoints").rglob("step-*.pt"))
    assert newest.name.startswith("step-00000006-")
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 16
    newest.write_bytes(data[: len(data) // 3] if damage == "cut" else data)
    counted = Count()
    with caplog.at_level(logging.WARNING):
        _train(tmp_path / "broken", recipe(), counted)
    assert newest.name in caplog.text
    assert counted.steps == list(range(6, 13))
    assert _files(tmp_path / "broken") == _files(tmp_path / "straight")


def test_dropout_and_stochastic_depth_are_drawn_by_place(tmp_path: Path) -> None:
    asked = recipe(
        side=32,
        model={"backbone": "efficientnet_b0", "embedding_dim": 0},
        training={"epochs": 1, "batch_size": 4},
    )
    data = striped(num_train=12, num_val=4, side=32)
    for name, step in (("straight", 0), ("broken", 2)):
        out, checkpoints = tmp_path / name, tmp_path / name / "checkpoints"
        if step:
            with pytest.raises(Killed):
                train(data, asked, out, checkpoints=checkpoints, observers=[KillAfter(step)], checkpoint_every_s=0)
        train(data, asked, out, checkpoints=checkpoints, checkpoint_every_s=0)
    assert _files(tmp_path / "broken") == _files(tmp_path / "straight")


def test_the_best_or_the_last_weights_are_kept(tmp_path: Path) -> None:
    found = {}
    for keep in ("best", "last"):
        result = _train(tmp_path / keep, recipe(training={"keep": keep, "learning_rate": 0.05, "epochs": 6}))
        history = json.loads((tmp_path / keep / "history.json").read_text())
        best = min(history, key=lambda epoch: epoch["val_loss"])["epoch"]
        assert result.best_epoch == (best if keep == "best" else 6)
        assert result.val_accuracy == history[result.best_epoch - 1]["val_accuracy"]
        found[keep] = _files(tmp_path / keep)
    assert found["best"][1] == found["last"][1]


def test_averaged_weights_are_judged_and_kept(tmp_path: Path) -> None:
    asked = recipe(training={"epochs": 2, "keep": "last"})
    _train(tmp_path / "plain", asked)
    _train(tmp_path / "averaged", override(asked, {"training.ema_decay": 0.5}))
    plain, averaged = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("plain", "averaged"))
    assert [one["train_loss"] for one in plain] == [one["train_loss"] for one in averaged]
    assert [one["val_loss"] for one in plain] != [one["val_loss"] for one in averaged]
    assert _files(tmp_path / "plain")[0] != _files(tmp_path / "averaged")[0]


def test_the_first_layer_whitens_the_training_images(tmp_path: Path) -> None:
    asked = recipe(side=16, model={"backbone": "airbench", "embedding_dim": 0}, training={"epochs": 1})
    data = striped(side=16)
    train(data, asked, tmp_path, checkpoints=tmp_path / "checkpoints")
    expected = networks.build(asked.model, 2)
    expected.initialize(torch.from_numpy(data.splits["train"].pixels.rows(np.arange(64))))
    trained = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.equal(trained["body.layers.0.weight"], expected.state_dict()["body.layers.0.weight"])


def test_fine_tuning_keeps_the_first_layer_that_it_starts_from(tmp_path: Path) -> None:
    asked = recipe(side=16, model={"backbone": "airbench", "embedding_dim": 0}, training={"epochs": 1})
    torch.save(networks.build(asked.model, 2).state_dict(), tmp_path / "start.pt")
    data, asked = striped(side=16), override(asked, {"model.weights": str(tmp_path / "start.pt")})
    train(data, asked, tmp_path / "out", checkpoints=tmp_path / "checkpoints")
    start, trained = (torch.load(tmp_path / name, weights_only=True) for name in ("start.pt", "out/weights.pt"))
    assert torch.equal(trained["body.layers.0.weight"], start["body.layers.0.weight"])


@pytest.mark.parametrize("named", ["torchvision", "~/start.pt"])
def test_weights_that_are_no_plain_path_start_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    import torchvision

    state = torchvision.models.mobilenet_v2(weights=None).state_dict()
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state, tmp_path / "start.pt")
    monkeypatch.setattr(weights, "_published", lambda _: state)  # there is no network here
    asked = recipe(
        side=32,
        model={"backbone": "mobilenet_v2", "weights": named},
        training={"mode": "finetune", "epochs": 1, "batch_size": 4},
    )
    data = striped(num_train=4, num_val=2, side=32)
    assert train(data, asked, tmp_path / "out", checkpoints=tmp_path / "checkpoints").epochs_run == 1


def test_early_stopping_ends_it_and_processes_hear_of_it(tmp_path: Path) -> None:
    class Stop(Observer):
        def wants_stop(self, history: History) -> bool:
            return len(history) == 2

    assert _train(tmp_path, recipe(training={"epochs": 5}), Stop()).epochs_run == 2


def test_too_few_images_and_a_loss_that_is_no_number_are_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="at least 2"):
        train(striped(num_train=1), recipe(), tmp_path, checkpoints=tmp_path / "one")
    split = striped().splits["train"]
    weights = np.full(len(split), np.nan, np.float32)
    splits = {"train": Split(images=split.images, labels=split.labels, weights=weights, ids=split.ids)}
    data = PixelSet(class_names=CLASS_NAMES, preprocessing={}, splits=splits)
    with pytest.raises(UserError, match="learning_rate"):
        train(data, recipe(), tmp_path, checkpoints=tmp_path / "other")


def test_a_checkpoint_of_other_data_or_recipe_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    _train(tmp_path, recipe(training={"epochs": 1}))
    seen: list[int] = []

    class Start(Observer):
        def on_start(self, history: History, num_epochs: int) -> None:
            seen.append(len(history))

    others = [
        (striped(num_train=60), recipe(training={"epochs": 1})),
        (striped(), recipe(training={"epochs": 1, "seed": 4})),
        (striped(), recipe(training={"epochs": 1}, augmentation={"flip": "random"})),
    ]
    for data, asked in others:
        train(data, asked, tmp_path, checkpoints=tmp_path / "checkpoints", observers=[Start()])
    assert seen == [0, 0, 0]
    assert not caplog.records


def test_a_checkpoint_belongs_to_starting_weights_device_precision_and_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pt"
    asked = override(recipe(), {"model.weights": str(path)})
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    found = set()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        for compute in (Compute(device=cpu), Compute(device=cpu, precision="bf16"), Compute(device=cuda)):
            found.add(trainer.fingerprint(striped(), asked, compute))
    monkeypatch.setattr(trainer, "FORMAT", 0)
    found.add(trainer.fingerprint(striped(), asked, compute))
    assert len(found) == 7


def test_a_training_goes_on_where_images_are_loaded_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _train(tmp_path / "straight", recipe(), every_s=1e9)
    with pytest.raises(Killed):
        _train(tmp_path / "broken", recipe(), KillAfter(5))
    monkeypatch.setattr(strategies, "_free_bytes", lambda _: 0)  # memory was taken meanwhile
    assert _train(tmp_path / "broken", recipe()).strategy == "mapped"
    assert _files(tmp_path / "broken") == _files(tmp_path / "straight")


def test_pixels_of_another_recipe_are_refused_by_key(tmp_path: Path) -> None:
    data = striped()
    others = [
        (recipe(side=16), r"preprocessing\.height = 16: the pixel set was made with 8"),
        (recipe(augmentation={"crop": "resized"}), r"augmentation\.crop = 'resized'"),
    ]
    for asked, words in others:
        with pytest.raises(RecipeError, match=words):
            train(data, asked, tmp_path, checkpoints=tmp_path / "c")
    split = data.splits["train"]
    images = DecodedImages([split.pixels.rows(np.arange(64))], np.full((64, 2), 8, np.int32))
    whole = Split(images=images, labels=split.labels, weights=split.weights, ids=split.ids)
    data = PixelSet(class_names=CLASS_NAMES, preprocessing=data.preprocessing, splits={**data.splits, "train": whole})
    with pytest.raises(RecipeError, match=r"augmentation\.crop = 'shift'"):
        train(data, recipe(), tmp_path, checkpoints=tmp_path / "c")


def test_weights_are_written_before_views_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Views, "forward", broken)
    with pytest.raises(Killed):
        _train(tmp_path, recipe(training={"epochs": 1}, evaluation={"tta": "mirror"}))
    assert torch.load(tmp_path / "weights.pt", weights_only=True)


def test_a_validation_loss_that_is_no_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate, losses = Fit._validate, iter([math.nan, 0.5, math.nan])
    monkeypatch.setattr(Fit, "_validate", lambda self, network: (next(losses), validate(self, network)[1]))
    assert _train(tmp_path, recipe()).best_epoch == 2
    history = json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)
    assert [epoch["val_loss"] for epoch in history] == [None, 0.5, None]
