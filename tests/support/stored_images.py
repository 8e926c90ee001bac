"""A dataset with stored features, and what its nearest images are by brute force."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from feature_house import House
from small_datasets import class_folders

from pipelines.core.embedders import embed_image
from pipelines.core.embedding import Embedder
from pipelines.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A dataset of two days: on the second some images come anew, and one with another label."""

    house: House
    recipes: Path
    work: Path
    url_file: Path
    """Where embeddings are searched, as the role that may only read them."""
    relabelled: Path

    @property
    def files(self) -> list[Path]:
        """Each image once, the newest label's."""
        second = sorted(self.house.data.glob("dt=2024-01-02/*/*"))
        first = [one for one in sorted(self.house.data.glob("dt=2024-01-01/*/*")) if one.name != self.relabelled.name]
        return [*first, *second]

    def write_recipe(self, name: str, text: str = "") -> None:
        (self.recipes / f"{name}.toml").write_text(f'[source]\nuri = "{self.house.data}"\n{text}')

    def nearest(self, image: bytes, top: int) -> list[tuple[Path, float]]:
        """By brute force over the files: each with its similarity, nearest first."""
        files = self.files
        vectors = np.stack([embed_image(self.house.embedder, path.read_bytes()) for path in files])
        similarities = vectors @ embed_image(self.house.embedder, image)
        return [(files[row], float(similarities[row])) for row in np.argsort(-similarities, kind="stable")[:top]]


def store_images(settings: Settings, work: Path, *, embedder: Embedder | None = None) -> Stored:
    house = House(settings, work)
    house.embedder = embedder or house.embedder
    class_folders(house.data / "dt=2024-01-01", {"red": 6, "blue": 6})
    class_folders(house.data / "dt=2024-01-02", {"green": 4}, first_seed=500)
    first = sorted((house.data / "dt=2024-01-01" / "red").iterdir())[0]
    relabelled = house.data / "dt=2024-01-02" / "blue" / first.name
    relabelled.parent.mkdir()
    shutil.copyfile(first, relabelled)
    for interval in ("2024-01-01", "2024-01-02"):
        house.run(interval)
    (work / "recipes").mkdir()
    url_file = work / "url"
    url_file.write_text(settings.search_database_url + "\n")
    stored = Stored(house=house, recipes=work / "recipes", work=work, url_file=url_file, relabelled=relabelled)
    stored.write_recipe(house.name)
    return stored
