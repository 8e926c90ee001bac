"""Results are published whole, found by key, and refuse to lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.core.errors import IntegrityError
from pipelines.core.results import ResultStore, from_json, to_json
from pipelines.core.storage import LocalStorage
from pipelines.core.values import Finding, Validated


@dataclass(frozen=True, kw_only=True)
class Value:
    number: int


def _folder(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / f"out-{text}"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file.txt").write_text(text)
    return folder


@pytest.fixture
def results(tmp_path: Path) -> ResultStore:
    return ResultStore(LocalStorage(tmp_path / "store"), tmp_path / "cache")


def test_what_is_published_is_found(results: ResultStore, tmp_path: Path) -> None:
    assert results.find("demo", "k") is None
    stored = results.publish("demo", "k", _folder(tmp_path, "a"), Value(number=3), {"seconds": 1})
    found = results.find("demo", "k")
    assert found is not None
    assert found.load(Value) == Value(number=3)
    assert (found.folder / "sub" / "file.txt").read_text() == "a"
    assert found.digest == stored.digest


def test_the_digest_covers_value_and_files_but_not_circumstances(results: ResultStore, tmp_path: Path) -> None:
    one = results.publish("demo", "1", _folder(tmp_path, "a"), Value(number=3), {"seconds": 1})
    two = results.publish("demo", "2", _folder(tmp_path, "a2"), Value(number=3), {"seconds": 1})
    three = results.publish("demo", "3", _folder(tmp_path / "x", "a"), Value(number=3), {"seconds": 2})
    assert one.digest == three.digest
    assert one.digest != two.digest


def test_an_unsealed_result_does_not_exist(results: ResultStore, tmp_path: Path) -> None:
    stored = results.publish("demo", "k", _folder(tmp_path, "a"), Value(number=3), {})
    (stored.folder / "result.json").unlink()
    assert results.find("demo", "k") is None


def test_the_first_finished_result_stands_unless_replaced(results: ResultStore, tmp_path: Path) -> None:
    results.publish("demo", "k", _folder(tmp_path, "a"), Value(number=1), {})
    assert results.publish("demo", "k", _folder(tmp_path, "b"), Value(number=2), {}).value["number"] == 1
    assert results.publish("demo", "k", _folder(tmp_path, "c"), Value(number=2), {}, replace=True).value["number"] == 2


def test_what_another_process_sealed_meanwhile_stays_sealed(
    results: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []

    def find_nothing_yet(*_: str) -> None:
        monkeypatch.undo()
        results.publish("demo", "k", _folder(tmp_path / "other", "a"), Value(number=1), {})
        monkeypatch.setattr(results.storage, "delete", deleted.append)

    monkeypatch.setattr(results, "find", find_nothing_yet)
    results.publish("demo", "k", _folder(tmp_path, "a"), Value(number=1), {})
    assert deleted == []


def test_an_edited_record_is_refused(results: ResultStore, tmp_path: Path) -> None:
    stored = results.publish("demo", "k", _folder(tmp_path, "a"), Value(number=3), {})
    path = stored.folder / "result.json"
    record = json.loads(path.read_text())
    record["value"]["number"] = 4
    path.write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"result\.json"):
        results.find("demo", "k")


def test_nested_values_survive_json() -> None:
    finding = Finding(expectation="e", observed="1", threshold="2", examples=("a", "b"), blocking=False)
    value = Validated(interval="static", num_expectations=3, findings=(finding,))
    assert from_json(Validated, to_json(value)) == value
