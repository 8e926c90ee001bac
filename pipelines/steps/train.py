"""`train`: a pixel set to weights, watched by the tracking server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipelines.core import pixelset
from pipelines.core.ports import Tracker
from pipelines.core.recipe import Recipe
from pipelines.core.values import Trained
from pipelines.training import trainer
from pipelines.training.observers import MetricSender, Progress


def train(
    prepared: Path,
    recipe: Recipe,
    tracker: Tracker,
    out: Path,
    *,
    checkpoints: Path,
    run_name: str,
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
) -> Trained:
    """Train on the pixel set in `prepared`; weights.pt and history.json go to `out`.

    `checkpoints` is a folder of this training alone: a killed try leaves there what the next one goes on from. Whoever
    has published the result removes it.
    """
    data = pixelset.load(prepared)
    run_id = tracker.start(run_name, parameters, tags)
    finished = False
    try:
        result = trainer.train(
            data,
            recipe,
            out,
            checkpoints=checkpoints,
            observers=[Progress(), MetricSender(tracker.log)],
        )
        finished = True
    finally:
        tracker.finish("FINISHED" if finished else "FAILED")
    return Trained(
        tracking_run_id=run_id,
        epochs_run=result.epochs_run,
        best_epoch=result.best_epoch,
        val_accuracy=result.val_accuracy,
        tta_accuracy=result.tta_accuracy,
        device=result.device,
        precision=result.precision,
        strategy=result.strategy,
        micro_batch=result.micro_batch,
        num_failures=len(result.failures),
    )
