"""Class names from a file, and what a person said of a foreign model."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from pipelines.core.foreign import ForeignModel, read_class_names
from pipelines.core.recipe import Recipe
from pipelines.core.runs import RunFolder, RunId, RunRequest
from pipelines.core.storage import LocalStorage


def test_one_name_a_line(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufefftench\r\ngreat white shark \r\nÖtzi\r\n\r\n".encode())
    assert read_class_names(tmp_path / "names.txt") == ("tench", "great white shark", "Ötzi")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a\n\nb\n", "line 2 is empty; one class name a line"),
        (b"a\nb\na\n", "'a' is on lines 1 and 3; classes are told apart by name"),
        (b"a\n", "a classifier has two classes or more"),
        (b"\xff\xfe\x00", "not a readable text file"),
    ],
)
def test_names_that_cannot_be_used(text: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(text)
    with pytest.raises(UserError, match=words):
        read_class_names(tmp_path / "names.txt")


def test_a_run_remembers_the_model_it_was_asked_for(tmp_path: Path) -> None:
    model = ForeignModel(form="onnx", file="/m.onnx", classes=("a", "b"), mean=(0.5, 0.5, 0.5), layout="NHWC")
    folder = RunFolder(LocalStorage(tmp_path), RunId(dag_id="import_model__x1", run_id="import__1"))
    asked = RunRequest(recipe=Recipe(name="x1"), foreign=model, deploy_unmeasured=True)
    assert folder.begin(asked) == folder.request() == asked
    assert model.as_parameters() == {"import.form": "onnx", "import.mean": "(0.5, 0.5, 0.5)", "import.layout": "NHWC"}
