"""torchvision's networks from a weights file: understood, proved by torchvision's own answers, refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from small_datasets import picture

from pipelines.core.errors import UserError
from pipelines.core.foreign import ForeignModel
from pipelines.core.inference import Runtime
from pipelines.core.preprocessing import resize
from pipelines.training import published
from pipelines.training.foreign import TorchvisionNetwork

State = dict[str, torch.Tensor]


def saved(path: Path, architecture: str, *, num_classes: int = 1000) -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = torchvision.models.get_model(architecture, num_classes=num_classes)
    torch.save(network.state_dict(), path)
    return network.eval()


def opened(path: Path, architecture: str, **words: object) -> TorchvisionNetwork:
    return TorchvisionNetwork(
        ForeignModel(form="torchvision", file=str(path), architecture=architecture, **words)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_the_package_graph_answers_like_torchvision(architecture: str, tmp_path: Path) -> None:
    network = saved(tmp_path / "weights.pth", architecture)
    found = opened(tmp_path / "weights.pth", architecture)
    assert found.write(2.0, tmp_path / "model.onnx") == 18
    runtime = Runtime((tmp_path / "model.onnx").read_bytes(), provider="cpu")
    image = picture(1, side=300)
    transforms = published.first_weights(architecture).transforms()
    with torch.inference_mode():
        expected = network(transforms(image)[None]).numpy()
    pixels = resize(image, found.spec)[None]
    for answers in (runtime.run_batch(pixels).logits, found.logits(pixels, 1)):
        assert np.abs(answers - expected).max() < 1e-4
    assert runtime.embedding_dim == {"squeezenet1_1": 512}.get(architecture, 1024)
    assert found.class_names[:2] == ("tench", "goldfish")
    assert found.origin.size_bytes == (tmp_path / "weights.pth").stat().st_size


def test_the_pixels_that_a_person_asks_for(tmp_path: Path) -> None:
    saved(tmp_path / "weights.pth", "squeezenet1_1")
    usual = opened(tmp_path / "weights.pth", "squeezenet1_1")
    assert (usual.spec.height, usual.spec.resize, usual.spec.filter) == (224, 256, "bilinear")
    assert usual.notes[1].endswith("std 0.229, 0.224, 0.225; assumed as for the published weights of squeezenet1_1")
    asked = opened(tmp_path / "weights.pth", "squeezenet1_1", size=112, filter="bicubic", mean=(0.5, 0.5, 0.5))
    assert (asked.spec.height, asked.spec.resize, asked.spec.filter) == (112, 128, "bicubic")
    with pytest.raises(UserError, match="--resize 200: must be at least the 224 px"):
        opened(tmp_path / "weights.pth", "squeezenet1_1", resize=200)


def test_a_published_file_is_known_by_its_digest() -> None:
    digest = "7ebf99e0" + "0" * 56
    assert published.find("mobilenet_v2", digest).transforms().resize_size == [232]
    assert published.find("mobilenet_v2", "0" * 64) is None


def test_a_head_of_other_classes_needs_their_names(tmp_path: Path) -> None:
    saved(tmp_path / "weights.pth", "mobilenet_v3_small", num_classes=3)
    with pytest.raises(UserError, match="a head of 3 classes and not ImageNet's 1000; name them with --classes FILE"):
        opened(tmp_path / "weights.pth", "mobilenet_v3_small")
    with pytest.raises(UserError, match=r"--classes has 2 names, .*weights.pth 3 classes"):
        opened(tmp_path / "weights.pth", "mobilenet_v3_small", classes=("a", "b"))
    names = ("a", "b", "c")
    assert opened(tmp_path / "weights.pth", "mobilenet_v3_small", classes=names).class_names == names


def _without_a_layer(state: State) -> object:
    return {key: value for key, value in state.items() if not key.startswith("features.0.")}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            _without_a_layer,
            "torchvision's squeezenet1_1: it lacks features.0.weight, features.0.bias",
        ),
        (lambda state: {**state, "more": torch.zeros(1)}, "it has more$"),
        (
            lambda state: {**state, "features.0.weight": torch.zeros(1, 2)},
            r"of another shape features.0.weight \[1, 2\] instead of \[64, 3, 3, 3\]",
        ),
        (lambda state: {"model": state}, r"not a state dict, which maps names to tensors; save model.state_dict\(\)"),
        (lambda _: torch.nn.Linear(1, 1), "not a readable state dict"),
    ],
    ids=["missing", "unexpected", "shapes", "wrapped", "pickled code"],
)
def test_weights_that_do_not_fit(change: Callable[[State], object], text: str, tmp_path: Path) -> None:
    state = saved(tmp_path / "weights.pth", "squeezenet1_1").state_dict()
    torch.save(change(state), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=text):
        opened(tmp_path / "weights.pth", "squeezenet1_1")


def test_a_network_that_torchvision_does_not_have(tmp_path: Path) -> None:
    saved(tmp_path / "weights.pth", "squeezenet1_1")
    with pytest.raises(UserError, match=r"--torchvision resnet19: no such network; torchvision has alexnet, convnext"):
        opened(tmp_path / "weights.pth", "resnet19")
