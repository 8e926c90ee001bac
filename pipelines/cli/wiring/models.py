"""Wiring of the models steps."""

from __future__ import annotations

from pipelines.cli.registry import StepSpec

SPECS: tuple[StepSpec, ...] = ()
