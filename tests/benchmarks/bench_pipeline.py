"""Seconds and images/s per step, materialization rate, orchestration overhead and peak memory of the whole chain.

Runs `darkroom run` once in an empty home (digits, or --data), reads its JSON summary and the steps' references, and
ends the platform again. Prints a table; with --json one object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.live_platform import LivePlatform

PER_IMAGE = ("ingest", "assemble", "validate", "materialize", "snapshot", "training_set", "prepare", "evaluate")
"""Steps that touch every image (of the interval, or of the snapshot)."""


def measure(data: str | None) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="darkroom-bench-"))
    platform = LivePlatform(folder / "home")
    try:
        summary = platform.json("run", *(["--data", data] if data else []))
        materialized = [one for runs in _all(platform, "ingest_images") for one in runs if one.step == "materialize"]
        num_rows = sum(one.facts.get("num_rows", 0) for one in materialized)
        seconds = sum(one.facts.get("load_s", one.function_s) for one in materialized)
        return {
            "images": summary["num_images"],
            "steps": _steps(summary, _images(platform)),
            "materialize_rows_per_s": num_rows / seconds if seconds else None,
            "overhead_per_task_s": summary["overhead_per_task_s"],
            "overheads": summary["overheads"],
            "accuracy": [summary[key] for key in ("accuracy", "accuracy_low", "accuracy_high")],
            "platform_memory_bytes": summary["platform_memory_bytes"],
            "up_s": summary["up_s"],
            "total_s": summary["total_s"],
        }
    finally:
        platform.command("down")
        shutil.rmtree(folder, ignore_errors=True)


def _all(platform: LivePlatform, kind: str) -> list[list[Any]]:
    dags = {entry.key.split("/")[1] for entry in platform.storage.list(f"runs/{kind}")}
    return [references for dag in sorted(dags) for references in platform.references(dag).values()]


def _images(platform: LivePlatform) -> dict[str, int]:
    """Images that each step handled, over all runs and shards, as the steps counted them."""
    counted: dict[str, int] = {}
    for kind in ("ingest_images", "train_classifier"):
        for references in _all(platform, kind):
            for one in references:
                number = one.facts.get("num_images", one.facts.get("num_rows", 0))
                counted[one.step] = counted.get(one.step, 0) + (0 if one.reused else number)
    return counted


def _steps(summary: dict[str, Any], images: dict[str, int]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for one in summary["steps"]:
        row = rows.setdefault(
            one["step"], {"step": one["step"], "runs": 0, "seconds": 0.0, "function_s": 0.0, "peak_rss_bytes": 0}
        )
        row["runs"] += 1
        row["seconds"] += one["seconds"]
        row["function_s"] += one["function_s"]
        row["peak_rss_bytes"] = max(row["peak_rss_bytes"], one["peak_rss_bytes"])
    for row in rows.values():
        if row["step"] in PER_IMAGE and row["function_s"] and images.get(row["step"]):
            row["images_per_s"] = images[row["step"]] / row["function_s"]
    return list(rows.values())


def render(found: dict[str, Any]) -> str:
    lines = [f"{'step':<14}{'runs':>6}{'seconds':>10}{'function s':>12}{'images/s':>10}{'peak MB':>9}"]
    for row in found["steps"]:
        rate = f"{row['images_per_s']:,.0f}" if "images_per_s" in row else ""
        lines.append(
            f"{row['step']:<14}{row['runs']:>6}{row['seconds']:>10.1f}{row['function_s']:>12.2f}{rate:>10}"
            f"{row['peak_rss_bytes'] / 1e6:>9.0f}"
        )
    rate = found["materialize_rows_per_s"]
    lines += [
        "",
        f"images {found['images']:,}; accuracy {found['accuracy'][0]:.2%}; {found['total_s']:.0f} s in all, "
        f"{found['up_s']:.0f} s of it until the platform was ready",
        f"materialization {rate:,.0f} rows/s" if rate else "materialization not measured",
        f"orchestration overhead {found['overhead_per_task_s']:.2f} s a task; platform at rest "
        f"{found['platform_memory_bytes'] / 1e9:.2f} GB (PSS)",
        "peak MB counts what a step shares with the step host (about 700 MB) as its own",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a folder, archive, table or s3:// prefix of images; by default the digits")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.data)
    sys.stdout.write((json.dumps(found, indent=1) if options.json else render(found)) + "\n")


if __name__ == "__main__":
    main()
