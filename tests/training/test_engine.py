"""The training engine on small sets: it learns, repeats bit for bit, and goes on after a kill like nothing happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.core import pixelset
from pipelines.core.errors import SourceError, UserError
from pipelines.core.pixelset import PixelSet, Split
from pipelines.core.recipe import Model, Recipe, Training, from_dict, override
from pipelines.training import checkpoints, networks, trainer
from pipelines.training.augmentation import augment
from pipelines.training.batches import sample_weights, training_batches
from pipelines.training.engine import learning_rate
from pipelines.training.observers import EarlyStopping, Epoch, MetricSender, Observer, best_epoch
from pipelines.training.trainer import train

REPOSITORY = Path(__file__).resolve().parents[2]


def _recipe(**training: object) -> Recipe:
    settings = {"epochs": 3, "batch_size": 16, "threads": 1, "device": "cpu", "flip": False, "shift_share": 0.0}
    return from_dict({"name": "stripes", "model": {"embedding_dim": 8}, "training": {**settings, **training}})


def _stripes(num_images: int, seed: int) -> Split:
    """Two classes that differ in the direction of their stripes, 8 x 8 px."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_images) % 2
    stripe = np.where(np.arange(8) % 4 < 2, 200, 40)
    plain = np.where(labels[:, None, None] == 0, stripe[None, :, None], stripe[None, None, :])
    noisy = plain[..., None] + random.integers(-30, 30, (num_images, 8, 8, 3))
    return Split(
        pixels=noisy.astype(np.uint8),
        labels=labels.astype(np.int64),
        weights=np.ones(num_images, np.float32),
        ids=tuple(f"{seed}-{number:04d}" for number in range(num_images)),
    )


def _data(num_train: int = 64, num_val: int = 32) -> PixelSet:
    splits = {"train": _stripes(num_train, 1), "val": _stripes(num_val, 2)}
    return PixelSet(class_names=("across", "along"), preprocessing={"height": 8, "width": 8}, splits=splits)


def _write(folder: Path, data: PixelSet) -> Path:
    folder.mkdir()
    for name, split in data.splits.items():
        pixelset.create_pixels(folder, name, len(split), 8, 8)
        pixelset.open_pixels(folder, name)[:] = split.pixels
        pixelset.write_split(
            folder, name, labels=split.labels.tolist(), weights=split.weights.tolist(), ids=list(split.ids)
        )
    counts = {name: len(split) for name, split in data.splits.items()}
    pixelset.write_index(folder, class_names=data.class_names, preprocessing=data.preprocessing, splits=counts)
    return folder


class _Killed(Exception):
    pass


class _KillAfter(Observer):
    """Ends the training like a kill would: after the checkpoint of an epoch, before anything else."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_end(self, history: object) -> None:
        if len(history) == self.epoch:  # type: ignore[arg-type]
            raise _Killed


def test_it_learns(tmp_path: Path) -> None:
    result = train(_data(), _recipe(epochs=5), tmp_path, checkpoint=tmp_path / "last.pt")
    assert result.val_accuracy == 1.0
    assert result.device == "cpu"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_run_repeats_bit_for_bit_and_so_does_an_interrupted_one(tmp_path: Path, precision: str) -> None:
    recipe = _recipe(precision=precision, flip=True, shift_share=0.2)
    straight, again, broken = (tmp_path / name for name in ("straight", "again", "broken"))
    for out in (straight, again):
        train(_data(), recipe, out, checkpoint=out / "last.pt")
    with pytest.raises(_Killed):
        train(_data(), recipe, broken, checkpoint=broken / "last.pt", observers=[_KillAfter(2)])
    assert not (broken / "weights.pt").exists()
    train(_data(), recipe, broken, checkpoint=broken / "last.pt")
    for name in ("weights.pt", "history.json"):
        assert (again / name).read_bytes() == (straight / name).read_bytes()
        assert (broken / name).read_bytes() == (straight / name).read_bytes()


def test_a_checkpoint_belongs_to_the_weights_that_training_started_from(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    recipe = override(Recipe(name="stripes"), {"model.weights": str(path)})
    found = set()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        found.add(trainer._fingerprint(_data(), recipe))
    assert len(found) == 2


def test_the_command_goes_on_after_kill_9_with_the_same_bits(tmp_path: Path) -> None:
    data = _write(tmp_path / "data", _data(num_train=512))
    (tmp_path / "stripes.toml").write_text(
        "[training]\nepochs = 8\nbatch_size = 16\nthreads = 1\ndevice = 'cpu'\npatience = 0\n"
        "[model]\nembedding_dim = 8\n"
    )

    def command(out: str) -> list[str]:
        arguments = ["--recipe", str(tmp_path / "stripes.toml"), "--data", str(data), "--out", str(tmp_path / out)]
        return [sys.executable, "-m", "pipelines.training", *arguments]

    subprocess.run(command("straight"), cwd=REPOSITORY, check=True, capture_output=True)
    process = subprocess.Popen(command("killed"), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "weights.pt").exists(), "the kill came too late to show anything"
    resumed = subprocess.run(command("killed"), cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert "resumed after epoch" in resumed.stderr
    assert json.loads(resumed.stdout)["epochs_run"] == 8
    for name in ("weights.pt", "history.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_checkpoint_of_other_data_or_recipe_is_left_alone(tmp_path: Path) -> None:
    train(_data(), _recipe(epochs=1), tmp_path, checkpoint=tmp_path / "last.pt")
    seen: list[int] = []

    class _Start(Observer):
        def on_start(self, history: object, num_epochs: int) -> None:
            seen.append(len(history))  # type: ignore[arg-type]

    for data, recipe in ((_data(num_train=60), _recipe(epochs=1)), (_data(), _recipe(epochs=1, seed=4))):
        train(data, recipe, tmp_path, checkpoint=tmp_path / "last.pt", observers=[_Start()])
    assert seen == [0, 0]


def test_a_torn_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"torn")
    assert checkpoints.load(tmp_path / "last.pt", "any") is None


def _epochs(*losses: float) -> list[Epoch]:
    return [
        Epoch(epoch=number, train_loss=1.0, val_loss=loss, val_accuracy=0.5, learning_rate=0.1)
        for number, loss in enumerate(losses, start=1)
    ]


def test_early_stopping_waits_for_its_patience() -> None:
    stopping = EarlyStopping(2)
    assert not stopping.wants_stop([])
    assert not stopping.wants_stop(_epochs(3.0, 1.0, 2.0))
    assert stopping.wants_stop(_epochs(3.0, 1.0, 2.0, 2.0))
    assert not EarlyStopping(0).wants_stop(_epochs(1.0, 2.0, 3.0, 4.0))
    assert best_epoch(_epochs(3.0, 1.0, 1.0)) == 2


def test_metrics_go_out_once_an_epoch_and_again_after_a_resume() -> None:
    batches: list[list[tuple[str, float, int]]] = []
    sender = MetricSender(lambda metrics: batches.append(list(metrics)))
    sender.on_start(_epochs(3.0, 2.0), 3)
    sender.on_epoch_end(_epochs(3.0, 2.0, 1.0))
    assert [sorted({step for _, _, step in batch}) for batch in batches] == [[1, 2], [3]]
    assert ("val_loss", 1.0, 3) in batches[1]


def test_an_epoch_shows_every_image_once_in_parts_of_equal_size() -> None:
    split = _stripes(33, 0)
    training = _recipe(batch_size=16).training
    batches = list(training_batches(split, split.weights, training, 0, torch.device("cpu")))
    assert [len(labels) for _, labels, _ in batches] == [11, 11, 11]
    seen = sorted(pixels.numpy().tobytes() for batch, _, _ in batches for pixels in batch)
    assert seen == sorted(image.tobytes() for image in split.pixels)


def test_augmentation_mirrors_and_shifts_whole_images() -> None:
    pixels = torch.arange(6 * 6, dtype=torch.uint8).reshape(1, 6, 6, 1).repeat(64, 1, 1, 3)
    training = Training(flip=True, shift_share=0.2)
    changed = augment(pixels, training, torch.Generator().manual_seed(0))
    assert changed.shape == pixels.shape
    assert changed.dtype == torch.uint8
    kinds = {image.numpy().tobytes() for image in changed}
    assert 9 < len(kinds) <= 2 * 3 * 3
    still = augment(pixels, Training(flip=False, shift_share=0.0), torch.Generator())
    assert torch.equal(still, pixels)


def test_weights_have_mean_one_and_balance_classes() -> None:
    split = Split(
        pixels=np.zeros((4, 1, 1, 3), np.uint8),
        labels=np.array([0, 0, 0, 1]),
        weights=np.ones(4, np.float32),
        ids=("a", "b", "c", "d"),
    )
    assert np.allclose(sample_weights(split, 2, class_balance=False), 1)
    assert np.allclose(sample_weights(split, 2, class_balance=True), [2 / 3, 2 / 3, 2 / 3, 2])


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    training = Training(learning_rate=1.0, warmup_share=0.1)
    rates = [learning_rate(step, 100, training) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


@pytest.mark.parametrize("backbone", ["small", "resnet18", "mobilenet_v3_large"])
def test_every_backbone_ends_in_embedding_and_classifier(backbone: str) -> None:
    network = networks.build(Model(backbone=backbone, embedding_dim=16), 3).eval()
    logits, embedding = network(torch.zeros((2, 32, 32, 3), dtype=torch.uint8))
    assert logits.shape == (2, 3)
    assert embedding.shape == (2, 16)


def test_weights_start_a_network_or_are_refused_by_name(tmp_path: Path) -> None:
    source = networks.build(Model(embedding_dim=16), 3)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    taken = networks.build(Model(embedding_dim=16, weights=str(tmp_path / "weights.pt")), 5)
    assert torch.equal(taken.body.state_dict()["0.0.weight"], source.body.state_dict()["0.0.weight"])
    with pytest.raises(UserError, match="not of resnet18"):
        networks.build(Model(backbone="resnet18", weights=str(tmp_path / "weights.pt")), 3)
    (tmp_path / "bad.pt").write_bytes(b"not a state dict")
    with pytest.raises(UserError, match=r"bad\.pt"):
        networks.build(Model(weights=str(tmp_path / "bad.pt")), 3)


def test_too_few_images_and_a_loss_that_is_no_number_are_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="at least 2"):
        train(_data(num_train=1), _recipe(), tmp_path, checkpoint=tmp_path / "last.pt")
    split = _data().splits["train"]
    weights = np.full(len(split), np.nan, np.float32)
    splits = {"train": Split(pixels=split.pixels, labels=split.labels, weights=weights, ids=split.ids)}
    data = PixelSet(class_names=("across", "along"), preprocessing={}, splits=splits)
    with pytest.raises(UserError, match="learning_rate"):
        train(data, _recipe(), tmp_path, checkpoint=tmp_path / "other.pt")
