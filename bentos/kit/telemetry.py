"""Metrics, logs and request ids of a serving process.

BentoML's own access log, metrics and traces cost 0.38 ms CPU a request together; these cost a few hundredths.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REGISTRY = CollectorRegistry()
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

REQUESTS = Counter("darkroom_requests", "Answered requests.", ("route", "status"), registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "darkroom_request_seconds",
    "From the request's headers to its answer.",
    ("route",),
    buckets=_SECONDS,
    registry=REGISTRY,
)
CLASSIFY_SECONDS = Histogram(
    "darkroom_classify_seconds", "Decoding and model, of one image.", buckets=_SECONDS, registry=REGISTRY
)
WAITING = Gauge("darkroom_waiting_requests", "Images that wait for a thread or are in one.", registry=REGISTRY)
REFUSED = Counter("darkroom_refused_requests", "Requests answered by a problem.", ("reason",), registry=REGISTRY)
MODEL = Gauge(
    "darkroom_model_info",
    "1, labelled with what this process serves.",
    ("model_name", "model_version", "package_digest", "variant", "provider"),
    registry=REGISTRY,
)

REQUEST_ID = "darkroom.request_id"
"""Key of the ASGI scope."""

_ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_VOUCH = b"x-envoy-upstream-healthchecked-cluster"

logger = logging.getLogger("darkroom.requests")


class Observed:
    """ASGI middleware: a request id in and out, counts and times, a log line for what failed.

    Successful requests are in the gateway's access log, with the same id.
    """

    def __init__(self, app: ASGIApp, cluster: str = "") -> None:
        self.app = app
        self.cluster = cluster.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        scope[REQUEST_ID] = request_id
        status = 500

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                if self.cluster and scope["path"] == "/readyz":
                    # Envoy takes a process only where it names the cluster that it belongs to.
                    message["headers"].append((_VOUCH, self.cluster))
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        finally:
            _count(scope, status, time.perf_counter() - started)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ACCEPTED_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex


def _count(scope: Scope, status: int, seconds: float) -> None:
    route = str(scope.get("route_name", "other"))
    if route == "other" and status < 400:
        return  # probes
    REQUESTS.labels(route, status).inc()
    REQUEST_SECONDS.labels(route).observe(seconds)
    if status >= 400:
        reason = str(scope.get("problem_reason", "none"))
        REFUSED.labels(reason).inc()
        fields = {"request_id": scope[REQUEST_ID], "status": status, "reason": reason, "path": scope["path"]}
        logger.info("refused", extra={**fields, "duration_ms": round(seconds * 1000, 2)})


async def metrics(_: Request) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


_PLAIN = set(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a record; what was given as `extra` are its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_json() -> None:
    """Send every log line of the process to stderr as JSON. Replaces the handlers that BentoML and uvicorn set up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("", "bentoml", "uvicorn", "uvicorn.error", "uvicorn.access"):
        chosen = logging.getLogger(name)
        chosen.handlers = [handler] if not name else []
        chosen.propagate = True
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
