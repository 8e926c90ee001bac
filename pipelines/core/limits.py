"""Limits that the gateway and the services behind it share."""

MAX_BODY_BYTES = 20 * 1024 * 1024
"""Of a request with one image."""
MAX_BATCH_BYTES = 64 * 1024 * 1024
"""Of a batch request's images, all together."""
MAX_MESSAGE_BYTES = MAX_BODY_BYTES + 64 * 1024
"""Of a gRPC message with one image: its own words come on top."""
BODY_TIMEOUT_S = 14
"""For a body to arrive: who sends a byte now and then does not hold a place for long."""
