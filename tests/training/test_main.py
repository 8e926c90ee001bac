"""The training command: what it is given wrongly is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from striped_pixels import striped, written

from pipelines.training.__main__ import main


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--set": "{training.epochs: 5}"}, "--set {training.epochs: 5}: no JSON"),
        ({"--set": "[5]"}, "--set [5]: expected an object"),
        ({"--out": "recipe.toml/out"}, "cannot be written to"),
        # Said before a folder of images is read, which may take an hour: this one does not exist.
        ({"--set": '{"training.device": "cuda"}', "--data": "nowhere"}, "training.device = 'cuda': torch sees no GPU"),
        ({"--set": '{"model.weights": "/other.pt"}', "--data": "nowhere"}, "/other.pt"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], words: str
) -> None:
    (tmp_path / "recipe.toml").write_text("[training]\nthreads = 1\n")
    given = {"--recipe": "recipe.toml", "--data": "data", "--out": "out", **changed}
    paths = {"--recipe", "--data", "--out"}
    pairs = [(name, str(tmp_path / value) if name in paths else value) for name, value in given.items()]
    written(tmp_path / "data", striped())
    assert main([word for pair in pairs for word in pair]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
