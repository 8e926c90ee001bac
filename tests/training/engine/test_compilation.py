"""torch.compile, truly compiled for the CPU: the same training, whatever size batches and images come to have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from striped_pixels import recipe, striped
from torch import Tensor, nn

from pipelines.core.recipe import Recipe
from pipelines.training import networks, trainer
from pipelines.training.batch import Batch
from pipelines.training.devices import Compute
from pipelines.training.engine.compilation import compiled
from pipelines.training.engine.distribution import Replica, World
from pipelines.training.engine.step import Stepper
from pipelines.training.networks import Network
from pipelines.training.networks.network import Body, Traits
from pipelines.training.optimization import optimizers

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="needs a C++ compiler"),
]
CPU = Compute(device=torch.device("cpu"))


SIDE = 12
"""px; not the size of any batch, which torch would take for the same number."""


@pytest.fixture(scope="module", autouse=True)
def _from_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No graph that an earlier run left on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("graphs")))
        yield
    torch.compiler.reset()


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(networks, "build", lambda *_: _network())


def _network() -> Network:
    """With a batch norm, and no more for the compiler to do."""
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return Network(Body(layers, 8), 0, 2, Traits()).to(memory_format=torch.channels_last)


def _num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _asked(compile: str, **augmentation: object) -> Recipe:  # noqa: A002
    training = {"compile": compile, "precision": "fp32", "optimizer": "sgd", "learning_rate": 0.05, "batch_size": 32}
    return recipe(SIDE, training=training, augmentation=augmentation)


def test_a_compiled_training_is_the_plain_one_while_images_grow(tmp_path: Path) -> None:
    histories, states = [], []
    for choice in ("off", "on"):
        out = tmp_path / choice
        trainer.train(striped(num_train=65, side=SIDE), _asked(choice, start_size=0.5), out, checkpoints=out / "c")
        histories.append(json.loads((out / "history.json").read_text()))
        states.append(torch.load(out / "weights.pt", weights_only=True))
    assert _num_graphs() >= 1, "it was not compiled"
    for plain, ours in zip(*histories, strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)
    assert list(states[1]) == list(states[0])
    for name, value in states[0].items():
        assert torch.allclose(states[1][name].double(), value.double(), rtol=1e-2, atol=1e-3), name


class _Narrow(nn.Module):
    """Memory for so many images."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, pixels: Tensor) -> object:
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.network(pixels)


def _stepper(asked: Recipe, *, compile: bool, micro_batch: int) -> Stepper:  # noqa: A002
    torch.manual_seed(0)
    network = _network().train()
    forward = _Narrow(compiled(network, asked, CPU.device), 16) if compile else network
    return Stepper(
        network=network,
        replica=Replica(network, forward, World()),
        optimizers=optimizers.build(network, asked.training),
        average=None,
        scaler=CPU.scaler(),
        training=asked.training,
        compute=CPU,
        num_steps=4,
        micro_batch=micro_batch,
    )


def _batch(num_images: int) -> Batch:
    random = torch.Generator().manual_seed(num_images)
    return Batch(
        pixels=torch.randint(0, 256, (num_images, SIDE, SIDE, 3), generator=random, dtype=torch.uint8),
        labels=torch.randint(0, 2, (num_images,), generator=random),
        weights=torch.ones(num_images),
        num_global=num_images,
    )


def test_where_memory_runs_out_one_graph_for_all_sizes_goes_on() -> None:
    asked = _asked("on")
    ours, plain = _stepper(asked, compile=True, micro_batch=32), _stepper(asked, compile=False, micro_batch=16)
    for number, num_images in enumerate((32, 30, 27)):  # parts of 16; of 15; of 14 and 13
        expected = float(plain.step(_batch(num_images), number))
        assert float(ours.step(_batch(num_images), number)) == pytest.approx(expected, rel=1e-3)
        if number == 0:
            num_graphs = _num_graphs()
    assert ours.micro_batch == 16
    assert _num_graphs() == num_graphs > 0, "every size was compiled anew"
    assert list(ours.network.state_dict()) == list(plain.network.state_dict())
