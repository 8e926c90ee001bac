"""Parts of OpenAPI 3.1 documents that every service's has: refusals, one image as a body, who may ask."""

from __future__ import annotations

from typing import Any

Table = dict[str, Any]

BYTES: Table = {"type": "string", "format": "binary"}

SECURITY_SCHEMES: Table = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key, or a token of the issuer."}
}

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
    500: "It failed, or the recipe of the model does not load; the log has the request id.",
    501: "This installation, or this model's recipe, is set up so that this is not done; the detail names the mend.",
    503: "Too many images wait, or nobody can say whether the credential is good; Retry-After says when to come again.",
}


def guarded(paths: Table, public: str = "") -> Table:
    """The paths with what may be answered to whoever may not ask, but for those below `public`, that anybody may."""
    for path, operations in paths.items():
        for method, operation in operations.items():
            if public and path.startswith(public):
                operation["security"] = []
            else:
                limits = (429, 503) if method == "post" else (503,)
                operation["responses"] |= refusals(401, 403, *limits)
    return paths


def one_image() -> Table:
    """A request body."""
    form = {"type": "object", "properties": {"image": BYTES}, "required": ["image"]}
    return {
        "required": True,
        "description": "The bytes of one image; any other declared type is taken as the bytes too.",
        "content": {"application/octet-stream": {"schema": BYTES}, "multipart/form-data": {"schema": form}},
    }


def top_k(maximum: int, description: str) -> Table:
    """A parameter of the query."""
    schema = {"type": "integer", "minimum": 1, "maximum": maximum}
    return {"name": "top_k", "in": "query", "schema": schema, "example": 3, "description": description}


def refusals(*statuses: int) -> Table:
    content = {"application/problem+json": {"schema": ref("Problem")}}
    return {str(status): {"description": _REFUSALS[status], "content": content} for status in statuses}


def json_answer(description: str, schema: str) -> Table:
    return {"description": description, "content": {"application/json": {"schema": ref(schema)}}}


def ref(schema: str) -> Table:
    return {"$ref": f"#/components/schemas/{schema}"}


def object_of(required: Table, optional: Table | None = None) -> Table:
    """A schema of an object with these properties."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def problem_schema(place: Table | None = None) -> Table:
    """A schema of what RFC 9457 has, and ours; `place`: properties that say which of many images it is about."""
    text = {"type": "string"}
    return object_of(
        {
            **(place or {}),
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "reason": text,
            "request_id": text,
        },
        {
            "retry_after_s": {
                "type": "integer",
                "minimum": 1,
                "description": "When to come again, with 429 and 503: what Retry-After says where there are headers.",
            }
        },
    )
