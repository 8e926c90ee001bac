"""Envoy, the only gateway."""

from pipelines.adapters.gateway.envoy import Gateway, View, access_log, envoy_argv, write_initial

__all__ = ["Gateway", "View", "access_log", "envoy_argv", "write_initial"]
