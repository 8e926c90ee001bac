"""This service's HTTP as an OpenAPI 3.1 document.

It has one of its own: a classifier's document is part of a bento that was frozen before, and says what that bento
serves. The gateway's `/` names both.
"""

from __future__ import annotations

from bentos.kit.openapi import (
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
from bentos.similar.dataplane import MAX_TOP_K


def document(default_model: str) -> Table:
    """The document, with the default model's name as an example."""
    named = _similar("similar")
    named["parameters"] = [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": default_model},
        *named["parameters"],
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Similar images",
            "version": "1",
            "description": "The stored images of a model's dataset that are nearest to an image, by its embedding.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": guarded(
            {
                "/v1/models/{name}/similar": {"post": named},
                "/v1/similar": {"post": _similar("similarByDefault")},
            }
        ),
        "components": {"schemas": _schemas(), "securitySchemes": SECURITY_SCHEMES},
    }


def _similar(name: str) -> Table:
    return {
        "operationId": name,
        "summary": "The stored images that look most like one image.",
        "parameters": [top_k(MAX_TOP_K, "Most images in an answer.")],
        "requestBody": one_image(),
        "responses": {
            "200": json_answer("Nearest first.", "Similar"),
            **refusals(400, 404, 408, 413, 415, 422, 500, 501, 503),
        },
    }


def _schemas() -> Table:
    text: Table = {"type": "string"}
    maybe = {"type": ["string", "null"]}
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    return {
        "Similar": object_of(
            {
                "model_name": text,
                "request_id": text,
                "embedding": text,
                "embedding_version": {
                    **maybe,
                    "description": "Of an embedding that is code; null for a package's, which its digest names.",
                },
                "package_digest": {
                    **digest,
                    "type": ["string", "null"],
                    "description": "Of the package that computed the embeddings; null where none did.",
                },
                "view": text,
                "dataset_digest": digest,
                "neighbours": {"type": "array", "items": ref("Neighbour"), "maxItems": MAX_TOP_K},
            }
        ),
        "Neighbour": object_of(
            {
                "image_id": {**digest, "description": "SHA-256 of the image's bytes."},
                "similarity": {"type": "number", "description": "Cosine, 1 for the same picture."},
                "label": {**maybe, "description": "Class name of the newest accepted label; null where withdrawn."},
                "event_timestamp": {"type": "string", "format": "date-time"},
                "source_uri": maybe,
            }
        ),
        "Problem": problem_schema(),
    }
