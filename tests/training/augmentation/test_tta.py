"""Averaged views: airbench's arithmetic in torch, and the same answers from the exported graph at any batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pipelines.training.augmentation.tta import Views


class Uneven(nn.Module):
    """A network whose answer depends on where things are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.filters = nn.Conv2d(3, 4, 3)
        self.embedding = nn.Linear(4 * 6 * 8, 6)
        self.classifier = nn.Linear(6, 5)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.filters(pixels.permute(0, 3, 1, 2).float() / 255).relu()
        embedding = self.embedding(features.flatten(1))
        return self.classifier(embedding), embedding


def _pixels(num_images: int) -> Tensor:
    return torch.randint(0, 256, (num_images, 8, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_none_is_the_network_itself() -> None:
    network, pixels = Uneven(), _pixels(3)
    for own, plain in zip(Views(network, "none")(pixels), network(pixels), strict=True):
        assert torch.equal(own, plain)


def test_mirror_averages_two_views() -> None:
    network, pixels = Uneven(), _pixels(3)
    logits, embedding = Views(network, "mirror")(pixels)
    expected = (network(pixels)[0] + network(pixels.flip(2))[0]) / 2
    assert torch.allclose(logits, expected, atol=1e-6)
    assert torch.allclose(embedding, network(pixels)[1], atol=1e-6)


def test_mirror_shift_weights_six_views_as_airbench_does() -> None:
    network, pixels = Uneven(), _pixels(3)

    def mirrored(images: Tensor) -> Tensor:
        return 0.5 * (network(images)[0] + network(images.flip(2))[0])

    padded = pad(pixels.permute(0, 3, 1, 2).float(), (1,) * 4, "reflect").to(torch.uint8).permute(0, 2, 3, 1)
    expected = 0.5 * mirrored(pixels) + 0.25 * mirrored(padded[:, 2:, 2:]) + 0.25 * mirrored(padded[:, :-2, :-2])
    logits, embedding = Views(network, "mirror_shift")(pixels)
    assert torch.allclose(logits, expected, atol=1e-6)
    assert torch.allclose(embedding, network(pixels)[1], atol=1e-6)


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror_shift"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_exported_graph_answers_alike_at_any_batch_size(tta: str, tmp_path: Path) -> None:
    views, path = Views(Uneven(), tta).eval(), str(tmp_path / "views.onnx")
    names = ("pixels", "logits", "embedding")
    axes = {name: {0: "N"} for name in names}
    torch.onnx.export(
        views,
        (_pixels(2),),
        path,
        input_names=names[:1],
        output_names=names[1:],
        dynamic_axes=axes,
        dynamo=False,
        opset_version=17,
    )
    assert [node.op_type for node in onnx.load(path).graph.node].count("Conv") == 1
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for num_images in (1, 2, 7):
        answers = session.run(None, {"pixels": _pixels(num_images).numpy()})
        with torch.inference_mode():
            for answer, expected in zip(answers, views(_pixels(num_images)), strict=True):
                np.testing.assert_allclose(answer, expected.numpy(), atol=1e-5)
