"""Errors as HTTP problems (RFC 9457), in this one place. The text of an unexpected error stays in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipelines.core.errors import ImageError, NotFound, UserError

logger = logging.getLogger("darkroom.errors")

_IMAGE_STATUS = {
    "empty": 400,
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "unsupported_format": 415,
    "not_an_image": 415,
}
"""Any other reason (truncated, corrupt) is an image that we read and cannot use: 422."""

_GRPC_STATUS = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
"""Every other refusal is of what the client sent: INVALID_ARGUMENT."""


class RequestRefused(UserError):
    """A request that is wrong before any image is looked at."""

    def __init__(self, status: int, reason: str, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class Overloaded(RequestRefused):
    """More waits than this process will answer in time."""

    def __init__(self, num_waiting: int, retry_after_s: int = 1, *, what: str = "images") -> None:
        super().__init__(503, "overloaded", f"{num_waiting} {what} are waiting; try again later", retry_after_s)


class Ending(RequestRefused):
    """The process is about to end."""

    def __init__(self) -> None:
        super().__init__(503, "ending", "this process is ending; try again", retry_after_s=1)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a client learns of an error."""

    status: int
    reason: str
    """Stable word for programs."""
    detail: str
    retry_after_s: int | None = None


def problem_of(error: Exception) -> Problem:
    """The problem that stands for an error."""
    if isinstance(error, ImageError):
        return Problem(status=_IMAGE_STATUS.get(error.reason, 422), reason=error.reason, detail=error.detail)
    if isinstance(error, RequestRefused):
        return Problem(status=error.status, reason=error.reason, detail=str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, NotFound):
        return Problem(status=404, reason="not_found", detail=str(error))
    if isinstance(error, UserError):
        return Problem(status=400, reason="bad_request", detail=str(error))
    if isinstance(error, HTTPException):
        reason = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return Problem(status=error.status_code, reason=reason, detail=error.detail)
    return Problem(status=500, reason="internal_error", detail="the server failed; its log has the request id")


def logged(error: Exception, request_id: str) -> Problem:
    """The same; an error that nobody expected goes into the log with the request's id."""
    problem = problem_of(error)
    if problem.status == 500:
        logger.error("unexpected error", exc_info=error, extra={"request_id": request_id})
    return problem


def problem_table(problem: Problem, request_id: str) -> dict[str, Any]:
    """The JSON of RFC 9457. It says itself when to come again: a frame and a line have no header that could."""
    table: dict[str, Any] = {
        "type": f"urn:darkroom:problem:{problem.reason}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "reason": problem.reason,
        "request_id": request_id,
    }
    if problem.retry_after_s is not None:
        table["retry_after_s"] = problem.retry_after_s
    return table


def grpc_status(problem: Problem) -> Any:
    """The grpc.StatusCode for a problem; grpc is imported where it is used only."""
    import grpc

    return grpc.StatusCode[_GRPC_STATUS.get(problem.status, "INVALID_ARGUMENT")]


async def respond(request: Request, error: Exception) -> Response:
    """The answer to a request that failed."""
    problem = logged(error, request_id(request))
    request.scope["problem_reason"] = problem.reason
    headers = dict(getattr(error, "headers", None) or {})
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    return JSONResponse(
        problem_table(problem, request_id(request)),
        status_code=problem.status,
        headers=headers,
        media_type="application/problem+json",
    )


def request_id(request: Request) -> str:
    """The id that the front gave the request."""
    return str(request.scope.get("darkroom.request_id", ""))
