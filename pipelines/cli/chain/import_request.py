"""What a person asked of an import, checked and completed: words of the command line become a RunRequest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.core import recipe as recipes
from pipelines.core.errors import UserError
from pipelines.core.foreign import FILTERS, INPUT_RANGES, LAYOUTS, OUTPUT_KINDS, ForeignModel, read_class_names
from pipelines.core.recipe import Recipe, Source
from pipelines.settings import Settings

_ONNX_ONLY = ("input_range", "layout", "input", "output", "output_kind", "embedding")
_CHOICES = {"filter": FILTERS, "input_range": INPUT_RANGES, "layout": LAYOUTS, "output_kind": OUTPUT_KINDS}


def model_file(settings: Settings, *, onnx: str, torchvision: str, weights: str) -> Path:
    """The model's file; torchvision's own weights are downloaded where none is named. Raises UserError."""
    if bool(onnx) == bool(torchvision):
        raise UserError("name the model: either --onnx FILE, or --torchvision NETWORK with --weights FILE")
    if onnx and weights:
        raise UserError("--weights belongs to --torchvision; an ONNX file has its weights inside")
    if torchvision and not weights:
        from pipelines.training import published

        return published.download(torchvision, settings.home / "cache" / "torchvision")
    path = Path(onnx or weights).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{'--onnx' if onnx else '--weights'} {path}: no such file")
    return path


def class_names(text: str, *, needed: bool) -> tuple[str, ...]:
    """Names from a file, if one is named. Raises UserError."""
    if text:
        return read_class_names(Path(text).expanduser().absolute())
    if needed:
        raise UserError("--onnx needs --classes FILE: one class name a line, in the order of the model's output")
    return ()


def channels(option: str, text: str) -> tuple[float, ...]:
    """Three numbers from R,G,B. Raises UserError."""
    if not text:
        return ()
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} {text}: expected three numbers, such as 0.485,0.456,0.406") from error
    return red, green, blue


def checked(model: ForeignModel) -> ForeignModel:
    """The same. Raises UserError for a word that is none of its choices, or that says nothing of such a model."""
    for key, choices in _CHOICES.items():
        value = getattr(model, key)
        if value and value not in choices:
            raise UserError(f"{_option(key)} {value}: must be one of {', '.join(choices)}")
    if model.form == "torchvision":
        _check_torchvision(model)
    return model


def _check_torchvision(model: ForeignModel) -> None:
    foreign: Sequence[str] = [_option(key) for key in _ONNX_ONLY if getattr(model, key)]
    if foreign:
        raise UserError(f"{', '.join(foreign)}: only for --onnx; torchvision's networks say this themselves")
    if model.mean and not 0 <= min(model.mean) <= max(model.mean) <= 1:
        raise UserError(f"--mean {','.join(map(str, model.mean))}: torchvision's networks take pixels in 0..1")


def recipe_of(settings: Settings, name: str, data: str, *, int8: bool) -> Recipe:
    """The gate, split and rollout of the recipe of this name, or the defaults; the source is the data."""
    known = recipes.find(name, *settings.recipe_folders) or Recipe(name=name)
    uri = data if "://" in data else str(Path(data).expanduser().absolute())
    return replace(known, source=Source(uri=uri), export=replace(known.export, int8=int8))


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"
