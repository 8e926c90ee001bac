"""The model package: a folder that holds everything needed to serve a model and to prove where it comes from.

    package.json          class names, preprocessing, variants, metrics, lineage, and the SHA-256 of every other file
    model.onnx            fp32; model.int8.onnx … other variants. Input pixels_NHWC, outputs logits, probabilities,
                          embedding
    golden/NNN.<ext>      bytes of the golden images
    golden/logits-<variant>.npy   float32 [num golden images, num classes], measured where the package was made

The package's digest is the SHA-256 of package.json. No file is a pickle, none refers to another place, and a file that
package.json does not list is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import ImageError, IntegrityError, NotFound
from pipelines.core.foreign import Origin
from pipelines.core.onnx_file import has_external_data
from pipelines.core.preprocessing import PreprocessingSpec, preprocess
from pipelines.core.results import digest_json, from_json, sha256_file, to_json
from pipelines.core.values import Interval

FORMAT = 1
MANIFEST = "package.json"
_ALLOWED_FILE = re.compile(r"(model(\.[a-z0-9]+)?\.onnx|golden/[a-z0-9-]+\.(jpg|png|webp|bmp|gif|npy))")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX file of the package."""

    file: str
    temperature: float
    """Divides this variant's logits before the softmax; it is inside the graph already."""
    tolerances: dict[str, float]
    """By provider kind (`cpu`, `cuda`): how far golden logits may be off, as a share of the largest |logit|."""


@dataclass(frozen=True, kw_only=True)
class GoldenImage:
    file: str
    case: str
    """`val` for a validation image; `exif`, `cmyk`, `16-bit`, `palette` for one re-encoded to be so."""
    pixels_sha256: str
    """Of the preprocessed uint8 [H, W, 3] pixels."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The fp32 graph against the network it was exported from."""

    num_images: int
    max_logit_difference: float
    bound: float
    num_changed_answers: int
    """Beyond ties, so 0 in any package that exists."""
    opset: int


@dataclass(frozen=True, kw_only=True)
class Lineage:
    snapshot_id: str
    recipe_digest: str
    code_digest: str
    run_id: str
    """`<dag_id>/<run_id>`."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What package.json says besides the preprocessing spec and the digests of the files."""

    name: str
    """The recipe's name."""
    class_names: tuple[str, ...]
    """The position is the label."""
    variant: str
    """The one that serves."""
    variants: dict[str, Variant]
    golden: tuple[GoldenImage, ...]
    parity: Parity
    lineage: Lineage
    embedding_dim: int
    decisions: dict[str, str] = field(default_factory=dict)
    """Why a variant does or does not serve, by variant."""
    metrics: dict[str, Interval] = field(default_factory=dict)
    """Test metrics of the serving variant; empty until it is evaluated, and where no image is labelled."""
    num_test_images: int = 0
    origin: Origin | None = None
    """None for a model that was trained here."""


@dataclass(frozen=True, kw_only=True)
class ModelPackage:
    """A package that has been read. Get one from `load()`."""

    folder: Path
    digest: str
    content_digest: str
    """Like `digest`, but blind to the run id: equal for equal work, whichever run did it."""
    preprocessing: PreprocessingSpec
    files: Mapping[str, str]
    """SHA-256 by path, every file but package.json."""
    description: Description

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.description.class_names

    @property
    def variant(self) -> str:
        return self.description.variant

    @property
    def variants(self) -> Mapping[str, Variant]:
        return self.description.variants

    @property
    def temperature(self) -> float:
        return self.variants[self.variant].temperature

    @property
    def metrics(self) -> Mapping[str, Interval]:
        return self.description.metrics

    @property
    def lineage(self) -> Lineage:
        return self.description.lineage

    @property
    def origin(self) -> Origin | None:
        return self.description.origin

    @property
    def golden(self) -> tuple[GoldenImage, ...]:
        return self.description.golden

    def read(self, file: str) -> bytes:
        """Bytes of a listed file, checked against their digest. Raises IntegrityError."""
        try:
            data = (self.folder / file).read_bytes()
        except OSError as error:
            raise IntegrityError(f"{self.folder / file}: missing from the package") from error
        if hashlib.sha256(data).hexdigest() != self.files.get(file):
            raise IntegrityError(f"{self.folder / file}: does not match its digest in {MANIFEST}")
        return data

    def golden_logits(self, variant: str) -> NDArray[np.float32]:
        """float32 [num golden images, num classes]: what the variant answered where the package was made.

        Raises IntegrityError for an array of another kind.
        """
        path = self.folder / golden_logits_file(variant)
        try:
            logits: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{path}: not an array of numbers ({error})") from error
        if logits.dtype != np.float32 or logits.shape != (len(self.golden), len(self.class_names)):
            raise IntegrityError(f"{path}: {logits.dtype} {list(logits.shape)}, not logits of the golden images")
        return logits


def golden_logits_file(variant: str) -> str:
    return f"golden/logits-{variant}.npy"


def write(folder: Path, description: Description, preprocessing: PreprocessingSpec) -> ModelPackage:
    """Seal a folder whose other files are in place: package.json, written last and atomically."""
    described = to_json(description)
    if description.origin is None:
        del described["origin"]
    table = {
        "format": FORMAT,
        "preprocessing": preprocessing.to_json(),
        "files": {name: sha256_file(folder / name) for name in sorted(_files(folder)) if name != MANIFEST},
        **described,
    }
    temporary = folder / f"{MANIFEST}.partial"
    temporary.write_text(json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(folder / MANIFEST)
    return load(folder)


def with_metrics(
    package: ModelPackage, folder: Path, metrics: Mapping[str, Interval], num_test_images: int
) -> ModelPackage:
    """A copy of the package in `folder` (made) that also says how good it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in package.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.folder / name, folder / name)
    described = replace(package.description, metrics=dict(metrics), num_test_images=num_test_images)
    return write(folder, described, package.preprocessing)


def load(folder: Path, *, verify: bool = True, digest: str | None = None) -> ModelPackage:
    """Read a package. Raises NotFound where there is none, IntegrityError naming the file that is not as it should be.

    `verify=False` only reads package.json, for a folder that was verified before. `digest` is the one expected.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise NotFound(f"{folder}: not a model package, it has no {MANIFEST}") from error
    found = hashlib.sha256(data).hexdigest()
    if digest is not None and found != digest:
        raise IntegrityError(f"{folder / MANIFEST}: digest {found} where {digest} was expected")
    package = _parse(folder, data, found)
    if verify:
        _verify_files(package)
        verify_golden(package)
    return package


def _parse(folder: Path, data: bytes, digest: str) -> ModelPackage:
    try:
        table = json.loads(data)
        if table["format"] != FORMAT:
            raise IntegrityError(f"format {table['format']}; this code reads {FORMAT}")
        description = from_json(Description, table)
        package = ModelPackage(
            folder=folder,
            digest=digest,
            content_digest=_content_digest(table),
            preprocessing=PreprocessingSpec.from_json(table["preprocessing"]),
            files=dict(table["files"]),
            description=description,
        )
        needed = {one.file for one in package.variants.values()} | {one.file for one in package.golden}
        needed |= {golden_logits_file(variant) for variant in package.variants}
        if package.variant not in package.variants or not needed <= set(package.files):
            raise KeyError(f"variant {package.variant} or one of {sorted(needed - set(package.files))}")
    except IntegrityError as error:
        raise IntegrityError(f"{folder / MANIFEST}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder / MANIFEST}: not a package description ({error})") from error
    return package


def _content_digest(table: dict[str, Any]) -> str:
    return digest_json({**table, "lineage": {**table["lineage"], "run_id": ""}})


def _files(folder: Path) -> Iterator[str]:
    """Every file below the folder, hidden ones and links included."""
    for parent, folders, names in os.walk(folder):
        for name in (*names, *(one for one in folders if (Path(parent) / one).is_symlink())):
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _verify_files(package: ModelPackage) -> None:
    for name in package.files:
        if not _ALLOWED_FILE.fullmatch(name):
            raise IntegrityError(f"{package.folder / name}: not a kind of file that a package holds")
    for name in sorted(_files(package.folder)):
        if name != MANIFEST and name not in package.files:
            raise IntegrityError(f"{package.folder / name}: {MANIFEST} does not list this file")
        if (package.folder / name).is_symlink():
            raise IntegrityError(f"{package.folder / name}: a link, where a package holds files only")
    for name in package.files:
        data = package.read(name)
        if name.endswith(".onnx"):
            _verify_onnx(package.folder / name, data)
    for variant in package.variants:
        package.golden_logits(variant)


def _verify_onnx(path: Path, data: bytes) -> None:
    try:
        external = has_external_data(data)
    except ValueError as error:
        raise IntegrityError(f"{path}: not an ONNX model ({error})") from error
    if external:
        raise IntegrityError(f"{path}: keeps tensors in another file; export it with all data inside")


def verify_golden(package: ModelPackage) -> None:
    """Prove that this machine's preprocessing makes the package's pixels. Raises IntegrityError naming the image."""
    for image in package.golden:
        try:
            pixels = preprocess(package.read(image.file), package.preprocessing)
        except ImageError as error:
            raise IntegrityError(f"{package.folder / image.file}: golden image refused ({error.reason})") from error
        if pixels_sha256(pixels) != image.pixels_sha256:
            raise IntegrityError(
                f"{package.folder / image.file}: preprocessing makes other pixels here than where the package was made "
                f"({image.case}); install the library versions of {MANIFEST}"
            )


def pixels_sha256(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
