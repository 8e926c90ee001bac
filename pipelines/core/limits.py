"""Limits that the gateway and the services behind it share."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BODY_BYTES = 20 * 1024 * 1024
"""Of a request with one image."""
MAX_BATCH_BYTES = 64 * 1024 * 1024
"""Of a batch request's images, all together."""
BODY_TIMEOUT_S = 14
"""For a body to arrive: who sends a byte now and then does not hold a place for long."""
_MESSAGE_SLACK_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class BodyLimits:
    """What the gateway refuses before a process sees it."""

    max_body_bytes: int = MAX_BODY_BYTES
    max_batch_bytes: int = MAX_BATCH_BYTES

    @property
    def max_message_bytes(self) -> int:
        """Of a gRPC message with one image: its own words come on top."""
        return self.max_body_bytes + _MESSAGE_SLACK_BYTES
