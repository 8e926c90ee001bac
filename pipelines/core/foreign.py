"""A model that was trained elsewhere: which file, how it wants its pixels, and what its answers mean."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.core.errors import UserError

MAX_BYTES = 2 * 1024**3 - 1
"""An ONNX file is one protobuf message, which cannot be larger."""
FILTERS = ("bilinear", "bicubic", "lanczos", "box")
INPUT_RANGES = ("0..1", "-1..1", "0..255")
LAYOUTS = ("NCHW", "NHWC")
OUTPUT_KINDS = ("logits", "probabilities")


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """What a person says of the model; empty, 0 or () leaves it to the file."""

    form: str
    """`onnx` or `torchvision`."""
    file: str
    """Path of the ONNX file or the state dict."""
    architecture: str = ""
    """torchvision's name of the network."""
    classes: tuple[str, ...] = ()
    """Class names; the position is the label."""
    size: int = 0
    """Side of the model's input, px."""
    resize: int = 0
    """Shorter side, px, before the centre is cut out."""
    filter: str = ""
    """One of FILTERS."""
    mean: tuple[float, ...] = ()
    """By channel, in units of `input_range`."""
    std: tuple[float, ...] = ()
    input_range: str = ""
    """One of INPUT_RANGES: what pixels become before mean and std."""
    layout: str = ""
    """One of LAYOUTS."""
    input: str = ""
    """Names of tensors in the ONNX graph."""
    output: str = ""
    output_kind: str = ""
    """One of OUTPUT_KINDS."""
    embedding: str = ""

    @property
    def words(self) -> dict[str, object]:
        """What was said, apart from where the file lies."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value and key != "file"}

    def as_parameters(self) -> dict[str, str]:
        """What was said, as flat names; the class names apart."""
        return {f"import.{key}": str(value) for key, value in self.words.items() if key != "classes"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The file of a model that was trained elsewhere."""

    form: str
    """`onnx` or `torchvision`."""
    file: str
    """Its name, without a folder."""
    sha256: str
    size_bytes: int
    """With the files that hold its data."""
    architecture: str = ""
    """torchvision's name of the network."""
    data: dict[str, str] = field(default_factory=dict)
    """SHA-256 by name of the files that held tensors of an ONNX file; the package has them inside."""


def read_class_names(path: Path) -> tuple[str, ...]:
    """One name a line. Raises UserError for a file that cannot be read, an empty line or a name that comes twice."""
    try:
        names = path.read_text("utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--classes {path}: not a readable text file ({error})") from error
    first: dict[str, int] = {}
    for number, name in enumerate((name.strip() for name in names), start=1):
        if not name:
            raise UserError(f"--classes {path}: line {number} is empty; one class name a line, in the model's order")
        if name in first:
            raise UserError(
                f"--classes {path}: {name!r} is on lines {first[name]} and {number}; classes are told apart by name"
            )
        first[name] = number
    if len(first) < 2:
        raise UserError(f"--classes {path}: a classifier has two classes or more, one name a line")
    return tuple(first)
