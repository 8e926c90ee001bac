"""The classifier's HTTP as an OpenAPI 3.1 document, with examples that work on the model that serves."""

from __future__ import annotations

import base64
import io

from PIL import Image

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip.inference import metadata
from bentos.classifier.rest import MAX_TOP_K
from bentos.kit.openapi import (
    BYTES,
    SECURITY_SCHEMES,
    Table,
    guarded,
    json_answer,
    object_of,
    one_image,
    problem_schema,
    ref,
    refusals,
    top_k,
)

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
        "paths": guarded(
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
            },
            public="/v2/health/",
        ),
        "components": {"schemas": _schemas(), "securitySchemes": SECURITY_SCHEMES},
    }


def _classify(name: str) -> Table:
    return {
        "operationId": name,
        "summary": "The most probable classes of one image.",
        "parameters": _choices(),
        "requestBody": one_image(),
        "responses": {
            "200": json_answer("Most probable first.", "Classification"),
            **refusals(400, 404, 408, 413, 415, 422, 503),
        },
    }


def _embed(name: str) -> Table:
    return {
        "operationId": name,
        "summary": "The embedding of one image.",
        "requestBody": one_image(),
        "responses": {"200": json_answer("A point.", "Embedding"), **refusals(400, 404, 408, 413, 415, 422, 503)},
    }


def _batch(name: str) -> Table:
    files = {"type": "object", "properties": {"image": {"type": "array", "items": BYTES}}, "required": ["image"]}
    lines = {"application/x-ndjson": {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "summary": "Many images: the files of a form, or a tar. A line of JSON for each comes back, in order.",
        "parameters": _choices(),
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": files}, "application/x-tar": {"schema": BYTES}},
        },
        "responses": {
            "200": {"description": "Lines of BatchLine.", "content": lines},
            **refusals(400, 404, 408, 413, 503),
        },
    }


def _infer(image: str) -> Table:
    example = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}]}
    return {
        "summary": "Open Inference Protocol v2. `image`: encoded files, base64 in JSON; or `pixels`.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref("InferRequest"), "example": example}},
        },
        "responses": {
            "200": {
                "description": "Tensors; binary ones follow the JSON where they were asked for.",
                "content": {
                    "application/json": {"schema": ref("InferAnswer")},
                    "application/octet-stream": {"schema": BYTES},
                },
            },
            **refusals(400, 404, 408, 413, 415, 422, 503),
        },
    }


def _get(name: str, summary: str, schema: str, example: Table | None = None) -> Table:
    answer = json_answer(summary, schema)
    if example is not None:
        answer["content"]["application/json"]["example"] = example
    return {"operationId": name, "summary": summary, "responses": {"200": answer}}


def _choices() -> list[Table]:
    threshold = {"type": "number", "minimum": 0, "maximum": 1}
    return [
        top_k(MAX_TOP_K, "Most classes in an answer."),
        {
            **{"name": "threshold", "in": "query", "schema": threshold, "example": 0.01},
            "description": "No class less probable than this.",
        },
    ]


def _schemas() -> Table:
    text, whole = {"type": "string"}, {"type": "integer"}
    number: Table = {"type": "number"}
    texts, parameters = {"type": "array", "items": text}, {"type": "object"}
    name = {"type": "string", "minLength": 1}
    shape = {"type": "array", "items": whole}
    who = {"model_name": text, "model_version": text, "package_digest": text, "request_id": text}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    prediction = object_of({"class_name": text, "label": {"type": "integer", "minimum": 0}, "probability": probability})
    predictions = {"type": "array", "items": ref("Prediction")}
    signature = object_of({"name": text, "datatype": {"enum": _DATATYPES}, "shape": shape})
    signatures = {"type": "array", "items": ref("Signature")}
    return {
        "Prediction": prediction,
        "Classification": object_of({**who, "predictions": predictions}),
        "Embedding": object_of({**who, "embedding": {"type": "array", "items": number}}),
        "BatchLine": {
            "oneOf": [
                object_of({"index": whole, "name": text, **who, "predictions": predictions}),
                problem_schema({"index": whole, "name": {"type": ["string", "null"]}}),
            ]
        },
        "Model": object_of(
            {
                **{key: who[key] for key in ("model_name", "model_version", "package_digest")},
                "variant": text,
                "provider": text,
                "input_height": whole,
                "input_width": whole,
                "class_names": texts,
            }
        ),
        "Index": object_of(
            {
                "service": text,
                "models": {"type": "object", "additionalProperties": text},
                "default_model": {"type": ["string", "null"]},
            }
        ),
        "Problem": problem_schema(),
        "Live": object_of({"live": {"type": "boolean"}}),
        "Ready": object_of({"ready": {"type": "boolean"}}, {"name": text}),
        "ServerMetadata": object_of({"name": text, "version": text, "extensions": texts}),
        "ModelMetadata": object_of(
            {"name": text, "versions": texts, "platform": text, "inputs": signatures, "outputs": signatures}
        ),
        "Signature": signature,
        "InferRequest": object_of(
            {"inputs": {"type": "array", "items": ref("Input"), "minItems": 1, "maxItems": 1}},
            {"id": text, "parameters": parameters, "outputs": {"type": "array", "items": ref("Wanted")}},
        ),
        "Input": object_of(
            {"name": {"enum": ["image", "pixels"]}, "datatype": {"enum": ["BYTES", "UINT8"]}, "shape": shape},
            {"data": {"type": "array"}, "parameters": parameters},
        ),
        "Wanted": object_of({"name": name}, {"parameters": parameters}),
        "InferAnswer": object_of(
            {"model_name": text, "model_version": text, "outputs": {"type": "array", "items": ref("Output")}},
            {"id": text, "parameters": parameters},
        ),
        "Output": object_of(
            {"name": text, "datatype": {"enum": _DATATYPES}, "shape": shape},
            {"data": {"type": "array"}, "parameters": parameters},
        ),
    }


def _example_image() -> str:
    """A small picture, base64."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 40, 40)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
