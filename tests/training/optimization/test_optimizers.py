"""Which parameter moves how fast, decays or not, and goes on after a restart as if nothing had happened."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.core.recipe import Model, Training
from pipelines.training import networks
from pipelines.training.networks import Network
from pipelines.training.optimization import optimizers
from pipelines.training.optimization.muon import Muon
from pipelines.training.optimization.optimizers import Optimizers

CHOICES = ("adamw", "sgd", "muon")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _network(backbone: str = "small", embedding_dim: int = 8, width: float = 0.25) -> Network:
    torch.manual_seed(0)
    return networks.build(Model(backbone=backbone, embedding_dim=embedding_dim, width=width), 3)


def _groups_by_name(network: Network, built: Optimizers) -> dict[str, dict[str, Any]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [group for member in built.members for group in member.param_groups]
    found = [(names[id(parameter)], group) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def _loss(network: Network, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=generator)
    logits, _ = network(pixels)
    return nn.functional.cross_entropy(logits, torch.arange(12) % 3)


def _train(network: Network, built: Optimizers, steps: range, num_steps: int = 6) -> None:
    for step in steps:
        built.set_progress(step, num_steps)
        built.zero_grad()
        _loss(network, step).backward()  # type: ignore[no-untyped-call]
        built.step()


def _same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("optimizer", CHOICES)
@pytest.mark.parametrize("backbone", ["small", "airbench", "mobilenet_v2"])
def test_every_trainable_parameter_is_in_one_group(backbone: str, optimizer: str) -> None:
    network = _network(backbone)
    groups = _groups_by_name(network, optimizers.build(network, Training(optimizer=optimizer)))
    assert set(groups) == {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("optimizer", CHOICES)
def test_what_the_first_step_will_take_is_known(optimizer: str) -> None:
    network = _network()
    built = optimizers.build(network, Training(optimizer=optimizer))
    before, said = _state_bytes(built), built.missing_bytes
    _train(network, built, range(1))
    assert said == _state_bytes(built) - before
    assert built.missing_bytes == 0


def _state_bytes(built: Optimizers) -> int:
    """Without counters."""
    states = [value for member in built.members for state in member.state.values() for value in state.values()]
    return sum(one.numel() * one.element_size() for one in states if isinstance(one, Tensor) and one.ndim)


@pytest.mark.parametrize("optimizer", CHOICES)
def test_matrices_and_filters_decay_biases_and_normalization_do_not(optimizer: str) -> None:
    network = _network("convnext_tiny")
    groups = _groups_by_name(network, optimizers.build(network, Training(optimizer=optimizer, weight_decay=0.07)))
    decay = {name: group["weight_decay"] for name, group in groups.items()}
    assert decay["body.layers.features.0.0.weight"] == 0.07
    assert decay["body.layers.features.1.0.block.3.weight"] == 0.07
    assert decay["head.embedding.weight"] == 0.07
    assert decay["body.layers.features.0.0.bias"] == 0
    assert decay["body.layers.features.0.1.weight"] == 0
    assert decay["body.layers.features.1.0.layer_scale"] == 0
    assert decay["head.norm.weight"] == 0


@pytest.mark.parametrize(
    ("optimizer", "mode", "peak", "decay"),
    [
        ("adamw", "scratch", 0.003, 0.02),
        ("adamw", "finetune", 0.0003, 0.02),
        ("sgd", "scratch", 0.2, 5e-4),
        ("sgd", "finetune", 0.02, 5e-4),
    ],
)
def test_open_keys_take_the_optimizers_own(optimizer: str, mode: str, peak: float, decay: float) -> None:
    network = _network()
    training = Training(optimizer=optimizer, mode=mode, batch_size=512)
    head = _groups_by_name(network, optimizers.build(network, training))["head.classifier.weight"]
    assert (head["peak"], head["weight_decay"]) == pytest.approx((peak, decay))


def test_given_keys_win() -> None:
    network = _network()
    built = optimizers.build(network, Training(optimizer="sgd", learning_rate=0.5, weight_decay=0.0, momentum=0.0))
    assert [(group["peak"], group["weight_decay"]) for group in built.members[0].param_groups] == [(0.5, 0.0)]
    assert built.members[0].param_groups[0]["momentum"] == 0


def test_finetuning_slows_each_block_below_the_head() -> None:
    network = _network()
    training = Training(mode="finetune", optimizer="adamw", learning_rate=0.1, layer_decay=0.5)
    groups = _groups_by_name(network, optimizers.build(network, training))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    blocks = network.blocks()
    assert len(blocks) > 3
    for above, block in enumerate(reversed(blocks)):
        assert {groups[names[id(one)]]["peak"] for one in block} == {0.1 * 0.5**above}


@pytest.mark.parametrize("optimizer", CHOICES)
def test_rates_follow_the_schedule(optimizer: str) -> None:
    network = _network()
    training = Training(optimizer=optimizer, schedule="trapezoid", warmup_share=0.0, cooldown_share=1.0)
    built = optimizers.build(network, training)
    built.set_progress(3, 4)
    assert built.rate == pytest.approx(built.peak / 4)
    for group in (group for member in built.members for group in member.param_groups):
        assert group["lr"] == pytest.approx(group["peak"] / 4)


def test_muon_takes_filters_below_the_head_and_a_helper_the_rest() -> None:
    network = _network("mobilenet_v2")
    muon, helper = optimizers.build(network, Training(optimizer="muon")).members
    assert isinstance(muon, Muon)
    assert isinstance(helper, torch.optim.AdamW)
    taken = {id(one) for group in muon.param_groups for one in group["params"]}
    for name, parameter in network.named_parameters():
        is_depthwise = parameter.ndim == 4 and parameter.shape[1] == 1
        expected = parameter.ndim > 1 and not is_depthwise and not name.startswith("head.")
        assert (id(parameter) in taken) == expected, name


def test_helper_keeps_its_ratio_to_the_rate_of_muon() -> None:
    network = _network("mobilenet_v2")
    groups = _groups_by_name(network, optimizers.build(network, Training(optimizer="muon", learning_rate=0.04)))
    assert not network.scale_invariant
    assert groups["head.embedding.weight"]["peak"] == pytest.approx(0.006)


def test_networks_that_are_scale_invariant_have_their_filters_normalized() -> None:
    normalized = optimizers.build(_network("small"), Training(optimizer="muon"))
    plain = optimizers.build(_network("mobilenet_v2"), Training(optimizer="muon"))
    keys = ("normalize", "peak", "momentum", "iterations", "weight_decay")
    assert [normalized.members[0].param_groups[0][key] for key in keys] == [True, 0.24, 0.6, 3, 0.0]
    assert [plain.members[0].param_groups[0][key] for key in keys] == [False, 0.02, 0.95, 5, 0.01]


def test_airbench_has_the_rates_of_its_script() -> None:
    network = _network("airbench", embedding_dim=0)
    built = optimizers.build(network, Training(optimizer="muon", batch_size=2000, learning_rate=0.12))
    assert isinstance(built.members[1], torch.optim.SGD)
    groups = _groups_by_name(network, built)
    half = 0.12 / 0.24
    head, whitening = groups["head.classifier.weight"], groups["body.layers.0.bias"]
    assert head["peak"] == pytest.approx(0.67 * 2000 * half)
    assert head["momentum"] == 0.85
    assert whitening["peak"] == pytest.approx(0.053 * 2000 * half)
    for group in (head, whitening):
        assert group["peak"] * group["weight_decay"] == pytest.approx(2e-6 * 2000)


def test_early_parameters_stop_before_the_others() -> None:
    network = _network("airbench", embedding_dim=0)
    training = Training(optimizer="muon", schedule="trapezoid", warmup_share=0.0, cooldown_share=1.0)
    built = optimizers.build(network, training)
    whitening = _groups_by_name(network, built)["body.layers.0.bias"]
    shares = []
    for step in (0, 3, 6, 9):
        built.set_progress(step, 16)
        shares.append(whitening["lr"] / whitening["peak"])
    assert shares == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert built.rate == pytest.approx(0.24 * 7 / 16)


def test_rates_for_the_mean_loss_step_as_airbenchs_do_for_the_sum() -> None:
    batch_size = 16  # a power of two, so that scaling the loss rounds nothing
    decay = 2e-6 * batch_size
    ours, theirs = _network("airbench", embedding_dim=0), _network("airbench", embedding_dim=0)
    built = optimizers.build(ours, Training(optimizer="muon", batch_size=batch_size))
    biases = [one for one in theirs.parameters() if one.requires_grad and one.ndim == 1]
    matrix = theirs.get_parameter("head.classifier.weight")
    filters = [one for one in theirs.parameters() if one.requires_grad and one.ndim == 4]
    sgd = torch.optim.SGD(
        [
            {"params": biases, "lr": 0.053, "weight_decay": decay / 0.053},
            {"params": [matrix], "lr": 0.67, "weight_decay": decay / 0.67},
        ],
        momentum=0.85,
        nesterov=True,
    )
    muon = Muon(filters, lr=0.24, momentum=0.6, normalize=True, iterations=3)
    for step in range(2):
        built.zero_grad()
        _loss(ours, step).backward()  # type: ignore[no-untyped-call]
        built.step()
        theirs.zero_grad()
        (_loss(theirs, step) * batch_size).backward()  # type: ignore[no-untyped-call]
        sgd.step()
        muon.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name


@pytest.mark.parametrize("optimizer", CHOICES)
@pytest.mark.parametrize("backbone", ["small", "airbench"])
@pytest.mark.parametrize("contiguous", [False, True], ids=["as saved", "saved without memory formats"])
def test_resumed_training_gives_the_same_bits(backbone: str, optimizer: str, contiguous: bool) -> None:
    training = Training(optimizer=optimizer, batch_size=12)
    whole = _network(backbone, embedding_dim=0)
    _train(whole, optimizers.build(whole, training), range(6))

    first = _network(backbone, embedding_dim=0)
    built = optimizers.build(first, training)
    _train(first, built, range(3))
    file = io.BytesIO()
    torch.save({"network": first.state_dict(), "optimizers": built.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    if contiguous:
        for member in saved["optimizers"]["members"]:
            for state in member["state"].values():
                state.update({name: value.contiguous() for name, value in state.items()})
    second = _network(backbone, embedding_dim=0)
    second.load_state_dict(saved["network"])
    built = optimizers.build(second, training)
    built.load_state_dict(saved["optimizers"])
    _train(second, built, range(3, 6))
    assert _same(second, whole)


@pytest.mark.parametrize("optimizer", CHOICES)
def test_a_scaler_unscales_and_skips_what_overflowed(optimizer: str) -> None:
    training = Training(optimizer=optimizer)
    plain, scaled = _network(), _network()
    built = optimizers.build(plain, training)
    built.zero_grad()
    _loss(plain, 1).backward()  # type: ignore[no-untyped-call]
    built.step()

    built = optimizers.build(scaled, training)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = {name: one.detach().clone() for name, one in scaled.named_parameters()}
    statistics = {name: one.clone() for name, one in scaled.named_buffers()}
    scaler.scale(_loss(scaled, 0) * float("inf")).backward()
    built.step(scaler)
    scaler.update()
    assert all(torch.equal(one, before[name]) for name, one in scaled.named_parameters())

    for name, one in scaled.named_buffers():
        one.copy_(statistics[name])
    built.zero_grad()
    scaler.scale(_loss(scaled, 1)).backward()
    built.unscale(scaler)
    built.step(scaler)
    for (name, one), other in zip(scaled.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5), name


@pytest.mark.parametrize("optimizer", CHOICES)
def test_a_few_steps_with_the_defaults_learn(optimizer: str) -> None:
    network = _network()
    built = optimizers.build(network, Training(optimizer=optimizer))
    start = _loss(network, 0).item()
    for step in range(20):
        built.set_progress(step, 20)
        built.zero_grad()
        _loss(network, 0).backward()  # type: ignore[no-untyped-call]
        built.step()
    assert _loss(network, 0).item() < 0.7 * start
