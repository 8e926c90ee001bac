"""The controls: what torchvision's reference scripts (references/classification of pytorch/vision) and a default torch
loop do, by the libraries' own public parts and with the scripts' default settings."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

from bench.defaults import torch_defaults
from bench.photographs import Photograph

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def training_transform(side: int, *, uint8: bool = False) -> transforms.Compose:
    """presets.ClassificationPresetTrain; `uint8` stops where our batches stop, before they are floats."""
    steps = [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    if not uint8:
        steps += [transforms.ConvertImageDtype(torch.float), transforms.Normalize(MEAN, STD)]
    return transforms.Compose(steps)


def evaluation_transform(side: int) -> transforms.Compose:
    """presets.ClassificationPresetEval, its 256 and 224 px scaled to another side."""
    return transforms.Compose(
        [
            transforms.Resize(round(side * 256 / 224)),
            transforms.CenterCrop(side),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(MEAN, STD),
        ]
    )


class Files(Dataset[tuple[Tensor, int]]):
    """torchvision.datasets.ImageFolder over a list of files."""

    def __init__(self, files: Sequence[Photograph], transform: transforms.Compose) -> None:
        self._samples = [(str(one.path), one.label) for one in files]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        path, label = self._samples[place]
        return self._transform(pil_loader(path)), label


def loader(
    files: Sequence[Photograph], transform: transforms.Compose, batch: int, workers: int, *, keep: bool = False
) -> DataLoader[tuple[Tensor, int]]:
    """As the reference script makes it: a random sampler, pinned memory where there is a GPU.

    `keep`: workers outlive an epoch, which the script's do not.
    """
    data = Files(files, transform)
    pin = torch.cuda.is_available()
    sampler = RandomSampler(data)
    return DataLoader(data, batch, sampler=sampler, num_workers=workers, pin_memory=pin, persistent_workers=keep)


class DefaultLoop:
    """The loop that everybody writes first: torchvision's network, fp32, NCHW, one optimizer."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.network = network.to(device)
        self.optimizer = optimizer
        self.device = device
        self.criterion = nn.CrossEntropyLoss()

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step on float [N, 3, H, W]; the loss, unread."""
        loss: Tensor = self.criterion(self.network(images.to(self.device)), labels.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def normalized(pixels: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] as the reference loader gives them: float [N, 3, H, W], contiguous."""
    images = pixels.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(numbers, device=pixels.device).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    return ((images - mean) / std).contiguous()


def resnet(name: str, num_classes: int) -> nn.Module:
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return network


@dataclass(kw_only=True)
class ReferenceRun:
    """What the reference script reached."""

    seconds: float = 0.0
    steps: int = 0
    accuracies: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start and validation accuracy, an epoch each."""

    @property
    def best(self) -> float:
        return max((accuracy for _, accuracy in self.accuracies), default=0.0)


def train(
    train_files: Sequence[Photograph],
    val_files: Sequence[Photograph],
    *,
    num_classes: int,
    side: int,
    seconds: float,
    workers: int,
    seed: int = 0,
    backbone: str = "resnet18",
    batch: int = 32,
) -> ReferenceRun:
    """references/classification/train.py with its defaults until the time is over; then it may judge once more.

    SGD 0.1, momentum 0.9, decay 1e-4, a tenth of the rate every 30 epochs, batches of 32, fp32, validation after every
    epoch.
    """
    with torch_defaults():
        return _train(
            train_files, val_files, num_classes, side, seconds, workers, seed=seed, backbone=backbone, batch=batch
        )


def _train(
    train_files: Sequence[Photograph],
    val_files: Sequence[Photograph],
    num_classes: int,
    side: int,
    seconds: float,
    workers: int,
    *,
    seed: int,
    backbone: str,
    batch: int,
) -> ReferenceRun:
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = resnet(backbone, num_classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    loop = DefaultLoop(network, optimizer, device)
    training = loader(train_files, training_transform(side), batch, workers)
    validation = DataLoader(Files(val_files, evaluation_transform(side)), batch, num_workers=workers)
    found, began = ReferenceRun(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        network.train()
        for images, labels in _until(training, began + seconds):
            loop.step(images, labels).item()  # the script reads the loss after every step
            found.steps += 1
        schedule.step()
        accuracy = evaluate(network, validation, device)
        found.seconds = time.perf_counter() - began
        found.accuracies.append((found.seconds, accuracy))
    return found


def _until(batches: DataLoader[tuple[Tensor, int]], deadline: float) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        yield batch
        if time.perf_counter() > deadline:
            return


def evaluate(network: nn.Module, batches: DataLoader[tuple[Tensor, int]], device: torch.device) -> float:
    network.eval()
    right = total = 0
    with torch.inference_mode():
        for images, labels in batches:
            answers = network(images.to(device)).argmax(1).cpu()
            right, total = right + int((answers == labels).sum()), total + len(labels)
    return right / max(1, total)


def warm(files: Sequence[Photograph]) -> int:
    """Read every file once, into the page cache; their bytes."""
    return sum(len(Path(one.path).read_bytes()) for one in files)


class Pinned:
    """This process on one core, and on its own ones again afterwards."""

    def __enter__(self) -> None:
        self._cores, self._threads = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, {min(self._cores)})
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._cores)
        torch.set_num_threads(self._threads)
