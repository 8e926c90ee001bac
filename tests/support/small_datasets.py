"""Small folders of real images, taken through the real plan, ingest, assemble and accept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.core.recipe import Recipe, Source
from pipelines.core.sources import open_source
from pipelines.core.storage import Storage
from pipelines.core.values import Assembled
from pipelines.steps.accept import accept
from pipelines.steps.assemble import assemble
from pipelines.steps.ingest import ingest
from pipelines.steps.plan import plan

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 60, 200)}


def picture(seed: int, colour: tuple[int, int, int] = (128, 128, 128), side: int = 24) -> Image.Image:
    """A blot of a colour on noise; another seed, another picture."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (4, 4, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(np.int64)
    return Image.fromarray(((pixels + 2 * np.array(colour)) // 3).astype(np.uint8))


def save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def class_folders(root: Path, counts: Mapping[str, int], first_seed: int = 0) -> Path:
    """`counts` images of each class (a key of COLOURS) in a folder of its own."""
    for place, (label, count) in enumerate(sorted(counts.items())):
        for number in range(count):
            seed = first_seed + 1000 * place + number
            save(root / label / f"{seed:05d}.png", picture(seed, COLOURS[label]))
    return root


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """An interval as `assemble` leaves it."""

    recipe: Recipe
    assembled: Assembled
    folder: Path


def ingested(recipe: Recipe, data: Path, interval: str, storage: Storage, work: Path) -> Ingested:
    """Take a source's interval through plan, ingest and assemble."""
    out = work / f"{interval}-{len(list(work.glob('*')))}"
    folders = {name: out / name for name in ("plan", "ingest", "assemble", "cache")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    source = open_source(Source(uri=str(data), dated=interval != "static"), home=work, endpoint_url=None)
    planned = plan(source, interval, folders["plan"])
    ingest(folders["plan"], 0, storage, folders["ingest"], cache=folders["cache"], endpoint_url=None)
    return Ingested(
        recipe=recipe, assembled=assemble(planned, [folders["ingest"]], folders["assemble"]), folder=folders["assemble"]
    )


def accepted(found: Ingested, storage: Storage, work: Path) -> None:
    """Move the head."""
    out = work / f"accept-{found.assembled.interval}-{len(list(work.glob('*')))}"
    out.mkdir()
    accept(storage, found.recipe.name, found.assembled.interval, "ingest_images/test", found.folder, out)
