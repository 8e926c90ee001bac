"""Networks: every backbone answers, the airbench network whitens, weights start from files."""

from __future__ import annotations

import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.core.errors import UserError
from pipelines.core.recipe import Model
from pipelines.training import networks


def _pixels(num_images: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (num_images, side, side, 3), dtype=torch.uint8, generator=generator)


def test_the_recipe_allows_exactly_the_backbones_that_there_are() -> None:
    (backbone,) = (key for key in fields(Model) if key.name == "backbone")
    assert set(typing.cast("tuple[str, ...]", backbone.metadata["choices"])) == set(networks.BACKBONES)


@pytest.mark.parametrize("backbone", sorted(networks.BACKBONES))
@pytest.mark.parametrize("embedding_dim", [0, 16])
def test_every_backbone_answers_with_logits_and_an_embedding(backbone: str, embedding_dim: int) -> None:
    network = networks.build(Model(backbone=backbone, embedding_dim=embedding_dim), num_classes=5).eval()
    with torch.inference_mode():
        logits, embedding = network(_pixels(2, 64))
    assert logits.shape == (2, 5)
    assert embedding.shape == (2, embedding_dim or network.body.num_features)


@pytest.mark.parametrize("backbone", sorted(networks.BACKBONES))
def test_blocks_hold_every_trainable_parameter_once_and_end_with_the_head(backbone: str) -> None:
    network = networks.build(Model(backbone=backbone, embedding_dim=16), num_classes=5)
    in_blocks = [id(one) for block in network.blocks() for one in block]
    assert sorted(in_blocks) == sorted(id(one) for one in network.parameters() if one.requires_grad)
    assert [id(one) for one in network.blocks()[-1]] == [id(one) for one in network.head.parameters()]
    assert len(network.blocks()) > 3


@pytest.mark.parametrize("backbone", ["small", "airbench", "resnet18", "resnet50"])
def test_where_scale_does_not_matter_it_does_not(backbone: str) -> None:
    """The claim behind `scale_invariant`: a filter bank doubled changes nothing while batch norms see the batch."""
    network = networks.build(Model(backbone=backbone, embedding_dim=16), num_classes=5).double().train()
    assert network.scale_invariant
    pixels = _pixels(4, 64)
    # Without batch norm's epsilon, which a doubled filter makes half as important.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eps = 1e-200
    network._normalized = lambda _: (pixels.permute(0, 3, 1, 2).double() - network.mean) * network.scale  # type: ignore[method-assign]
    with torch.no_grad():
        before = network(pixels)[0]
        for parameter in network.body.parameters():
            if parameter.ndim == 4 and parameter.requires_grad:
                parameter.mul_(2)
        after = network(pixels)[0]
    assert torch.allclose(before, after, rtol=1e-6, atol=1e-8)


def test_whitened_patches_are_uncorrelated_and_of_equal_size() -> None:
    network = networks.build(Model(backbone="airbench", embedding_dim=0, width=0.25), num_classes=4)
    smooth = torch.nn.functional.interpolate(
        _pixels(600, 8).permute(0, 3, 1, 2).float(), scale_factor=4, mode="bilinear"
    )
    pixels = smooth.permute(0, 2, 3, 1).to(torch.uint8)
    network.initialize(pixels)
    whitening = network.body.layers[0]
    assert not whitening.weight.requires_grad
    with torch.no_grad():
        answers = nn.functional.conv2d(network._normalized(pixels), whitening.weight)
    rows = answers.permute(1, 0, 2, 3).flatten(1)
    assert torch.equal(rows[:12], -rows[12:])
    covariance = rows[:12] @ rows[:12].T / rows.shape[1]
    variances = covariance.diagonal()
    assert variances.max() < 1.001
    assert variances[-6:].min() > 0.9  # the directions in which patches differ by more than noise
    assert (covariance - torch.diag(variances)).abs().max() < 0.01


def test_the_largest_of_each_channel_is_torchs_and_has_a_way_back_that_repeats() -> None:
    layers = networks.build(Model(backbone="airbench", embedding_dim=0, width=0.25), num_classes=4).body.layers
    features = torch.randn(4, 64, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layers[-1](features), nn.functional.adaptive_max_pool2d(features, 1).flatten(1))
    # Refused on a GPU in deterministic mode; no other pooling here is.
    assert not any(isinstance(module, nn.AdaptiveMaxPool2d) for module in layers.modules())


def test_weights_to_start_from_are_not_initialized_over(tmp_path: Path) -> None:
    model = Model(backbone="airbench", embedding_dim=0, width=0.25)
    network = networks.build(model, num_classes=4)
    assert network.adapts
    torch.save(network.state_dict(), tmp_path / "ours.pt")
    assert not networks.build(replace(model, weights=str(tmp_path / "ours.pt")), num_classes=4).adapts


def test_the_whitening_bias_is_frozen_when_its_time_is_over() -> None:
    network = networks.build(Model(backbone="airbench", embedding_dim=0, width=0.25), num_classes=4)
    bias = network.body.layers[0].bias
    network.set_progress(0.3)
    assert bias.requires_grad
    network.set_progress(0.4)
    assert not bias.requires_grad


def test_width_scales_the_channels() -> None:
    half = networks.build(Model(backbone="airbench", embedding_dim=0, width=0.5), num_classes=4)
    assert half.body.num_features == 128


def test_weights_of_torchvision_and_of_our_own_start_a_network(tmp_path: Path) -> None:
    import torchvision

    theirs = torchvision.models.mobilenet_v2(num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    model = Model(backbone="mobilenet_v2", weights=str(tmp_path / "theirs.pt"), embedding_dim=16)
    network = networks.build(model, num_classes=5)
    assert torch.equal(network.body.layers.features[0][0].weight, theirs.features[0][0].weight)
    torch.save(network.state_dict(), tmp_path / "ours.pt")
    again = networks.build(Model(backbone="mobilenet_v2", weights=str(tmp_path / "ours.pt"), embedding_dim=16), 9)
    assert torch.equal(again.body.layers.features[0][0].weight, theirs.features[0][0].weight)
    assert again.head.classifier.out_features == 9


def test_weights_from_before_batches_were_counted_start_a_network(tmp_path: Path) -> None:
    import torchvision

    state = torchvision.models.resnet18().state_dict()
    torch.save({key: one for key, one in state.items() if not key.endswith("num_batches_tracked")}, tmp_path / "old.pt")
    network = networks.build(Model(backbone="resnet18", weights=str(tmp_path / "old.pt")), 3)
    assert network.has_weights
    assert torch.equal(network.body.layers.conv1.weight, state["conv1.weight"])


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError, match=r"weights\.pt.*not of resnet18, it lacks conv1\.weight"):
        networks.build(Model(backbone="resnet18", weights=str(path)), 3)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.weights = .*not a readable state dict"):
        networks.build(Model(backbone="resnet18", weights=str(path)), 3)


class _Mine:
    """What a pickle may do to whoever reads it."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trap,)


@pytest.mark.parametrize("where", ["file", "torchvision"])
def test_code_in_a_weights_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Not in torchvision's cache either, whose files are taken for what their names say."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    import torchvision

    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    path = tmp_path / "checkpoints" / Path(url).name
    path.parent.mkdir()
    torch.save(_Mine(tmp_path / "trap"), path)
    with pytest.raises(UserError, match=r"model\.weights = "):
        networks.build(Model(backbone="resnet18", weights=str(path) if where == "file" else "torchvision"), 3)
    assert not (tmp_path / "trap").exists()
