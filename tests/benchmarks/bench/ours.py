"""Our side of the comparisons: the engine's own parts, put together as it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipelines.core.pixelset import PixelSet, Split
from pipelines.core.recipe import Recipe
from pipelines.training import devices, image_folder, networks, trainer
from pipelines.training.batch import Batch
from pipelines.training.engine.compilation import compiled
from pipelines.training.engine.distribution import Replica, World
from pipelines.training.engine.prediction import predict
from pipelines.training.engine.samples import samples
from pipelines.training.engine.step import Stepper
from pipelines.training.export import load_network
from pipelines.training.loading.loader import Loader
from pipelines.training.observers import Observer
from pipelines.training.optimization import optimizers
from pipelines.training.optimization.averaging import Average
from pipelines.training.trainer import TrainingResult


class OurLoop:
    """Loader and step of a training, without its epochs: as many batches as are asked for."""

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        num_classes: int,
        device: torch.device | None = None,
        *,
        like: OurLoop | None = None,
    ) -> None:
        """`like`: share the network and optimizer of another loop, and differ in where the images come from."""
        compute = devices.prepare(recipe.training)
        self.device = device or compute.device
        self.loader = Loader(split, recipe, num_classes, self.device)
        self._num_taken = 0
        self.network: networks.Network
        self._stepper: Stepper
        if like is not None:
            self.network, self._stepper = like.network, like._stepper
            return
        training = recipe.training
        self.network = networks.build(recipe.model, num_classes)
        self.network.to(self.device)
        if self.network.adapts:
            self.network.initialize(samples(split, recipe.preprocessing))
        self.network.train()
        self._stepper = Stepper(
            network=self.network,
            replica=Replica(self.network, compiled(self.network, recipe, self.device), World()),
            optimizers=optimizers.build(self.network, training),
            average=Average(self.network, training.ema_decay) if training.ema_decay else None,
            scaler=compute.scaler(),
            training=training,
            compute=compute,
            num_steps=training.epochs * self.loader.steps_per_epoch,
            micro_batch=training.micro_batch or training.batch_size,
        )

    def batches(self) -> Iterator[Batch]:
        """One epoch after the other, without end."""
        epoch = 0
        while True:
            yield from self.loader.batches(epoch)
            epoch += 1

    def step(self, batch: Batch) -> Tensor:
        """The batch's mean loss, on the device."""
        self._num_taken += 1
        return self._stepper.step(batch, (self._num_taken - 1) % self._stepper.num_steps)

    def close(self) -> None:
        self.loader.close()


def train_pixels(data: PixelSet, recipe: Recipe, out: Path, observers: Sequence[Observer]) -> TrainingResult:
    """A whole training; weights and history go to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    return trainer.train(data, recipe, out, checkpoints=out / "checkpoints", observers=observers)


def train_folder(folder: Path, recipe: Recipe, out: Path, observers: Sequence[Observer]) -> TrainingResult:
    """The same from a folder of class folders, decoded or packed as the recipe says."""
    return train_pixels(image_folder.read(folder, recipe, out / "pixels"), recipe, out, observers)


def accuracy_of(out: Path, recipe: Recipe, data: PixelSet, split: str) -> float:
    """Of the weights in `out` on a decoded split, with the recipe's test-time augmentation."""
    compute = devices.prepare(recipe.training)
    network = load_network(out / trainer.WEIGHTS, recipe, len(data.class_names)).to(compute.device)
    found = data.splits[split]
    logits = predict(network, found.pixels, compute)
    return float((logits.argmax(axis=1) == found.labels).mean())
