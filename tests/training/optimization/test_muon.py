"""Muon against the decomposition that it approximates, and as an optimizer."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn

from pipelines.training.optimization.muon import Muon, _newton_schulz, orthogonalized


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _set_gradient(parameter: nn.Parameter) -> Tensor:
    parameter.grad = torch.randn_like(parameter)
    return parameter.grad


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (32, 200), (200, 32)])
def test_newton_schulz_is_nearly_the_orthogonal_factor(rows: int, columns: int) -> None:
    left, _ = torch.linalg.qr(torch.randn(rows, min(rows, columns)))
    right, _ = torch.linalg.qr(torch.randn(columns, min(rows, columns)))
    sizes = torch.linspace(0.1, 3.0, min(rows, columns))
    (result,) = orthogonalized([left * sizes @ right.T], iterations=5)
    in_its_own_axes = left.T @ result.float() @ right
    assert in_its_own_axes.diag().min() > 0.5
    assert in_its_own_axes.diag().max() < 1.5
    assert (in_its_own_axes - in_its_own_axes.diag().diag()).abs().max() < 0.05
    assert nn.functional.cosine_similarity(result.float().flatten(), (left @ right.T).flatten(), dim=0) > 0.95


def test_matrices_of_several_shapes_come_back_in_their_order_and_whatever_their_scale() -> None:
    matrices = [torch.randn(shape) for shape in ((8, 20), (16, 4), (8, 20), (5, 5))]
    together = orthogonalized(matrices, iterations=5)
    for matrix, result in zip(matrices, together, strict=True):
        assert result.shape == matrix.shape
        (scaled,) = orthogonalized([matrix * 2.0**-20], iterations=5)
        assert torch.equal(scaled, result)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        assert nn.functional.cosine_similarity(result.float().flatten(), (left @ right).flatten(), dim=0) > 0.9


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_a_stack_as_a_gpu_works_on_it_gives_what_its_matrices_give(shape: tuple[int, int]) -> None:
    matrices = [10.0**place * torch.randn(shape) for place in range(3)]
    stacked = _newton_schulz(torch.stack(matrices), iterations=5)
    alone = torch.stack(orthogonalized(matrices, iterations=5))
    assert torch.allclose(stacked.float(), alone.float(), atol=0.02)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    (result,) = orthogonalized([torch.zeros(4, 6)], iterations=5)
    assert torch.equal(result, torch.zeros_like(result))


def test_first_step_is_the_orthogonalized_gradient_times_the_rate() -> None:
    weight = nn.Parameter(torch.randn(8, 20))
    before = weight.detach().clone()
    gradient = _set_gradient(weight)
    Muon([weight], lr=0.1, momentum=0.9).step()
    (update,) = orthogonalized([gradient], iterations=5)
    assert torch.allclose(before - weight, 0.1 * update.float(), atol=1e-6)


def test_momentum_looks_ahead_as_nesterov_does() -> None:
    weight = nn.Parameter(torch.randn(8, 20))
    optimizer = Muon([weight], lr=0.1, momentum=0.5)
    first = _set_gradient(weight)
    optimizer.step()
    before = weight.detach().clone()
    second = _set_gradient(weight)
    optimizer.step()
    (update,) = orthogonalized([second + 0.5 * (second + 0.5 * first)], iterations=5)
    assert torch.allclose(before - weight, 0.1 * update.float(), atol=1e-3)


def test_normalized_filters_start_each_update_at_the_norm_of_their_count() -> None:
    filters = nn.Parameter(7 * torch.randn(16, 4, 3, 3))
    before = filters.detach().clone()
    gradient = _set_gradient(filters)
    Muon([filters], lr=0.24, momentum=0.6, weight_decay=0.5, normalize=True, iterations=3).step()
    (update,) = orthogonalized([gradient.flatten(1)], iterations=3)
    expected = before * (math.sqrt(16) / before.norm()) - 0.24 * update.float().view_as(before)
    assert torch.allclose(filters, expected, atol=1e-6)


def test_decay_is_decoupled_and_tall_matrices_take_longer_steps() -> None:
    tall = nn.Parameter(torch.randn(40, 10))
    before = tall.detach().clone()
    gradient = _set_gradient(tall)
    Muon([tall], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    (update,) = orthogonalized([gradient], iterations=5)
    assert torch.allclose(tall, before * (1 - 0.1 * 0.5) - 0.1 * 2 * update.float(), atol=1e-6)


def test_memory_format_does_not_change_the_bits() -> None:
    values, gradient = torch.randn(16, 8, 3, 3), torch.randn(16, 8, 3, 3)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        filters = nn.Parameter(values.clone(memory_format=memory_format))
        filters.grad = gradient.contiguous(memory_format=memory_format)
        Muon([filters]).step()
        results.append(filters.detach())
    assert torch.equal(*results)


def test_parameters_without_a_gradient_stay() -> None:
    moved, still = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    _set_gradient(moved)
    optimizer = Muon([moved, still], weight_decay=0.5)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 3))
    assert list(optimizer.state) == [moved]


def test_it_solves_a_regression() -> None:
    inputs = torch.randn(256, 12)
    wanted = inputs @ torch.randn(12, 6)
    weight = nn.Parameter(torch.zeros(6, 12))
    optimizer = Muon([weight], lr=0.3, momentum=0.9)
    losses = []
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 120)
        optimizer.zero_grad()
        loss = (inputs @ weight.T - wanted).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


def test_resumed_training_gives_the_same_bits() -> None:
    def train(weight: nn.Parameter, optimizer: Muon, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()

    start = torch.randn(16, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    whole = nn.Parameter(start.clone())
    train(whole, Muon([whole], weight_decay=0.1), range(6))

    first = nn.Parameter(start.clone())
    optimizer = Muon([first], weight_decay=0.1)
    train(first, optimizer, range(3))
    assert set(optimizer.state[first]) == {"momentum_buffer"}
    file = io.BytesIO()
    torch.save({"weight": first.detach(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = nn.Parameter(saved["weight"])
    optimizer = Muon([second])
    optimizer.load_state_dict(saved["optimizer"])
    train(second, optimizer, range(3, 6))
    assert torch.equal(second, whole)
