"""Limits that the gateway and the services behind it share."""

MAX_BODY_BYTES = 20 * 1024 * 1024
"""Of a request with one image."""
MAX_BATCH_BYTES = 64 * 1024 * 1024
"""Of a batch request's images, all together."""
