"""The classifier's HTTP as an OpenAPI 3.1 document, with examples that work on the model that serves."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip.inference import metadata
from bentos.classifier.rest import MAX_TOP_K

Table = dict[str, Any]

_REFUSALS = {
    400: "The request is wrong: body, form or query.",
    401: "No credential, or one that is not valid, has expired or was revoked.",
    403: "A credential that is not good for this.",
    404: "Another model's name or version.",
    408: "The body did not arrive in time.",
    413: "More bytes or pixels than are taken.",
    415: "Not an image of a format that is taken (JPEG, PNG, WebP, BMP, GIF), or a body in an unknown encoding.",
    422: "An image that is truncated or corrupt.",
    429: "More images than the credential may send; Retry-After says when to come again.",
    503: "Too many images wait, or nobody can say whether the credential is good; Retry-After says when to come again.",
}
_DATATYPES = [
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BYTES"),
]


def document(dataplane: Dataplane) -> Table:
    """The document of the model that this process serves."""
    identity = dataplane.identity
    v1, v2 = f"/v1/models/{identity.model_name}", f"/v2/models/{identity.model_name}"
    example = _example_image()
    infer = _infer(example)
    versioned = f"{v2}/versions/{identity.model_version}"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{identity.model_name}: an image classifier",
            "version": identity.model_version,
            "description": f"{len(dataplane.class_names)} classes; package {identity.package_digest}.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": _guarded(
            {
                f"{v1}/classify": {"post": _classify("classify")},
                "/v1/classify": {"post": _classify("classifyByDefault")},
                f"{v1}/classify/batch": {"post": _batch("classifyBatch")},
                "/v1/classify/batch": {"post": _batch("classifyBatchByDefault")},
                f"{v1}/embed": {"post": _embed("embed")},
                "/v1/embed": {"post": _embed("embedByDefault")},
                "/": {"get": _get("index", "The models that the credential is good for.", "Index")},
                v1: {"get": _get("describe", "What serves.", "Model", dataplane.describe())},
                "/v2": {"get": _get("serverMetadata", "The server and its extensions.", "ServerMetadata")},
                "/v2/health/live": {"get": _get("serverLive", "Whether the process lives.", "Live")},
                "/v2/health/ready": {"get": _get("serverReady", "Whether a model is loaded.", "Ready")},
                v2: {"get": _get("modelMetadata", "Inputs and outputs.", "ModelMetadata", metadata(dataplane))},
                f"{v2}/ready": {"get": _get("modelReady", "Whether this model is loaded.", "Ready")},
                f"{v2}/infer": {"post": {"operationId": "infer", **infer}},
                versioned: {"get": _get("versionMetadata", "Inputs and outputs.", "ModelMetadata")},
                f"{versioned}/ready": {"get": _get("versionReady", "Whether this version is loaded.", "Ready")},
                f"{versioned}/infer": {"post": {"operationId": "inferByVersion", **infer}},
            }
        ),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, or a token of the issuer."}
            },
        },
    }


def _guarded(paths: Table) -> Table:
    """The paths with what may be answered to whoever may not ask, but for those that anybody may."""
    for path, operations in paths.items():
        for method, operation in operations.items():
            if path.startswith("/v2/health/"):
                operation["security"] = []
            else:
                limits = (429, 503) if method == "post" else (503,)
                operation["responses"] |= _refusals(401, 403, *limits)
    return paths


def _classify(name: str) -> Table:
    return {
        "operationId": name,
        "summary": "The most probable classes of one image.",
        "parameters": _choices(),
        "requestBody": _one_image(),
        "responses": {
            "200": _json("Most probable first.", "Classification"),
            **_refusals(400, 404, 408, 413, 415, 422, 503),
        },
    }


def _embed(name: str) -> Table:
    return {
        "operationId": name,
        "summary": "The embedding of one image.",
        "requestBody": _one_image(),
        "responses": {"200": _json("A point.", "Embedding"), **_refusals(400, 404, 408, 413, 415, 422, 503)},
    }


def _batch(name: str) -> Table:
    files = {"type": "object", "properties": {"image": {"type": "array", "items": _BYTES}}, "required": ["image"]}
    lines = {"application/x-ndjson": {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "summary": "Many images: the files of a form, or a tar. A line of JSON for each comes back, in order.",
        "parameters": _choices(),
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": files}, "application/x-tar": {"schema": _BYTES}},
        },
        "responses": {
            "200": {"description": "Lines of BatchLine.", "content": lines},
            **_refusals(400, 404, 408, 413, 503),
        },
    }


def _infer(image: str) -> Table:
    example = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}]}
    return {
        "summary": "Open Inference Protocol v2. `image`: encoded files, base64 in JSON; or `pixels`.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("InferRequest"), "example": example}},
        },
        "responses": {
            "200": {
                "description": "Tensors; binary ones follow the JSON where they were asked for.",
                "content": {
                    "application/json": {"schema": _ref("InferAnswer")},
                    "application/octet-stream": {"schema": _BYTES},
                },
            },
            **_refusals(400, 404, 408, 413, 415, 422, 503),
        },
    }


def _get(name: str, summary: str, schema: str, example: Table | None = None) -> Table:
    answer = _json(summary, schema)
    if example is not None:
        answer["content"]["application/json"]["example"] = example
    return {"operationId": name, "summary": summary, "responses": {"200": answer}}


_BYTES: Table = {"type": "string", "format": "binary"}


def _one_image() -> Table:
    form = {"type": "object", "properties": {"image": _BYTES}, "required": ["image"]}
    return {
        "required": True,
        "description": "The bytes of one image; any other declared type is taken as the bytes too.",
        "content": {"application/octet-stream": {"schema": _BYTES}, "multipart/form-data": {"schema": form}},
    }


def _choices() -> list[Table]:
    top_k = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K}
    threshold = {"type": "number", "minimum": 0, "maximum": 1}
    return [
        {"name": "top_k", "in": "query", "schema": top_k, "example": 3, "description": "Most classes in an answer."},
        {"name": "threshold", "in": "query", "schema": threshold, "description": "No class less probable than this."},
    ]


def _refusals(*statuses: int) -> Table:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    return {str(status): {"description": _REFUSALS[status], "content": content} for status in statuses}


def _json(description: str, schema: str) -> Table:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(schema: str) -> Table:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(required: Table, optional: Table | None = None) -> Table:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _schemas() -> Table:
    text, whole = {"type": "string"}, {"type": "integer"}
    number: Table = {"type": "number"}
    texts, parameters = {"type": "array", "items": text}, {"type": "object"}
    name = {"type": "string", "minLength": 1}
    shape = {"type": "array", "items": whole}
    who = {"model_name": text, "model_version": text, "package_digest": text, "request_id": text}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    prediction = _object({"class_name": text, "label": {"type": "integer", "minimum": 0}, "probability": probability})
    predictions = {"type": "array", "items": _ref("Prediction")}
    problem = {"type": text, "title": text, "status": whole, "detail": text, "reason": text, "request_id": text}
    signature = _object({"name": text, "datatype": {"enum": _DATATYPES}, "shape": shape})
    signatures = {"type": "array", "items": _ref("Signature")}
    return {
        "Prediction": prediction,
        "Classification": _object({**who, "predictions": predictions}),
        "Embedding": _object({**who, "embedding": {"type": "array", "items": number}}),
        "BatchLine": {
            "oneOf": [
                _object({"index": whole, "name": text, **who, "predictions": predictions}),
                _object({"index": whole, "name": {"type": ["string", "null"]}, **problem}),
            ]
        },
        "Model": _object(
            {
                **{key: who[key] for key in ("model_name", "model_version", "package_digest")},
                "variant": text,
                "provider": text,
                "input_height": whole,
                "input_width": whole,
                "class_names": texts,
            }
        ),
        "Index": _object(
            {
                "service": text,
                "models": {"type": "object", "additionalProperties": text},
                "default_model": {"type": ["string", "null"]},
            }
        ),
        "Problem": _object(problem),
        "Live": _object({"live": {"type": "boolean"}}),
        "Ready": _object({"ready": {"type": "boolean"}}, {"name": text}),
        "ServerMetadata": _object({"name": text, "version": text, "extensions": texts}),
        "ModelMetadata": _object(
            {"name": text, "versions": texts, "platform": text, "inputs": signatures, "outputs": signatures}
        ),
        "Signature": signature,
        "InferRequest": _object(
            {"inputs": {"type": "array", "items": _ref("Input"), "minItems": 1, "maxItems": 1}},
            {"id": text, "parameters": parameters, "outputs": {"type": "array", "items": _ref("Wanted")}},
        ),
        "Input": _object(
            {"name": {"enum": ["image", "pixels"]}, "datatype": {"enum": ["BYTES", "UINT8"]}, "shape": shape},
            {"data": {"type": "array"}, "parameters": parameters},
        ),
        "Wanted": _object({"name": name}, {"parameters": parameters}),
        "InferAnswer": _object(
            {"model_name": text, "model_version": text, "outputs": {"type": "array", "items": _ref("Output")}},
            {"id": text, "parameters": parameters},
        ),
        "Output": _object(
            {"name": text, "datatype": {"enum": _DATATYPES}, "shape": shape},
            {"data": {"type": "array"}, "parameters": parameters},
        ),
    }


def _example_image() -> str:
    """A small picture, base64."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 40, 40)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
