"""`kill -9` at any step, then the same command: the weights and the history of an undisturbed training, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import photographs
import pytest
from striped_pixels import striped, written

REPOSITORY = Path(__file__).resolve().parents[3]
NUM_STEPS = 40

PLAIN = """
[preprocessing]
height = 16
width = 16
[model]
embedding_dim = 8
width = 0.25
[training]
epochs = 5
batch_size = 32
threads = 1
device = "cpu"
patience = 0
"""
EVERYTHING = """
[preprocessing]
height = 16
width = 16
[model]
backbone = "airbench"
embedding_dim = 0
width = 0.25
[training]
epochs = 5
batch_size = 32
micro_batch = 12
optimizer = "muon"
ema_decay = 0.9
clip_norm = 1.0
threads = 1
device = "cpu"
patience = 0
[augmentation]
flip = "alternating"
mixup = 0.2
cutmix = 1.0
erasing = 0.25
[loading]
strategy = "mapped"
[evaluation]
tta = "mirror_shift"
"""


STREAMED = (
    PLAIN
    + """
[augmentation]
crop = "resized"
[loading]
strategy = "stream"
"""
)


class Command:
    """`python -m pipelines.training` on one data set, every step saved."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        (folder / "stripes.toml").write_text(recipe)
        if recipe == STREAMED:
            self.data = _files(folder / "data")
        else:
            self.data = written(folder / "data", striped(num_train=256, num_val=32, side=16))

    def start(self, out: str, every_s: str = "0") -> subprocess.Popen[str]:
        arguments = ["--recipe", str(self.folder / "stripes.toml"), "--data", str(self.data)]
        arguments += ["--out", str(self.folder / out), "--checkpoint-every", every_s]
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.training", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, out: str, every_s: str = "0") -> tuple[dict[str, object], str]:
        """The result of a run to the end, and what it said."""
        process = self.start(out, every_s)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return json.loads(output), errors

    def kill_after(self, out: str, step: int, delay_s: float) -> None:
        """Kill -9 some time after the checkpoint of a step is there."""
        process = self.start(out)
        deadline = time.monotonic() + 120
        while process.poll() is None and self.newest(out) < step and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def newest(self, out: str) -> int:
        names = [path.name for path in (self.folder / out / "checkpoints").rglob("step-*.pt")]
        return max((int(name.split("-")[1]) for name in names), default=0)

    def files(self, out: str) -> list[bytes]:
        return [(self.folder / out / name).read_bytes() for name in ("weights.pt", "history.json")]


def _files(folder: Path) -> Path:
    """JPEGs of three classes in folders, 256 of them to train."""
    for number in range(288):
        name = f"{'train' if number < 256 else 'val'}/class-{number % 3}/{number}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photographs.photograph(number))
    return folder


def _is_the_same_after_kills(command: Command, num_kills: int) -> None:
    command.finish("straight", every_s="1e9")
    places = random.Random(num_kills)
    for number, step in enumerate(sorted(places.sample(range(1, NUM_STEPS - 1), num_kills))):
        command.kill_after("killed", step, places.uniform(0, 0.02))
        assert not (command.folder / "killed" / "weights.pt").exists(), f"kill {number} came too late to show anything"
    result, _ = command.finish("killed")
    assert result["epochs_run"] == 5
    assert command.files("killed") == command.files("straight")


def test_three_kills_and_everything_that_has_a_state(tmp_path: Path) -> None:
    _is_the_same_after_kills(Command(tmp_path, EVERYTHING), 3)


@pytest.mark.full
@pytest.mark.parametrize("recipe", [PLAIN, EVERYTHING, STREAMED], ids=["plain", "everything", "streamed"])
def test_twenty_kills(tmp_path: Path, recipe: str) -> None:
    _is_the_same_after_kills(Command(tmp_path, recipe), 20)
