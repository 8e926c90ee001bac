"""Records of a prediction log, and spools that hold them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipelines.core import prediction_spool
from pipelines.core.prediction_spool import RawImage, Record, image_frame, prediction_frame

DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)


def record(number: int = 0, *, at: datetime = DAY, model: str = "colours", digest: str = "a" * 64) -> Record:
    """Every number makes another record, a second after the one before."""
    numbers = np.random.default_rng(number)
    return Record(
        at=at.timestamp() + number,
        model=model,
        version="7",
        package_digest=digest,
        variant="fp32",
        request_id=f"request-{number}",
        image_index=0,
        credential="shop",
        input="image",
        image_sha256=f"{number:064x}",
        image_width=640,
        image_height=480,
        label=1,
        class_name="grün",
        cached=False,
        share=0.1,
        probabilities=numbers.random(3, np.float32),
        embedding=numbers.random(5, np.float32),
    )


def spooled(folder: Path, records: Iterable[Record], images: Iterable[RawImage] = (), *, rest: bytes = b"") -> Path:
    """A finished file of a spool."""
    folder.mkdir(parents=True, exist_ok=True)
    file, path = prediction_spool.create(folder)
    for image in images:
        os.write(file, image_frame(image))
    for one in records:
        os.write(file, prediction_frame(one))
    os.write(file, rest)
    os.close(file)
    return path
