"""No pickle is executed: every call that could read one says in its own line that it must not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("pipelines", "bentos", "feature_repo", "dags")

_SAFE: dict[str, tuple[str, object]] = {
    # What is read, by the end of the function's name: the argument that keeps pickles out, and its value.
    "torch.load": ("weights_only", True),
    "load_state_dict_from_url": ("weights_only", True),
    "get_state_dict": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "models.get_model": ("weights", None),
}
_NEVER = (
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load", "joblib.load",
    "marshal.load", "marshal.loads", "shelve.open", "read_pickle", "hub.load", "torch.jit.load", "yaml.load",
    "yaml.unsafe_load", "np.lib.format.read_array",
)  # fmt: skip


def _unsafe(source: str) -> Iterator[str]:
    """Lines of Python that read a pickle, or may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "pickle"):
            names = {alias.name for alias in node.names} & {"load", "loads", "Unpickler"}
            yield from (f"{node.lineno}: from {node.module} import {name}" for name in sorted(names))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if any(_ends(called, name) for name in _NEVER):
            yield f"{node.lineno}: {called}"
        for name, (key, value) in _SAFE.items():
            if _ends(called, name) and not _says(node, key, value):
                yield f"{node.lineno}: {called} without {key}={value}"


def _ends(called: str, name: str) -> bool:
    return called == name or called.endswith(f".{name}")


def _says(call: ast.Call, key: str, value: object) -> bool:
    return any(
        given.arg == key and isinstance(given.value, ast.Constant) and given.value.value is value
        for given in call.keywords
    )


def test_no_call_of_ours_reads_a_pickle() -> None:
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 200
    found = {str(path.relative_to(REPOSITORY)): list(_unsafe(path.read_text("utf-8"))) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=asked)",
        "weights.get_state_dict(progress=False)",
        "torch.hub.load_state_dict_from_url(url)",
        "torch.hub.load('pytorch/vision', 'resnet18')",
        "torchvision.models.get_model('resnet18', weights='DEFAULT')",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pickle.loads(data)",
        "pandas.read_pickle(path)",
        "from torch import load",
    ],
)
def test_the_rule_sees(line: str) -> None:
    assert list(_unsafe(line))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, map_location='cpu', weights_only=True)",
        "np.load(path, mmap_mode='r', allow_pickle=False)",
        "json.loads(text)",
        "torch.hub.download_url_to_file(url, path)",
    ],
)
def test_the_rule_lets_pass(line: str) -> None:
    assert not list(_unsafe(line))
