"""The OpenAPI document: valid, complete, with examples that work, and true under random requests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from served_bento import Served, serve
from serving_platform import ask

from bentos.classifier import http
from pipelines.core.model_package import ModelPackage

KEY = "the key of this process"


@pytest.fixture(scope="module")
def locked(bento: Path, package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A process that wants a key, so that the document's word on who may ask is tried too."""
    key = tmp_path_factory.mktemp("secrets") / "key"
    key.write_text(KEY)
    with serve(bento, package, DARKROOM_AUTH="required", DARKROOM_PLATFORM_KEY_FILE=str(key)) as found:
        yield found


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    status, found = ask(served.port, "/v1/models/colours/openapi.json")
    assert status == 200
    return dict(found)


def test_it_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


def test_every_route_is_in_it(document: dict[str, Any]) -> None:
    known = {
        path.replace("colours", "{name}").replace("/versions/7", "/versions/{version}") for path in document["paths"]
    }
    routes = {endpoint.path for endpoint in http.table().endpoints if endpoint.socket is None}
    machines = {"/metrics"}
    documents = {"/v1/openapi.json", "/v1/models/{name}/openapi.json"}
    assert routes - machines - documents == known


def test_its_examples_work(served: Served, document: dict[str, Any]) -> None:
    tried = 0
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if "example" in content:
                    status, answer = ask(served.port, path, json.dumps(content["example"]).encode())
                    assert status == 200, answer
                    assert answer["outputs"][-1]["data"] == ["red"]
                    tried += 1
    assert tried == 2


def test_random_requests_are_answered_as_it_says(locked: Served, tmp_path: Path) -> None:
    """With every check but one: no schema says which bytes are an image, so what fits it may be refused."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"http://127.0.0.1:{locked.port}/v1/models/colours/openapi.json",
            *("--header", f"Authorization: Bearer {KEY}"),
            *("--exclude-checks", "positive_data_acceptance", "--max-examples", "10", "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--request-timeout", "20"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert ask(locked.port, "/livez")[0] == 200
    assert "Traceback" not in locked.log.read_text()
