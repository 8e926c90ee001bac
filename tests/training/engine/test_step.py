"""One step: micro-batches equal to the whole batch, mixed labels, and memory that runs out."""

from __future__ import annotations

import gc
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from striped_pixels import recipe, striped
from torch import Tensor, nn

from pipelines.core.errors import PlatformError
from pipelines.core.recipe import Recipe
from pipelines.training import networks, trainer
from pipelines.training.batch import Batch
from pipelines.training.devices import Compute
from pipelines.training.engine.distribution import Replica, World
from pipelines.training.engine.step import Stepper, loss_sum, num_parts, split
from pipelines.training.loading import sources
from pipelines.training.networks import Network
from pipelines.training.networks.network import Body, Traits
from pipelines.training.optimization import optimizers

CPU = Compute(device=torch.device("cpu"))


def _batch(num_images: int, *, mixed: bool = False, side: int = 8) -> Batch:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, num_images), generator=random)
    return Batch(
        pixels=torch.randint(0, 256, (num_images, side, side, 3), generator=random, dtype=torch.uint8),
        labels=labels[0],
        weights=torch.rand(num_images, generator=random) * 2,
        num_global=num_images,
        other_labels=labels[1] if mixed else None,
        other_share=torch.rand(num_images, generator=random) if mixed else None,
    )


def _plain() -> Network:
    """Without batch norm, whose statistics are those of a micro-batch."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Flatten())
    return Network(Body(layers, 72), 0, 3, Traits()).to(memory_format=torch.channels_last)


def _stepper(network: Network, asked: Recipe, micro_batch: int, num_steps: int = 4) -> Stepper:
    return Stepper(
        network=network,
        replica=Replica(network, network, World()),
        optimizers=optimizers.build(network, asked.training),
        average=None,
        scaler=CPU.scaler(),
        training=asked.training,
        compute=CPU,
        num_steps=num_steps,
        micro_batch=micro_batch,
    )


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_accumulated_gradients_are_those_of_the_whole_batch(mixed: bool, optimizer: str) -> None:
    asked = recipe(training={"optimizer": optimizer, "clip_norm": 0.5, "precision": "fp32"})
    weights, losses = [], []
    for micro_batch in (15, 4):
        stepper = _stepper(_plain().double(), asked, micro_batch)
        losses.append([float(stepper.step(_batch(15, mixed=mixed), number)) for number in range(4)])
        weights.append(torch.cat([one.detach().flatten() for one in stepper.network.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    # Muon's products are of lower precision, where the last bits of a sum show.
    assert torch.allclose(weights[1], weights[0], atol=1e-3 if optimizer == "muon" else 1e-9)


def test_the_loss_is_the_weighted_sum_of_both_classes_of_mixed_images() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    batch = _batch(5, mixed=True)
    assert batch.other_labels is not None
    assert batch.other_share is not None
    targets = nn.functional.one_hot(batch.labels, 3) * (1 - batch.other_share)[:, None]
    targets = targets + nn.functional.one_hot(batch.other_labels, 3) * batch.other_share[:, None]
    targets = targets * 0.9 + 0.1 / 3
    expected = (-(targets * logits.log_softmax(1)).sum(1) * batch.weights).sum()
    assert float(loss_sum(logits, batch, 0.1)) == pytest.approx(float(expected), rel=1e-6)


def test_parts_are_nearly_equal_never_single_and_as_many_in_every_process() -> None:
    for num_global in range(2, 60):
        for micro_batch in (1, 2, 3, 8, 100):
            for num_processes in (1, 2):
                number = num_parts(num_global, num_processes, micro_batch)
                mine = -(-num_global // num_processes)
                sizes = [len(part) for part in split(_batch(mine), number)]
                assert sum(sizes) == mine
                assert len(sizes) == number
                assert max(sizes) <= max(micro_batch, 3)
                assert min(sizes) >= min(2, mine)


class _Narrow(nn.Module):
    """Memory for so many images."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.asked: list[int] = []

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.asked.append(len(features))
            if len(features) > self.most:
                raise self.error
        return features


def _with_narrow(network: Network, narrow: _Narrow) -> Network:
    """After the batch norms have counted the images."""
    network.body.layers.append(narrow)  # type: ignore[operator]
    return network


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    narrow = _Narrow(5, error)
    build = networks.build
    monkeypatch.setattr(networks, "build", lambda *asked: _with_narrow(build(*asked), narrow))
    with caplog.at_level(logging.WARNING):
        result = trainer.train(striped(), recipe(), tmp_path / "short", checkpoints=tmp_path / "short" / "c")
    assert result.micro_batch == 4
    assert narrow.asked[:6] == [16, 8, 4, 4, 4, 4]
    assert set(narrow.asked[6:]) == {4}
    assert "going on with 4 images at once, gradients added up to batches of 16" in caplog.text
    monkeypatch.setattr(networks, "build", build)
    asked = recipe(training={"micro_batch": 4})
    trainer.train(striped(), asked, tmp_path / "asked", checkpoints=tmp_path / "asked" / "c")
    for name in ("weights.pt", "history.json"):
        assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "asked" / name).read_bytes()


@pytest.mark.parametrize("strategy", ["resident", "mapped"])
def test_memory_that_runs_out_while_images_are_loaded_is_made_by_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """On a GPU images are cut beside the step, in the memory that it leaves."""
    transform, calls = sources.transform, []

    def failing(*arguments: Any) -> Tensor:
        calls.append(arguments)
        if len(calls) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return transform(*arguments)

    plain = recipe(loading={"strategy": strategy}, training={"precision": "fp32"}, model={"embedding_dim": 0})
    monkeypatch.setattr(networks, "build", lambda *_: _plain())
    trainer.train(striped(side=8), plain, tmp_path / "straight", checkpoints=tmp_path / "straight" / "c")
    monkeypatch.setattr(sources, "transform", failing)
    result = trainer.train(striped(side=8), plain, tmp_path / "short", checkpoints=tmp_path / "short" / "c")
    assert result.micro_batch == 8
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("straight", "short")]
    losses = [[epoch["train_loss"] for epoch in history] for history in histories]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3), "every image came once, whatever failed"


def test_a_smaller_micro_batch_outlives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = _Narrow(8, torch.OutOfMemoryError("CUDA out of memory"))
    build = networks.build
    monkeypatch.setattr(networks, "build", lambda *asked: _with_narrow(build(*asked), narrow))
    for _ in range(2):
        result = trainer.train(
            striped(), recipe(), tmp_path, checkpoints=tmp_path / "c", checkpoint_every_s=0, observers=()
        )
        assert result.micro_batch == 8
    assert narrow.asked.count(16) == 1


def test_what_recipe_and_processes_make_of_the_micro_batch_is_not_kept(tmp_path: Path) -> None:
    asked = recipe(training={"micro_batch": 8})
    trainer.train(striped(), asked, tmp_path, checkpoints=tmp_path / "c", checkpoint_every_s=0)
    (newest,) = (max(folder.glob("step-*")) for folder in (tmp_path / "c").iterdir())
    assert torch.load(newest, weights_only=True)["micro_batch"] == 0


def test_one_image_is_enough_to_try_whether_memory_suffices() -> None:
    asked = recipe(model={"embedding_dim": 8})
    network = networks.build(asked.model, 3).train()
    part = next(iter(split(_batch(3), 3)))
    assert len(part) == 1
    _stepper(network, asked, 2)._try(part)


class _Weighing(nn.Module):
    """Bytes of all tensors that are alive when the network is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def forward(self, features: Tensor) -> Tensor:
        gc.collect()
        storages = {}
        for one in gc.get_objects():
            if type(one) in (Tensor, nn.Parameter):
                storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        self.found.append(sum(storages.values()))
        return features


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_the_try_before_the_first_step_holds_what_later_steps_hold(optimizer: str) -> None:
    """Else the first steps would run out of memory that the try had found to be enough."""
    asked = recipe(model={"embedding_dim": 512}, training={"optimizer": optimizer})
    weighing = _Weighing()
    network = _with_narrow(networks.build(asked.model, 3).train(), weighing)  # type: ignore[arg-type]
    stepper = _stepper(network, asked, 8)
    stepper._try(_batch(8))
    stepper.optimizers.zero_grad()
    for number in range(2):
        stepper.step(_batch(8), number)
    tried, first, second = weighing.found
    scalars = 1_000  # bytes of counters and losses
    assert tried >= second - scalars
    assert (second > first + scalars) is (optimizer != "sgd"), "whose state is there from the start"
    stepper.optimizers.zero_grad()
    stepper._try(_batch(8))
    assert weighing.found[-1] <= second + scalars, "held twice"


def test_of_several_processes_none_goes_on_alone_and_the_key_to_set_is_said() -> None:
    asked = recipe(training={"micro_batch": 8})
    for micro_batch, words in (
        (8, r"8 images at once, .* set training\.micro_batch = 4 "),
        (2, "smaller model.backbone"),
    ):
        narrow = _Narrow(0, torch.OutOfMemoryError("CUDA out of memory"))
        stepper = _stepper(_with_narrow(networks.build(asked.model, 3).train(), narrow), asked, micro_batch)
        stepper.replica.world = World(rank=1, size=2)
        with pytest.raises(PlatformError, match=words):
            stepper._gradients(_batch(8), 0)


def test_a_compiled_network_keeps_its_graph_when_a_parameters_time_is_over() -> None:
    class Compiled(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network
            self.trained: set[bool] = set()

        def forward(self, pixels: Tensor) -> object:
            self.trained.add(bias.requires_grad)
            return self.network(pixels)

    asked = recipe(model={"backbone": "airbench", "embedding_dim": 0}, training={"optimizer": "muon"}, side=16)
    found = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        network = networks.build(asked.model, 3).train()
        bias = network.body.layers[0].bias  # type: ignore[index]
        stepper = _stepper(network, asked, 16)
        forward = Compiled(network)
        if is_compiled:
            stepper.replica = Replica(network, forward, World())
        for number in range(4):
            stepper.step(_batch(16, side=16), number)
        found.append(network.state_dict())
    assert forward.trained == {True}
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_memory_for_nothing_and_other_errors_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = networks.build
    for error, expected, words in (
        (torch.OutOfMemoryError("CUDA out of memory"), PlatformError, "smaller model.backbone"),
        (RuntimeError("shapes do not fit"), RuntimeError, "shapes do not fit"),
    ):
        narrow = _Narrow(0, error)
        monkeypatch.setattr(networks, "build", lambda *asked, narrow=narrow: _with_narrow(build(*asked), narrow))
        with pytest.raises(expected, match=words):
            trainer.train(striped(), recipe(), tmp_path, checkpoints=tmp_path / "c")
