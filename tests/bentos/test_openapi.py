"""The OpenAPI document: valid, complete, with examples that work, and true under random requests."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from request_bodies import tar_of
from served_bento import Served, serve
from serving_platform import ask

from bentos.classifier import http
from bentos.kit.errors import RequestRefused, problem_of, problem_table
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


def test_every_operation_works_as_its_example_has_it(served: Served, document: dict[str, Any]) -> None:
    """With every parameter's example and each kind of body; the answer is what its schema and its example say."""
    tried = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for kind, body in bodies(document, operation):
                target = f"{path}?{query(operation)}"
                status, answered, answer = raw(served, method, target, body, kind)
                assert status == 200, (target, kind, answer)
                content = operation["responses"]["200"]["content"][answered]
                if answered == "application/x-ndjson":
                    lines = [json.loads(line) for line in answer.splitlines()]
                    assert len(lines) == 2
                    for line in lines:
                        check(document, {"$ref": "#/components/schemas/BatchLine"}, line)
                else:
                    check(document, content["schema"], json.loads(answer))
                    assert json.loads(answer) == content.get("example", json.loads(answer))
                tried.append(operation["operationId"])
    assert set(tried) == {
        one["operationId"] for operations in document["paths"].values() for one in operations.values()
    }


def test_a_refusal_is_what_its_schema_says(served: Served, document: dict[str, Any]) -> None:
    status, problem = ask(served.port, "/v1/classify", b"no image")
    responses = document["paths"]["/v1/classify"]["post"]["responses"]
    check(document, responses[str(status)]["content"]["application/problem+json"]["schema"], problem)
    _, _, answer = raw(served, "post", "/v1/classify/batch", *reversed(form([b"no image"])))
    check(document, {"$ref": "#/components/schemas/BatchLine"}, json.loads(answer))


def test_when_to_come_again_is_in_the_schemas_of_refusals(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    problem = problem_table(problem_of(RequestRefused(429, "too_many_requests", "slowly", retry_after_s=5)), "mine")
    _, refused_line = schemas["BatchLine"]["oneOf"]
    for schema, value in ((schemas["Problem"], problem), (refused_line, {"index": 3, "name": "a", **problem})):
        check(document, schema, value)
        assert set(value) == set(schema["properties"])
        assert "retry_after_s" not in schema["required"]


def bodies(document: dict[str, Any], operation: dict[str, Any]) -> list[tuple[str, bytes | None]]:
    """Content type and body of each kind that the operation takes; the picture is the document's own."""
    if "requestBody" not in operation:
        return [("", None)]
    image, contents = picture(document), operation["requestBody"]["content"]
    many = "application/x-tar" in contents
    made = {
        "application/octet-stream": ("application/octet-stream", image),
        "multipart/form-data": form([image] * (2 if many else 1)),
        "application/x-tar": ("application/x-tar", tar_of([image] * 2)),
    }
    examples = {kind: (kind, json.dumps(one["example"]).encode()) for kind, one in contents.items() if "example" in one}
    return [{**made, **examples}[kind] for kind in contents]


def picture(document: dict[str, Any]) -> bytes:
    (infer,) = (path for path in document["paths"] if path.endswith("colours/infer"))
    example = document["paths"][infer]["post"]["requestBody"]["content"]["application/json"]["example"]
    return base64.b64decode(example["inputs"][0]["data"][0])


def form(images: list[bytes]) -> tuple[str, bytes]:
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return "multipart/form-data; boundary=edge", b"".join(head + one + b"\r\n" for one in images) + b"--edge--\r\n"


def query(operation: dict[str, Any]) -> str:
    return urlencode({one["name"]: one["example"] for one in operation.get("parameters", ()) if one["in"] == "query"})


def raw(served: Served, method: str, target: str, body: bytes | None, kind: str) -> tuple[int, str, bytes]:
    """Status, content type, body."""
    connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        connection.request(method.upper(), target, body, {"Content-Type": kind} if kind else {})
        response = connection.getresponse()
        return response.status, (response.getheader("content-type") or "").partition(";")[0], response.read()
    finally:
        connection.close()


def check(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    """Raises ValidationError where it is not what the schema says."""
    OAS31Validator({**schema, "components": document["components"]}).validate(value)


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
