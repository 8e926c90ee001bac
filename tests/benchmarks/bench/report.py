"""What a benchmark says: tables for people, one JSON object for programs, and the machine it ran on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.core.cores import num_cores
from pipelines.core.errors import DarkroomError

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A goal, met when the unfavourable end of the interval meets it."""

    what: str
    bar: float
    found: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.found <= self.bar if self.at_most else self.found >= self.bar


@dataclass(frozen=True, kw_only=True)
class Report:
    """One section's outcome."""

    figures: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = ()
    open: str = ""
    """Why there is no figure, such as "needs a GPU"."""

    def as_json(self) -> dict[str, Any]:
        if self.open:
            return {"open": self.open}
        bars = [{"what": one.what, "bar": one.bar, "found": one.found, "met": one.met} for one in self.bars]
        return {**self.figures, "bars": bars, "notes": list(self.notes)}


Section = Callable[[argparse.Namespace], Report]


def run(sections: Mapping[str, Section], options: argparse.Namespace) -> int:
    """Run the chosen sections and print what they found. Exit code 2 for what the caller can mend."""
    reports: dict[str, Report] = {}
    for name in options.section:
        try:
            reports[name] = sections[name](options)
        except DarkroomError as error:
            sys.stderr.write(f"{name}: {error}\n")
            return error.exit_code
    if options.json:
        found = {name: report.as_json() for name, report in reports.items()}
        sys.stdout.write(json.dumps({"machine": machine(), "sections": found}, indent=1) + "\n")
    else:
        _print(reports)
    return 0


def _print(reports: Mapping[str, Report]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{name} {value}" for name, value in machine().items() if value))
    for name, report in reports.items():
        console.rule(name)
        if report.open:
            console.print(f"open: {report.open}")
        for table in report.tables:
            shown = RichTable(*table.columns, title=table.title, title_justify="left")
            for row in table.rows:
                shown.add_row(*row)
            console.print(shown)
        for bar in report.bars:
            sign = "at most" if bar.at_most else "at least"
            outcome = "met" if bar.met else "not met"
            console.print(f"bar: {bar.what}: {bar.found:,.3g}, {sign} {bar.bar:,.3g}: {outcome}", highlight=False)
        for note in report.notes:
            console.print(note, highlight=False)


def machine() -> dict[str, Any]:
    """What a figure depends on."""
    import torch
    import torchvision

    return {
        "cpu": _cpu(),
        "cores": num_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str:
    """With a plus where files differ from it; empty outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
