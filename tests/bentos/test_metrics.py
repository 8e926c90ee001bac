"""What an operator's dashboards refer to: every metric by its name and labels, as bentos/README.md has them."""

from __future__ import annotations

import re
from http.client import HTTPConnection

import pytest
from example_packages import coloured
from prometheus_client.parser import text_string_to_metric_families
from served_bento import Served
from serving_platform import ask

from pipelines.settings import REPOSITORY

_ROW = re.compile(r"^\| (`darkroom_[^|]*)\|([^|]*)\|", re.MULTILINE)
_WITHOUT_LABELS_AT_TIMES = {"darkroom_logged_predictions_total", "darkroom_cache_bytes"}
"""Stand in a row with one that has the labels."""


@pytest.fixture(scope="module")
def documented() -> dict[str, set[str]]:
    """Labels by metric."""
    found = {}
    for names, labels in _ROW.findall((REPOSITORY / "bentos" / "README.md").read_text()):
        for name in re.findall("`(.+?)`", names):
            found[name] = set() if name in _WITHOUT_LABELS_AT_TIMES else set(re.findall("`(.+?)`", labels))
    return found


@pytest.fixture(scope="module")
def shown(served: Served) -> dict[str, set[str]]:
    """Labels by metric, after an answer and a refusal."""
    assert ask(served.port, "/v1/classify", coloured("red", 4712))[0] == 200
    assert ask(served.port, "/v1/classify", b"no image")[0] == 415
    connection = HTTPConnection("127.0.0.1", served.port, timeout=20)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if not name.endswith("_created"):
            found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


def test_every_metric_is_documented(documented: dict[str, set[str]], shown: dict[str, set[str]]) -> None:
    assert shown.keys() == documented.keys()


def test_labels_are_those_of_the_document(documented: dict[str, set[str]], shown: dict[str, set[str]]) -> None:
    never_happened = {name for name, labels in shown.items() if not labels}
    may_be_silent = ("limited", "spans", "log", "backend", "shared")
    assert shown == {name: set() if name in never_happened else labels for name, labels in documented.items()}
    assert never_happened <= {
        name for name, labels in documented.items() if not labels or name.split("_")[1] in may_be_silent
    }
