"""Metrics, logs and request ids of a serving process.

BentoML's own access log, metrics and traces cost 0.38 ms CPU a request together; these cost a few hundredths.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from bentos.kit.tracing import CURRENT

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
_STAGES = Histogram(
    "darkroom_stage_seconds",
    "Of a request: its wait for a thread (queue) and for the others of its batch to be decoded (batch_wait). Of a "
    "batch: decoding its images, and the model.",
    ("stage",),
    buckets=_SECONDS,
    registry=REGISTRY,
)
STAGE_SECONDS = {stage: _STAGES.labels(stage) for stage in ("queue", "decode", "batch_wait", "model")}
BATCH_IMAGES = Histogram(
    "darkroom_batch_images",
    "Images that went through the model together.",
    buckets=(1, 2, 4, 8, 16, 32, 64),
    registry=REGISTRY,
)
WAITING = Gauge("darkroom_waiting_images", "Images that wait for a thread or are in one.", registry=REGISTRY)
CACHE_LOOKUPS = Counter(
    "darkroom_cache_lookups",
    "Images looked up in the cache: in memory, and what was not there in Redis.",
    ("level", "result"),
    registry=REGISTRY,
)
SHARED_ANSWERS = Counter(
    "darkroom_shared_answers", "Answers written to Redis, or dropped on the way.", ("result",), registry=REGISTRY
)
BACKEND_UP = Gauge(
    "darkroom_backend_up",
    "1 while what processes share is there, else 0.",
    ("backend",),
    registry=REGISTRY,
)
CACHE_BYTES = Gauge("darkroom_cache_bytes", "What the cache holds.", registry=REGISTRY)
BYTES_IN_FLIGHT = Gauge("darkroom_bytes_in_flight", "Of bodies and images that are held.", registry=REGISTRY)
STREAMS = Gauge("darkroom_open_streams", "WebSocket connections.", registry=REGISTRY)
LOGGED = Counter("darkroom_logged_predictions", "Predictions in the prediction log's spool.", registry=REGISTRY)
LOG_DROPPED = Counter(
    "darkroom_log_dropped_predictions", "Sampled, but given up by the prediction log.", ("reason",), registry=REGISTRY
)
REFUSED = Counter("darkroom_refused_requests", "Requests answered by a problem.", ("reason",), registry=REGISTRY)
LIMITED = Counter(
    "darkroom_limited_requests",
    "Refused because a credential's rate or quota is used up.",
    ("limit", "role"),
    registry=REGISTRY,
)
LIMIT = Gauge("darkroom_limit", "Where this process begins to refuse.", ("of",), registry=REGISTRY)
SPANS = Counter(
    "darkroom_spans",
    "Of traces: made, sent to the collector, lost because it was away.",
    ("result",),
    registry=REGISTRY,
)
MODEL = Gauge(
    "darkroom_model_info",
    "1, labelled with what this process serves.",
    ("model_name", "model_version", "package_digest", "variant", "provider"),
    registry=REGISTRY,
)

CANCELLED = 499
"""Counted as the status of what its client no longer waited for."""

REQUEST_ID = "darkroom.request_id"
"""Key of the ASGI scope."""

_ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

logger = logging.getLogger("darkroom.requests")


def accepted_request_id(given: bytes) -> str:
    """The client's id where it is one that can be logged as it is; else a new one."""
    return str(given, "ascii") if _ACCEPTED_ID.fullmatch(given) else os.urandom(16).hex()


def stage_seconds(stage: str) -> Histogram:
    """That of a stage that only one service has."""
    return _STAGES.labels(stage)


def count(route: str, status: int, reason: str, seconds: float, request_id: str, path: str = "") -> None:
    """One answered request: counters, the end of its span, and a log line where it was refused.

    `status` is HTTP's on every transport.
    """
    REQUESTS.labels(route, status).inc()
    REQUEST_SECONDS.labels(route).observe(seconds)
    if status >= 400:
        REFUSED.labels(reason).inc()
        fields = {"request_id": request_id, "route": route, "status": status, "reason": reason, "path": path}
        logger.info("refused", extra={**fields, "duration_ms": round(seconds * 1000, 2)})
    span = CURRENT.get()
    if span is not None:
        span.end(status, reason)


async def metrics(_: Request) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


_PLAIN = set(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a record; what was given as `extra` are its fields, and whose trace it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        span = CURRENT.get()
        if span is not None:
            line |= span.ids
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
    for name in list(logging.root.manager.loggerDict):
        # BentoML silences every logger that was there before it set up its own.
        logging.getLogger(name).disabled = False
    logging.getLogger().setLevel(logging.INFO)
    # Below a warning uvicorn writes every WebSocket's path with its query, where people do put keys. So far BentoML
    # silences it, too.
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
