"""Wiring of the data steps."""

from __future__ import annotations

from pipelines.cli.registry import StepSpec

SPECS: tuple[StepSpec, ...] = ()
