"""Section `splits`: the snapshot's own splits as a tar of train/, val/ and test/ folders.

For machines that hold torch and little else, such as a bare GPU machine: `airbench` then trains there on the very
splits that the chain made here.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath

from bench.report import Report, Table
from bench.training.cifar import load_recipe
from pipelines.core import manifest
from pipelines.core.errors import UserError


def run(options: argparse.Namespace) -> Report:
    """Writes --out, compressed where its name says so. Raises UserError without that name."""
    from bench.chain_data import take

    if not options.out:
        raise UserError("--out: name the tar to write, such as cifar10-splits.tar.gz")
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        data = take(options.data, load_recipe(options, "cifar10"), Path(folder))
        rows = manifest.read(data.manifest, ["image_id", "label", "split", "source_uri"]).to_pylist()
        chosen = [row for row in rows if row["split"] != manifest.EXCLUDED]
        out = Path(options.out)
        compression = "gz" if out.suffix in (".gz", ".tgz") else ""
        with tarfile.open(out, f"w:{compression}") as tar:  # type: ignore[call-overload]
            for row in chosen:
                image = data.read_image(row["image_id"])
                suffix = PurePosixPath(row["source_uri"]).suffix.lower()
                info = tarfile.TarInfo(f"{row['split']}/{row['label']}/{row['image_id']}{suffix}")
                info.size = len(image)
                tar.addfile(info, io.BytesIO(image))
    counts = Counter(row["split"] for row in chosen)
    rows_shown = [[split, f"{count:,}"] for split, count in sorted(counts.items())]
    title = f"{out}: {out.stat().st_size / 1e6:,.1f} MB"
    return Report(
        figures={"counts": dict(counts), "bytes": out.stat().st_size, "snapshot": data.snapshotted.snapshot_id},
        tables=[Table(title=title, columns=["split", "images"], rows=rows_shown)],
        notes=data.notes,
    )
