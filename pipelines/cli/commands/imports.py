"""The command that brings a foreign model in: import-model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import settings as settings_module
from pipelines.core.foreign import FILTERS, INPUT_RANGES, LAYOUTS, OUTPUT_KINDS, ForeignModel
from pipelines.core.runs import RunRequest

if TYPE_CHECKING:
    from pipelines.cli.chain.imported import Imported

_FILE = "The model's file"
_PIXELS = "How it wants its pixels"
_TENSORS = "Where an ONNX file leaves it open"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("import-model")(import_model)


def import_model(
    name: Annotated[str, typer.Option(help="Name of model and route. One that there is gets a new version.")],
    data: Annotated[
        str,
        typer.Option(
            help="Images that the model is proved and, where their folders are named like its classes, measured on: a "
            "folder, tar, zip, CSV or Parquet table, or s3:// prefix."
        ),
    ],
    onnx: Annotated[str, typer.Option(metavar="FILE", rich_help_panel=_FILE, help="An ONNX file.")] = "",
    torchvision: Annotated[
        str,
        typer.Option(metavar="NETWORK", rich_help_panel=_FILE, help="A classification network, such as mobilenet_v2."),
    ] = "",
    weights: Annotated[
        str,
        typer.Option(
            metavar="FILE", rich_help_panel=_FILE, help="Its state dict; without, torchvision's own are downloaded."
        ),
    ] = "",
    classes: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_FILE,
            help="Class names, one a line, in the model's order. For torchvision's networks ImageNet's by default.",
        ),
    ] = "",
    size: Annotated[int, typer.Option(min=0, max=1024, rich_help_panel=_PIXELS, help="Side of the input, px.")] = 0,
    resize: Annotated[
        int,
        typer.Option(min=0, max=4096, rich_help_panel=_PIXELS, help="Shorter side, px, before the centre is cut out."),
    ] = 0,
    filter_: Annotated[
        str, typer.Option("--filter", rich_help_panel=_PIXELS, help=f"{', '.join(FILTERS)}.", show_default=False)
    ] = "",
    mean: Annotated[str, typer.Option(metavar="R,G,B", rich_help_panel=_PIXELS, help="In the input's range.")] = "",
    std: Annotated[str, typer.Option(metavar="R,G,B", rich_help_panel=_PIXELS, help="In the input's range.")] = "",
    input_range: Annotated[
        str, typer.Option(rich_help_panel=_TENSORS, help=f"Before mean and std: {', '.join(INPUT_RANGES)}.")
    ] = "",
    layout: Annotated[str, typer.Option(rich_help_panel=_TENSORS, help=f"{' or '.join(LAYOUTS)}.")] = "",
    input_: Annotated[str, typer.Option("--input", rich_help_panel=_TENSORS, help="Input that takes images.")] = "",
    output: Annotated[str, typer.Option(rich_help_panel=_TENSORS, help="Output with a number for each class.")] = "",
    output_kind: Annotated[
        str, typer.Option(rich_help_panel=_TENSORS, help=f"{' or '.join(OUTPUT_KINDS)}; else seen on the images.")
    ] = "",
    embedding: Annotated[
        str, typer.Option(metavar="TENSOR", rich_help_panel=_TENSORS, help="Tensor that is the embedding.")
    ] = "",
    int8: Annotated[bool, typer.Option("--int8", help="Also make and judge an int8 variant.")] = False,
    deploy: Annotated[bool, typer.Option(help="Without, it ends with a registered version.")] = True,
    deploy_unmeasured: Annotated[
        bool, typer.Option("--deploy-unmeasured", help="Deploy although no image is labelled; a bad model serves too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Bring a model that was trained elsewhere in: packed, proved against the original, measured, gated and served.

    Its graph is wrapped so that it takes uint8 pixels and carries its own normalization; a golden set of your images
    goes into the package. The same command again reuses what is done. Exit code 1: a gate said no (the version stays
    registered) or a deployment failed, 2: something for you to mend.

    [dim]darkroom import-model --name mobilenet --torchvision mobilenet_v2 --weights FILE.pth --data photos/[/dim]
    """
    from pipelines.cli.chain import import_request as asked
    from pipelines.cli.chain.command import start_platform
    from pipelines.cli.chain.imported import run_import
    from pipelines.cli.chain.report import Reporter
    from pipelines.cli.execute import storage_of
    from pipelines.core.results import ResultStore

    settings = settings_module.load()
    recipe = asked.recipe_of(settings, name, data, int8=int8)
    file = asked.model_file(settings, onnx=onnx, torchvision=torchvision, weights=weights)
    model = ForeignModel(
        form="torchvision" if torchvision else "onnx",
        file=str(file),
        architecture=torchvision,
        classes=asked.class_names(classes, needed=bool(onnx)),
        size=size,
        resize=resize,
        filter=filter_,
        mean=asked.channels("--mean", mean),
        std=asked.channels("--std", std),
        input_range=input_range,
        layout=layout,
        input=input_,
        output=output,
        output_kind=output_kind,
        embedding=embedding,
    )
    request = RunRequest(recipe=recipe, foreign=asked.checked(model), deploy_unmeasured=deploy_unmeasured)
    storage = storage_of(settings)
    reporter = Reporter(storage, ResultStore(storage, settings.home / "cache"))

    def start() -> None:
        start_platform(settings, reporter, direct=True)

    found = run_import(settings, request, reporter, deploy=deploy, start_platform=start)
    typer.echo(json.dumps(found.as_json(), indent=1) if as_json else _summary(found))


def _summary(found: Imported) -> str:
    """For people: how good it is and what serves. How it was understood was said on the way."""
    model, version, accuracy = found.registered.model, found.registered.version, found.accuracy
    lines = [f"data: {note}" for note in found.left_out]
    if accuracy is None:
        lines.append("accuracy: unknown, for no test image is labelled with a class that the model knows")
    else:
        value, low, high = (f"{100 * part:.2f}" for part in (accuracy.value, accuracy.low, accuracy.high))
        lines.append(f"accuracy: {value}% ({low} to {high}) on {found.num_images:,} images")
    lines.append(f"verdict: {found.compared.verdict.replace('_', ' ')}: {found.compared.reason}")
    if found.deployed is None:
        lines.append(f"{model} version {version} is registered; `darkroom promote {version} --model {model}` serves it")
    else:
        lines.append(f"{model} version {version} serves: curl -sS --data-binary @photo.jpg {found.deployed.url}")
    return "\n".join(lines)
