"""Errors as HTTP problems (RFC 9457), in this one place. The text of an unexpected error stays in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus

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


class RequestRefused(UserError):
    """A request that is wrong before any image is looked at."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason


class Overloaded(RequestRefused):
    """More requests wait than this process will ever answer in time."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(503, "overloaded", f"{num_waiting} requests are waiting; try again later")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a client learns of an error."""

    status: int
    reason: str
    """Stable word for programs."""
    detail: str


def problem_of(error: Exception) -> Problem:
    """The problem that stands for an error."""
    if isinstance(error, ImageError):
        return Problem(status=_IMAGE_STATUS.get(error.reason, 422), reason=error.reason, detail=error.detail)
    if isinstance(error, RequestRefused):
        return Problem(status=error.status, reason=error.reason, detail=str(error))
    if isinstance(error, NotFound):
        return Problem(status=404, reason="not_found", detail=str(error))
    if isinstance(error, UserError):
        return Problem(status=400, reason="bad_request", detail=str(error))
    if isinstance(error, HTTPException):
        reason = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return Problem(status=error.status_code, reason=reason, detail=error.detail)
    return Problem(status=500, reason="internal_error", detail="the server failed; its log has the request id")


async def respond(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for every error."""
    problem = problem_of(error)
    request.scope["problem_reason"] = problem.reason
    if problem.status == 500:
        logger.error("unexpected error", exc_info=error, extra={"request_id": request_id(request)})
    headers = dict(getattr(error, "headers", None) or {})
    if problem.status == 503:
        headers["Retry-After"] = "1"
    return JSONResponse(
        {
            "type": f"urn:darkroom:problem:{problem.reason}",
            "title": HTTPStatus(problem.status).phrase,
            "status": problem.status,
            "detail": problem.detail,
            "reason": problem.reason,
            "request_id": request_id(request),
        },
        status_code=problem.status,
        headers=headers,
        media_type="application/problem+json",
    )


def request_id(request: Request) -> str:
    """The id that `telemetry.Observed` gave the request."""
    return str(request.scope.get("darkroom.request_id", ""))
