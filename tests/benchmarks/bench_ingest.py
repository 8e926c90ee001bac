"""Images a second of the ingest step: read once, hash, decode check, perceptual hash, statistics, blob written.

Without DATA it makes its own images: CIFAR-size (32 x 32 JPEG) and photo-size (400 x 500 JPEG) ones. With DATA it takes
that folder, archive or table. Prints a table; with --json one object.

    python tests/benchmarks/bench_ingest.py [DATA] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.core.cores import num_cores
from pipelines.core.recipe import Source
from pipelines.core.sources import list_intervals, open_source
from pipelines.core.storage import LocalStorage
from pipelines.steps.ingest import ingest
from pipelines.steps.plan import plan

BARS = {"32 x 32": 1000, "400 x 500": 300}
"""Images a second that two cores must reach."""


def make(path: Path, width: int, height: int, count: int) -> Path:
    """A tar of JPEGs that are as hard to decode as photographs: smooth shapes with grain."""
    random = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
            grain = random.integers(-12, 13, (height, width, 1), dtype=np.int16)
            file = io.BytesIO()
            Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
            info = tarfile.TarInfo(f"{'cat' if number % 2 else 'dog'}/{number:06d}.jpg")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)
    return path


def measure(uri: str, work: Path, limit: int = 20_000) -> dict[str, Any]:
    """Ingest the first shard of the source's first interval into an empty store."""
    for name in ("plan", "out"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir(parents=True)
    shutil.rmtree(work / "store", ignore_errors=True)
    section = Source(uri=str(Path(uri).absolute()) if "://" not in uri else uri)
    interval = list_intervals(section, home=work)[0]
    began = time.perf_counter()
    planned = plan(open_source(section, home=work), interval, work / "plan", shard_size=limit)
    plan_s = time.perf_counter() - began
    store = LocalStorage(work / "store")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time()
    began = time.perf_counter()
    found = ingest(work / "plan", 0, store, work / "out", cache=work / "cache", endpoint_url=None)
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime + time.process_time() - own
    total = found.num_images + found.num_quarantined
    return {
        "images": total,
        "quarantined": found.num_quarantined,
        "megabytes": found.size_bytes / 1e6,
        "plan_files_per_s": planned.num_files / plan_s,
        "images_per_s": total / wall_s,
        "cpu_ms_per_image": 1e3 * cpu_s / total,
        "worker_peak_mb": after.ru_maxrss / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", nargs="?", help="folder, archive or table; default: images of its own")
    parser.add_argument("--data", dest="option", help="the same")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="darkroom-bench-"))
    try:
        data = options.data or options.option
        if data:
            results = {data: measure(data, work)}
        else:
            small, photo = make(work / "small.tar", 32, 32, 10_000), make(work / "photo.tar", 400, 500, 2_000)
            results = {"32 x 32": measure(str(small), work), "400 x 500": measure(str(photo), work)}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.json:
        print(json.dumps({"cores": num_cores(), "results": results, "bars": BARS}, indent=1))  # noqa: T201
        return
    print(f"{num_cores()} cores")  # noqa: T201
    for name, found in results.items():
        figures = "  ".join(f"{key} {value:,.1f}" for key, value in found.items())
        bar = f"  (bar {BARS[name]:,} images/s on 2 cores)" if name in BARS else ""
        print(f"{name}: {figures}{bar}")  # noqa: T201


if __name__ == "__main__":
    main()
