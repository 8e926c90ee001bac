"""Commands about models: evaluate, predict, models, trace."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import settings as settings_module
from pipelines.cli.model_names import FORMS

if TYPE_CHECKING:
    from pipelines.cli.measurement import Measurement
    from pipelines.cli.model_names import NamedPackage

Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"{FORMS}.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(evaluate)
    app.command()(predict)
    app.command()(models)
    app.command()(trace)


def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Option(help="Labelled images: class folders, an archive of them, a CSV or Parquet table, or s3://…"),
    ],
    split: Annotated[str, typer.Option(help="Only this split of the data: train, val or test.")] = "",
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of all intervals.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Measure any version or package folder on any labelled images, through the serving path.

    Classes match by name. Images of classes that the model does not know, and files that are no images, are named and
    left out of the figures.

    [dim]darkroom evaluate digits --data photos/ --json[/dim]
    """
    from pipelines.cli.measurement import measure_folder
    from pipelines.cli.model_names import find_package

    settings = settings_module.load()
    found = find_package(settings, model)
    progress = _progress if sys.stderr.isatty() else None
    measured = measure_folder(settings, found.package, data, split=split, confidence=confidence, progress=progress)
    if as_json:
        typer.echo(json.dumps({**_identity(found), "data": data, **measured.as_json()}, indent=1))
    else:
        _print_measurement(found, data, measured)


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    sys.stderr.write(f"\r{done:,} of {total:,} images{end}")
    sys.stderr.flush()


def _identity(found: NamedPackage) -> dict[str, Any]:
    return {
        "model": found.package.name,
        "version": found.version.version if found.version else None,
        "package_digest": found.package.digest,
    }


def _print_measurement(found: NamedPackage, data: str, measured: Measurement) -> None:
    from rich.table import Table

    from pipelines.cli.tables import console

    metrics = measured.metrics
    out = console()
    version = f" version {found.version.version}" if found.version else ""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("class", "images", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for one in metrics.classes:
        if one.num_images:
            values = (f"{100 * value.value:.1f}%" for value in (one.precision, one.recall, one.f1))
            table.add_row(one.class_name, f"{one.num_images:,}", *values)
    out.print(table)
    accuracy, top_k = metrics.accuracy, metrics.top_k
    out.print(f"{found.package.name}{version} on {data}: {metrics.num_images:,} images", highlight=False)
    out.print(
        f"accuracy {100 * accuracy.value:.2f}%, between {100 * accuracy.low:.2f}% and {100 * accuracy.high:.2f}% "
        f"with {100 * metrics.confidence:g}% confidence",
        highlight=False,
    )
    for k, value in top_k.items():
        out.print(f"top {k} {100 * value.value:.2f}%", highlight=False)
    out.print(f"calibration error {100 * metrics.calibration_error.value:.2f} points", highlight=False)
    warnings = [
        f"the model does not know class {name}: {count:,} images" for name, count in measured.unknown_classes.items()
    ]
    warnings += [f"{one['uri']}: {one['detail']}" for one in measured.refused[:20]]
    if len(measured.refused) > 20:
        warnings.append(f"… and {len(measured.refused) - 20} more files (--json lists all)")
    for line in (*warnings, *measured.notes):
        typer.echo(f"left out: {line}", err=True)


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="JPEG, PNG, WebP, BMP or GIF files.")],
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="Classes to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Classify image files on this machine, by the same code that serves.

    Exit code 2 where a file is refused; the others are answered all the same.

    [dim]darkroom predict digits:3 seven.png[/dim]
    """
    from pipelines.cli.model_names import find_package
    from pipelines.core.errors import UserError
    from pipelines.core.inference import Classifier

    found = find_package(settings_module.load(), model)
    classifier = Classifier(found.package)
    answers = [_answer(classifier, path, top) for path in images]
    if as_json:
        typer.echo(json.dumps({**_identity(found), "predictions": answers}, indent=1))
    else:
        for answer in answers:
            words = [f"{one['class_name']} {100 * one['probability']:.1f}%" for one in answer.get("classes", ())]
            typer.echo(f"{answer['image']}: {', '.join(words) or answer['error']}")
    refused = [answer for answer in answers if "error" in answer]
    if refused:
        raise UserError(
            f"{len(refused)} of {len(answers)} files refused; the first: {refused[0]['image']}: {refused[0]['error']}"
        )


def _answer(classifier: Any, path: Path, top: int) -> dict[str, Any]:
    import numpy as np

    from pipelines.core.errors import ImageError

    try:
        probabilities = classifier.predict_bytes([path.read_bytes()]).probabilities[0]
    except OSError as error:
        return {"image": str(path), "error": error.strerror or "cannot be read", "reason": "unreadable"}
    except ImageError as error:
        return {"image": str(path), "error": error.detail, "reason": error.reason}
    names = classifier.package.class_names
    best = np.argsort(-probabilities, kind="stable")[:top]
    return {
        "image": str(path),
        "classes": [{"class_name": names[label], "probability": float(probabilities[label])} for label in best],
    }


def models(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this model's versions.")] = "",
    as_json: AsJson = False,
) -> None:
    """List registered versions: their aliases, test accuracy, verdict, package digest, and what serves."""
    from pipelines.adapters import database
    from pipelines.adapters.tracking import MlflowRegistry

    settings = settings_module.load()
    live = {
        state.model: state.live.build.version
        for state in database.desired_state(settings.database_url("darkroom"))
        if state.live is not None
    }
    rows = [
        {
            "name": one.model,
            "version": one.version,
            "aliases": list(one.aliases),
            **{key: _number(one.tags.get(key)) for key in ("accuracy", "accuracy_low", "accuracy_high")},
            "verdict": one.tags.get("verdict", ""),
            "package_digest": one.package_digest,
            "created_at": one.created_at,
            "deployed": live.get(one.model) == one.version,
        }
        for one in MlflowRegistry(settings).versions(name)
    ]
    typer.echo(json.dumps(rows, indent=1)) if as_json else _print_models(rows)


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _print_models(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from pipelines.cli.tables import console

    if not rows:
        typer.echo("no model is registered yet; `darkroom run` makes one")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("model", "version", "alias", "test accuracy", "verdict", "serves", "package", "registered"):
        table.add_column(column, justify="right" if column == "version" else "left", no_wrap=True)
    for row in rows:
        ends = [row[key] for key in ("accuracy", "accuracy_low", "accuracy_high")]
        table.add_row(
            row["name"],
            str(row["version"]),
            ", ".join(row["aliases"]),
            "{:.1f}% [{:.1f}, {:.1f}]".format(*(100 * end for end in ends)) if None not in ends else "",
            row["verdict"].replace("_", " "),
            "yes" if row["deployed"] else "",
            row["package_digest"][:8],
            row["created_at"][:10],
        )
    console().print(table)


def trace(
    version: Annotated[
        str,
        typer.Argument(metavar="[MODEL_VERSION|DIGEST]", help="NAME:VERSION, NAME@ALIAS, VERSION or a package digest."),
    ] = "",
    request: Annotated[
        str, typer.Option("--request", metavar="ID", help="Instead: the version that answered this request.")
    ] = "",
    images: Annotated[bool, typer.Option("--images", help="Also every file that the model was trained on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a version was made from: snapshot, recipe, code, run and, with --images, every training file.

    A prediction's answer names the version and the package digest; either leads here. So does its request id, where it
    is in the prediction log.
    """
    from pipelines.cli.trail import answered_by, find_trail
    from pipelines.core.errors import UserError

    if bool(version) == bool(request):
        raise UserError("name a version or, with --request, a request: one of the two")
    settings = settings_module.load()
    found = find_trail(settings, version or answered_by(settings, request), with_images=images)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        if key == "origin":
            value = ", ".join(f"{name} {part}" for name, part in value.items() if part)
        if key not in ("images", "recipe_keys"):
            typer.echo(f"{key:<16} {value}")
    for image in found.get("images", ()):
        typer.echo(f"{image['image_id']}  {image['label']}  {image['source_uri']}")
