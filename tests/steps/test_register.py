"""What registration reads of a training."""

from __future__ import annotations

import math
from pathlib import Path

from pipelines.steps.register import read_history
from pipelines.training.observers import Epoch, HistoryFile


def test_a_history_with_a_loss_that_is_no_number_is_read_back_without_it(tmp_path: Path) -> None:
    epochs = [
        Epoch(epoch=number, train_loss=1.0, val_loss=loss, val_accuracy=0.5, learning_rate=0.1)
        for number, loss in enumerate((math.nan, 2.0), start=1)
    ]
    HistoryFile(tmp_path / "history.json").on_finish(epochs)
    found = read_history(tmp_path / "history.json")
    assert [(value, epoch) for name, value, epoch in found if name == "val_loss"] == [(2.0, 2)]
    assert len(found) == 7
