"""Envoy, the only gateway."""

from pipelines.adapters.gateway.client import answers, wait_until_answers
from pipelines.adapters.gateway.config import Backend, Endpoint
from pipelines.adapters.gateway.envoy import Gateway, Traffic, View, access_log, envoy_argv, write_initial

__all__ = [
    "Backend",
    "Endpoint",
    "Gateway",
    "Traffic",
    "View",
    "access_log",
    "answers",
    "envoy_argv",
    "wait_until_answers",
    "write_initial",
]
