"""The OpenAPI document: valid, complete, with examples that work, and true under random requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from served_bento import Served
from serving_platform import ask

from bentos.classifier import http


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
    routes = {getattr(route, "path", "") for route in http.application(lambda: None).routes}  # type: ignore[arg-type, return-value]
    machines = {"/metrics", "/v1/stream", "/v1/models/{name}/stream", "/{path:path}"}
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


def test_random_requests_are_answered_as_it_says(served: Served, tmp_path: Path) -> None:
    """With every check but one: no schema says which bytes are an image, so what fits it may be refused."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"http://127.0.0.1:{served.port}/v1/models/colours/openapi.json",
            *("--exclude-checks", "positive_data_acceptance", "--max-examples", "10", "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--request-timeout", "20"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert ask(served.port, "/livez")[0] == 200
    assert "Traceback" not in served.log.read_text()
