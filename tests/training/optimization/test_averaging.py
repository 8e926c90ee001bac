"""The average against its closed form, and weights that come back bit for bit."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from pipelines.training.optimization.averaging import Average


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))


def _ready() -> nn.Module:
    network = _network()
    network(torch.randn(8, 3, 6, 6))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _fill(network: nn.Module, value: float) -> None:
    with torch.no_grad():
        for one in network.state_dict().values():
            one.fill_(value)


def test_average_of_a_constant_follows_the_closed_form() -> None:
    network = _ready()
    _fill(network, 0.0)
    average = Average(network, 0.5)
    _fill(network, 8.0)
    left = 1.0
    for decay in (1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 0.5, 0.5, 0.5):
        average.update()
        left *= decay
        for name, value in average.state_dict()["average"].items():
            expected = 8.0 * (1 - left) if value.is_floating_point() else 8.0
            assert torch.allclose(value.double(), torch.full_like(value, 1).double() * expected, rtol=1e-5), name


def test_statistics_are_averaged_and_counters_copied() -> None:
    network = _ready()
    average = Average(network, 0.9)
    before = _bits(network)
    network(torch.randn(8, 3, 6, 6) + 3)
    average.update()
    now, averaged = _bits(network), average.state_dict()["average"]
    assert torch.allclose(averaged["1.running_mean"], 0.1 * before["1.running_mean"] + 0.9 * now["1.running_mean"])
    assert int(averaged["1.num_batches_tracked"]) == 2


def test_applied_changes_neither_the_networks_bits_nor_its_own() -> None:
    network = _ready()
    average = Average(network, 0.99)
    _fill(network, 1 / 3)
    average.update()
    own = _bits(network)
    averaged = {name: value.clone() for name, value in average.state_dict()["average"].items()}
    with average.applied():
        assert all(torch.equal(value, averaged[name]) for name, value in network.state_dict().items())
    with pytest.raises(RuntimeError, match="in the middle"), average.applied():
        raise RuntimeError("in the middle")
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, averaged[name]) for name, value in average.state_dict()["average"].items())


def test_resumed_average_gives_the_same_bits() -> None:
    def go_on(network: nn.Module, average: Average, steps: range) -> None:
        for step in steps:
            _fill(network, 1 / (step + 3))
            average.update()

    network = _ready()
    whole = Average(network, 0.3)
    go_on(network, whole, range(8))

    network = _ready()
    average = Average(network, 0.3)
    go_on(network, average, range(4))
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    network = _ready()
    average = Average(network, 0.3)
    average.load_state_dict(torch.load(file, weights_only=True))
    go_on(network, average, range(4, 8))
    expected = whole.state_dict()
    assert average.num_updates == 8
    assert all(torch.equal(value, expected["average"][name]) for name, value in average.state_dict()["average"].items())
