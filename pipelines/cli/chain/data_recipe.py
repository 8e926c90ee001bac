"""A recipe for a user's own images: sized for two CPU cores by what they are, and written to be edited."""

from __future__ import annotations

import hashlib
import math
import random
import re
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.core import recipe as recipes
from pipelines.core.errors import ImageError, SourceError, UserError
from pipelines.core.recipe import Recipe, Source
from pipelines.settings import Settings

_TEST_SHARE = recipes.Split().test_share
_SAMPLE = 64
"""Images opened to learn how large they are."""
_ARCHIVE = re.compile(r"\.(tar|zip|tgz|csv|parquet|tar\.gz|tar\.bz2|tar\.xz)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a source holds, as far as a recipe needs to know."""

    intervals: Sequence[str]
    num_images: int
    class_names: Sequence[str]
    side_px: int
    """Median of the shorter sides."""

    @property
    def days(self) -> list[str]:
        """YYYY-MM-DD, in order; empty for data without days."""
        return sorted(interval for interval in self.intervals if interval[:1].isdigit())

    @property
    def dated(self) -> bool:
        return bool(self.days)


def name_of(uri: str) -> str:
    """A recipe name from the last part of a path or S3 prefix. Raises UserError where nothing is left of it."""
    last = PurePosixPath(uri.rstrip("/")).name
    while _ARCHIVE.search(last):
        last = _ARCHIVE.sub("", last)
    name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
    if name and not name[0].isalpha():
        name = f"data-{name}"
    name = name[:40].strip("-")
    if not recipes.NAME_PATTERN.fullmatch(name):
        raise UserError(f"{uri}: no name can be made of {last!r}; give one with --name (NAME= for make)")
    return name


def ensure_recipe(settings: Settings, data: str, name: str | None = None) -> Recipe:
    """The recipe of this data: the one there is, or a new one in `<home>/recipes/`, after a template of that name or
    after what the images are like.

    Raises UserError when the name belongs to other data, SourceError when there is no data.
    """
    uri = data if "://" in data else str(Path(data).expanduser().resolve())
    if name is None:
        name = _own_name(uri, recipes.registered(*settings.recipe_folders)[0])
    known = recipes.find(name, *settings.recipe_folders)
    if known is not None:
        if known.source.uri.rstrip("/") != uri.rstrip("/"):
            raise UserError(
                f"{name}: this recipe is for {known.source.uri}, not for {uri}; give this data another name with "
                f"--name (NAME= for make), or edit source.uri in {settings.recipe_folders[1] / f'{name}.toml'}"
            )
        return known
    path = settings.recipe_folders[1] / f"{name}.toml"
    recipes.from_dict({"name": name})  # the name's own error, before the images are looked at
    found = inspect(settings, uri)
    template = recipes.template(name, *settings.recipe_folders)
    text = _filled(template, uri, found) if template else compose(name, uri, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}-{uuid.uuid4().hex}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
    return recipes.load(path)


def _filled(template: Path, uri: str, found: Inspection) -> str:
    """The template's text with its source and, for dated data, the day they begin on.

    Raises UserError where the text has these sections in a form that keys cannot be put into.
    """
    text = template.read_text("utf-8")
    text = _with_keys(text, "source", {"uri": _quoted(uri), "dated": str(found.dated).lower()})
    if found.dated:
        text = _with_keys(text, "schedule", {"start_date": _quoted(found.days[0])})
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"{template}: where to write source.uri is not clear ({error}); give source and schedule as tables of "
            "their own, [source] and [schedule], or leave them out"
        ) from error
    return text


def _with_keys(text: str, table: str, keys: Mapping[str, str]) -> str:
    """TOML with these keys in this table, in the place of those that it had."""
    lines = text.rstrip().splitlines()
    added = [f"{key} = {value}" for key, value in keys.items()]
    header = re.compile(rf"\s*\[\s*{table}\s*\]\s*(#.*)?$")
    start = next((number for number, line in enumerate(lines) if header.match(line)), None)
    if start is None:
        return "\n".join([*lines, "", f"[{table}]", *added, ""])
    end = next(
        (number for number in range(start + 1, len(lines)) if lines[number].lstrip().startswith("[")), len(lines)
    )
    replaced = re.compile(rf"\s*({'|'.join(keys)})\s*=")
    kept = [line for line in lines[start + 1 : end] if not replaced.match(line)]
    return "\n".join([*lines[: start + 1], *added, *kept, *lines[end:], ""])


def _own_name(uri: str, registered: Mapping[str, Recipe]) -> str:
    """The folder's name, with a part of the address's digest where other data have that name already."""
    name = name_of(uri)
    if name not in registered or registered[name].source.uri.rstrip("/") == uri.rstrip("/"):
        return name
    return f"{name[:35]}-{hashlib.sha256(uri.rstrip('/').encode()).hexdigest()[:4]}"


def inspect(settings: Settings, uri: str) -> Inspection:
    """List the source and open a sample of its images. Raises SourceError where there are none."""
    from pipelines.core.preprocessing import decode
    from pipelines.core.sources import open_source
    from pipelines.core.sources.files import Reader, SourceFile

    source = open_source(Source(uri=uri), home=settings.home, endpoint_url=settings.s3_endpoint_url)
    intervals = sorted(source.intervals())
    chance = random.Random(0)  # noqa: S311 (a sample)
    sample: list[SourceFile] = []
    classes: set[str] = set()
    num_images = 0
    for interval in intervals:
        for file in source.files(interval, []):
            if file.label is None:
                continue
            classes.add(file.label)
            num_images += 1
            if len(sample) < _SAMPLE:
                sample.append(file)
            elif (place := chance.randrange(num_images)) < _SAMPLE:
                sample[place] = file
    reader = Reader(settings.home / "cache", settings.s3_endpoint_url)
    sides: list[int] = []
    for file in sample:
        try:
            found = decode(reader.read(file.uri, file.archive, file.offset, file.size_bytes))
            sides.append(min(found.width, found.height))
        except ImageError:
            continue
    if not sides:
        raise SourceError(
            f"{uri}: no readable labelled images; expected <class>/<image>, or a table with uri and label"
        )
    if len(classes) < 2:
        raise SourceError(f"{uri}: one class only ({', '.join(classes)}); a classifier needs two or more")
    return Inspection(
        intervals=intervals,
        num_images=num_images,
        class_names=sorted(classes),
        side_px=sorted(sides)[len(sides) // 2],
    )


@dataclass(frozen=True, kw_only=True)
class _Size:
    """What suits images up to a size, and how many samples two CPU cores train in about five minutes."""

    up_to_px: int
    side_px: int
    start_size: float
    samples: int
    crop: str


_SIZES = (
    _Size(up_to_px=40, side_px=32, start_size=0.75, samples=180_000, crop="shift"),
    _Size(up_to_px=56, side_px=48, start_size=0.5, samples=110_000, crop="shift"),
    _Size(up_to_px=96, side_px=64, start_size=0.5, samples=60_000, crop="shift"),
    _Size(up_to_px=1 << 30, side_px=64, start_size=0.5, samples=60_000, crop="resized"),
)
_BATCH_SIZES = ((5_000, 64), (10_000, 128), (25_000, 256))
"""Training images below which a batch holds so many: a small set needs its number of steps."""
_LARGEST_BATCH = 500


def compose(name: str, uri: str, found: Inspection) -> str:
    """The recipe's text, with what was seen and what follows from it as comments."""
    size = next(one for one in _SIZES if found.side_px <= one.up_to_px)
    num_training = max(1.0, found.num_images * 0.7)
    epochs = max(3, min(40, round(size.samples / num_training)))
    batch_size = next((batch for below, batch in _BATCH_SIZES if num_training < below), _LARGEST_BATCH)
    # Digits, letters and such mean something else when mirrored.
    glyphs = all(len(label) == 1 for label in found.class_names)
    schedule = f'\n[schedule]\nstart_date = "{found.days[0]}"\n' if found.dated else ""
    margin = _margin(found.num_images)
    return f"""\
# {found.num_images:,} images of {len(found.class_names)} classes, typically {found.side_px} px on the shorter side.
# Written by `darkroom run`; edit it as you like, it is not written again.
# Keys that are not here have their defaults; pipelines/core/recipe/sections.py lists and explains every one.
name = "{name}"

[source]
uri = {_quoted(uri)}
dated = {str(found.dated).lower()}

[preprocessing]
height = {size.side_px}
width = {size.side_px}

[model]
backbone = "airbench"
embedding_dim = 0

[training]
# Minutes on two CPU cores. With a GPU, larger images, other networks and more epochs pay.
epochs = {epochs}
batch_size = {batch_size}
optimizer = "muon"
learning_rate = 0.12
schedule = "trapezoid"
warmup_share = 0.0
cooldown_share = 1.0
label_smoothing = 0.2
patience = 0
keep = "last"

[augmentation]
crop = "{size.crop}"
flip = "{"none" if glyphs else "alternating"}"
start_size = {size.start_size}

[evaluation]
tta = "{"none" if glyphs else "mirror"}"

[gate]
# What about {round(found.num_images * _TEST_SHARE):,} test images can tell of two equal models.
margin = {margin}
{schedule}"""


def _margin(num_images: int) -> float:
    """The loss that the gate can rule out: the interval of a paired difference where 4% of the answers differ.

    A smaller margin would call every retraining on little data `too_few`.
    """
    half_width = 1.96 * math.sqrt(0.04 / max(1.0, num_images * _TEST_SHARE))
    return round(min(0.05, max(0.01, 1.2 * half_width)), 3)


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", escaped) + '"'
