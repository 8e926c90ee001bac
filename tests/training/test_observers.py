"""What watches a training: patience, metrics sent once, the history file."""

from __future__ import annotations

import math

from pipelines.training.observers import EarlyStopping, Epoch, MetricSender, best_epoch


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


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    for loss in (math.nan, math.inf):
        assert best_epoch(_epochs(loss, 3.0, 1.0, loss)) == 3
        assert best_epoch(_epochs(loss)) == 0
        assert EarlyStopping(2).wants_stop(_epochs(loss, loss))


def test_metrics_go_out_once_an_epoch_and_again_after_a_resume() -> None:
    batches: list[list[tuple[str, float, int]]] = []
    sender = MetricSender(lambda metrics: batches.append(list(metrics)))
    sender.on_start(_epochs(3.0, 2.0), 3)
    sender.on_epoch_end(_epochs(3.0, 2.0, 1.0))
    assert [sorted({step for _, _, step in batch}) for batch in batches] == [[1, 2], [3]]
    assert ("val_loss", 1.0, 3) in batches[1]
