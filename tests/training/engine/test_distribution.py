"""Two processes on a CPU train as one: the same batches, statistics and gradients, within floating-point noise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import two_processes
from striped_pixels import striped, written

from pipelines.core import recipe as recipes
from pipelines.core.pixelset import PixelSet
from pipelines.training.__main__ import main
from pipelines.training.engine.distribution import World
from pipelines.training.observers import Observer
from pipelines.training.trainer import train

REPOSITORY = Path(__file__).resolve().parents[3]
NUM_TRAIN = 125
"""Steps of 32 or 31 images: processes' parts differ in size."""
# Its whitening bias stops learning midway.
RECIPE = """
[preprocessing]
height = 16
width = 16
[model]
backbone = "airbench"
embedding_dim = 8
width = 0.25
[training]
epochs = 4
batch_size = 32
micro_batch = {micro_batch}
optimizer = "{optimizer}"
learning_rate = {learning_rate}
ema_decay = 0.9
clip_norm = 1.0
precision = "fp32"
threads = 1
device = "cpu"
patience = 0
[augmentation]
flip = "alternating"
erasing = 0.25
mixup = {mixup}
cutmix = {mixup}
[loading]
strategy = "{strategy}"
"""
USUAL = {"micro_batch": 0, "optimizer": "sgd", "learning_rate": 0.1, "mixup": 0.0, "strategy": "auto"}


class _Killed(Exception):
    pass


class _KillAfter(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step: int, num_steps: int) -> None:
        if step == self.step:
            raise _Killed


@dataclass
class _Runs:
    folder: Path
    said: str

    def history(self, name: str) -> list[dict[str, float]]:
        table: list[dict[str, float]] = json.loads((self.folder / name / "history.json").read_text())
        return table

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = torch.load(self.folder / name / "weights.pt", weights_only=True)
        return state

    def result(self, number: int) -> dict[str, object]:
        lines = [line for line in self.said.splitlines() if line.startswith("{")]
        found: dict[str, object] = json.loads(lines[number])
        return found


def _killed(data: PixelSet, folder: Path, name: str, step: int) -> None:
    """Leave the checkpoint of a training in one process, killed after a step."""
    asked = recipes.load(folder / f"{name}.toml")
    with pytest.raises(_Killed):
        train(
            data,
            asked,
            folder / name,
            checkpoints=folder / name / "checkpoints",
            checkpoint_every_s=0,
            observers=[_KillAfter(step)],
        )


def _in_one_process(folder: Path, name: str) -> None:
    assert main(two_processes.arguments(folder, name)) == 0


def _in_two_processes(folder: Path, names: Sequence[str]) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, str(Path(two_processes.__file__)), str(folder), *names],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a process that waits for another would wait on
        raise
    assert process.returncode == 0, errors
    return output


ALONE: dict[str, dict[str, Any]] = {
    "one": {},
    "whole": {},
    "mixed": {"mixup": 1.0},
    "streamed": {"optimizer": "adamw", "learning_rate": 0.003, "strategy": "stream"},
    "muon": {"optimizer": "muon", "learning_rate": 0.1},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "two": {},
    "resumed": {},
    "narrow": {},
    "plain": {"micro_batch": 4},
    "mixed-2": ALONE["mixed"],
    "streamed-2": ALONE["streamed"],
    "muon-2": ALONE["muon"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> _Runs:
    folder = tmp_path_factory.mktemp("runs")
    data = striped(num_train=NUM_TRAIN, num_val=33, side=16)
    written(folder / "data", data)
    two_processes.written_as_files(folder / "files", 60)
    for name, changes in {**ALONE, **TOGETHER}.items():
        (folder / f"{name}.toml").write_text(RECIPE.format(**{**USUAL, **changes}))
    for name in ALONE:
        with two_processes.special(name):
            _in_one_process(folder, name)
    _killed(data, folder, "resumed", 3)
    return _Runs(folder=folder, said=_in_two_processes(folder, list(TOGETHER)))


@pytest.mark.parametrize(
    ("one", "two", "noise"),
    [
        ("one", "two", 1e-5),
        ("one", "resumed", 1e-5),
        ("whole", "plain", 1e-5),
        ("mixed", "mixed-2", 1e-3),
        ("streamed", "streamed-2", 1e-3),
        ("muon", "muon-2", 1e-3),
    ],
)
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(
    runs: _Runs, one: str, two: str, noise: float
) -> None:
    """From the start, from the checkpoint of one process, with gradients that add up over micro-batches, with mixed
    images, with AdamW on files that are decoded on the way, and with Muon. The last three magnify the last bits of a
    sum: AdamW and Muon step as far for a small gradient as for a large one. After one epoch it is 1e-6 for all.
    """
    first, second = (runs.history(name)[0]["train_loss"] for name in (one, two))
    assert second == pytest.approx(first, rel=3e-6)
    assert len(runs.history(two)) == 4
    for ours, theirs in zip(runs.history(one), runs.history(two), strict=True):
        assert theirs == pytest.approx(ours, rel=noise)
    single, both = runs.weights(one), runs.weights(two)
    assert list(single) == list(both)
    for key, value in single.items():
        assert torch.allclose(both[key].double(), value.double(), rtol=10 * noise, atol=noise), key


def test_only_the_leading_process_speaks(runs: _Runs) -> None:
    assert len([line for line in runs.said.splitlines() if line.startswith("{")]) == len(TOGETHER)


def test_processes_agree_on_what_the_narrowest_has_memory_for(runs: _Runs) -> None:
    assert runs.result(0)["micro_batch"] == 16
    assert runs.result(2)["micro_batch"] == 4
    assert np.isfinite([epoch["train_loss"] for epoch in runs.history("narrow")]).all()


def test_parts_cover_everything_once() -> None:
    for length in (1, 7, 33):
        parts = [World(rank=rank, size=3).part(length) for rank in range(3)]
        assert [row for part in parts for row in range(length)[part]] == list(range(length))
