"""`features.embedding` as text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision

from pipelines.core.embedding_name import TORCHVISION_BACKBONES, parse
from pipelines.core.errors import RecipeError


@pytest.mark.parametrize(
    "text", ["", "hog", "torchvision:resnet18", "torchvision:resnet18:", "package:12ab", "hog-color-v1:x"]
)
def test_a_wrong_name_says_what_is_allowed(text: str) -> None:
    with pytest.raises(RecipeError, match=r"features\.embedding.*hog-color-v1.*torchvision:.*package:"):
        parse(text)


def test_a_network_that_torchvision_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(RecipeError, match=r"features\.embedding = 'torchvision:vgg:w\.pth': .*'vgg'; it has alexnet, "):
        parse("torchvision:vgg:w.pth")
    assert list(TORCHVISION_BACKBONES) == torchvision.models.list_models(module=torchvision.models)


def test_the_parts_of_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = parse("torchvision:resnet18:~/a:b.pth")
    assert (found.kind, found.backbone, found.path) == ("torchvision", "resnet18", tmp_path / "a:b.pth")
    assert parse("package:" + "0" * 64).path is None
    assert parse("hog-color-v1").path is None
