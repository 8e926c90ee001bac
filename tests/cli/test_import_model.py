"""`darkroom import-model`: a foreign model through package, golden set, gate, registry and gateway."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from example_packages import coloured
from foreign_models import MeanColour, export
from PIL import Image
from serving_platform import VARIABLE, ask, in_own_schema, serving
from small_datasets import picture, save
from typer.testing import CliRunner

from pipelines import settings as settings_module
from pipelines.adapters import database
from pipelines.adapters.tracking import MlflowRegistry
from pipelines.cli.app import app
from pipelines.cli.chain import graph
from pipelines.cli.chain.import_request import recipe_of
from pipelines.cli.chain.imported import Imported, run_import
from pipelines.cli.chain.listing import list_runs
from pipelines.cli.chain.report import Reporter
from pipelines.cli.execute import storage_of
from pipelines.cli.trail import find_trail
from pipelines.cli.wiring import IMPORT_STEPS
from pipelines.core.errors import GateRejected, UserError
from pipelines.core.foreign import ForeignModel
from pipelines.core.inference import Classifier, prove
from pipelines.core.results import ResultStore
from pipelines.core.runs import RunRequest
from pipelines.local.ports import free_port
from pipelines.settings import Settings

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def settings(postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home, a gateway and a schema of this module's own, over the session's PostgreSQL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, in_own_schema(postgres_settings))
        patch.setenv("DARKROOM_DATABASE_URL_MLFLOW", postgres_settings.database_url("mlflow"))
        patch.setenv("DARKROOM_ENVOY_ADMIN_PORT", str(free_port()))
        patch.setenv("DARKROOM_HOME", str(tmp_path_factory.mktemp("import")))
        patch.setenv("DARKROOM_GATEWAY_PORT", str(free_port()))
        found = settings_module.load()
        database.migrate(found.database_url("darkroom"))
        yield found


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of each colour in its folder, and 4 in a folder that is no class of the model."""
    folder = tmp_path_factory.mktemp("colours")
    for name, source, count in [*((name, name, 40) for name in COLOURS), ("purple", "red", 4)]:
        (folder / name).mkdir()
        for seed in range(count):
            (folder / name / f"{seed}.png").write_bytes(coloured(source, seed + (100 if name == "purple" else 0)))
    return folder


@pytest.fixture
def imports(settings: Settings) -> Callable[..., Imported]:
    def run(name: str, model: ForeignModel, data: Path, *, deploy: bool = False, unmeasured: bool = False) -> Imported:
        request = RunRequest(
            recipe=recipe_of(settings, name, str(data), int8=False), foreign=model, deploy_unmeasured=unmeasured
        )
        storage = storage_of(settings)
        reporter = Reporter(storage, ResultStore(storage, settings.home / "cache"), quiet=True)
        found = run_import(settings, request, reporter, deploy=deploy, start_platform=lambda: None)
        reused = [one.step for one in reporter.reports if one.reused]
        return replace(found, understood=(*found.understood, *(f"{step} reused" for step in reused)))

    return run


def mean_colour(folder: Path, order: tuple[int, int, int] = (0, 1, 2)) -> ForeignModel:
    path = export(MeanColour(order), folder / f"colours-{''.join(map(str, order))}.onnx")
    return ForeignModel(form="onnx", file=str(path), classes=COLOURS, input_range="0..1", size=16, resize=16)


def test_the_chain_names_every_step_of_an_import() -> None:
    assert tuple(IMPORT_STEPS) == graph.IMPORT


def test_an_onnx_file_is_measured_registered_and_found_again(
    settings: Settings, imports: Callable[..., Imported], colours: Path, tmp_path: Path
) -> None:
    model = mean_colour(tmp_path)
    found = imports("by-colour", model, colours)
    assert (found.registered.version, found.compared.verdict, found.deployed) == (1, "better", None)
    assert found.accuracy is not None
    assert found.accuracy.value == 1.0
    assert found.accuracy.low > 0.9
    assert any("are of no class that the model knows" in note for note in found.left_out)
    package = MlflowRegistry(settings).package("by-colour", 1)
    assert package.origin is not None
    assert (package.origin.form, package.origin.file) == ("onnx", "colours-012.onnx")
    assert package.origin.size_bytes == Path(model.file).stat().st_size
    assert package.temperature != 1.0, "fitted on validation images"
    assert {one.case for one in package.golden} == {"val", "exif", "cmyk", "16-bit", "palette", "alpha"}
    assert prove(Classifier(package)).num_images == len(package.golden)
    again = imports("by-colour", model, colours)
    assert again.registered == found.registered
    assert {"ingest reused", "snapshot reused", "export reused", "evaluate reused"} <= set(again.understood)
    trail = find_trail(settings, "by-colour:1", with_images=True)
    assert (trail["origin"]["sha256"], trail["images"]) == (package.origin.sha256, [])
    tags = MlflowRegistry(settings).version("by-colour", 1).tags
    assert (tags["origin"], tags["origin_sha256"]) == ("onnx", package.origin.sha256)
    assert [row["last_step"] for row in list_runs(settings, "by-colour", 5)] == ["register", "register"]


def test_a_model_worse_than_the_champion_is_registered_and_not_deployed(
    settings: Settings, imports: Callable[..., Imported], colours: Path, tmp_path: Path
) -> None:
    imports("gated", mean_colour(tmp_path), colours)
    MlflowRegistry(settings).promote("gated", 1)
    with pytest.raises(GateRejected, match="gated version 2 is registered but not deployed: worse than what serves"):
        imports("gated", mean_colour(tmp_path, (1, 2, 0)), colours, deploy=True)
    assert MlflowRegistry(settings).version("gated", 2).tags["verdict"] == "worse"


def photographs(folder: Path) -> Path:
    """Twelve pictures in no class folder."""
    for seed in range(12):
        save(folder / f"{seed}.png", picture(seed).resize((300 + 10 * seed, 280), Image.Resampling.BICUBIC))
    return folder


def mobilenet(path: Path) -> torch.nn.Module:
    """MobileNetV2 with random weights that tell images apart, saved as torchvision publishes them."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.1)  # type: ignore[union-attr, operator]
    torch.save(network.state_dict(), path)
    return network.eval()


@pytest.mark.heavy
def test_torchvisions_mobilenet_answers_through_the_gateway_as_torchvision_does(
    settings: Settings, imports: Callable[..., Imported], tmp_path: Path
) -> None:
    network, data = mobilenet(tmp_path / "mobilenet.pth"), photographs(tmp_path / "photos")
    model = ForeignModel(form="torchvision", file=str(tmp_path / "mobilenet.pth"), architecture="mobilenet_v2")
    with serving(settings):
        with pytest.raises(GateRejected, match="mobilenet version 1 is registered but not deployed: not measured"):
            imports("mobilenet", model, data, deploy=True)
        found = imports("mobilenet", model, data, deploy=True, unmeasured=True)
        assert (found.registered.version, found.accuracy) == (1, None)
        assert found.deployed is not None
        weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
        for path in sorted(data.glob("*.png"))[:4]:
            with torch.inference_mode():
                image = weights.transforms()(Image.open(path))[None]
                expected = torch.softmax(network(image), 1)[0].numpy()
            status, body = ask(settings.gateway_port, "/v1/models/mobilenet/classify?top_k=1000", path.read_bytes())
            answer = {one["class_name"]: one["probability"] for one in body["predictions"]}
            assert status == 200
            served = np.array([answer[name] for name in weights.meta["categories"]])
            assert expected.max() > 0.002, "not all alike"
            assert np.abs(served - expected).max() < 1e-5
        status, body = ask(settings.gateway_port, "/v1/models/mobilenet/embed", path.read_bytes())
        assert (status, len(body["embedding"])) == (200, 1280)


def test_a_model_that_is_not_understood_is_told_before_the_platform_is_started(
    home_settings: Settings, colours: Path, tmp_path: Path
) -> None:
    model = mean_colour(tmp_path)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    words = ["--name", "x1", "--onnx", model.file, "--data", str(colours), "--classes", str(tmp_path / "names.txt")]
    with pytest.raises(UserError, match=r"no output has a number for each of the 2 names .* answers \[N, 3\]"):
        CliRunner().invoke(app, ["import-model", *words], catch_exceptions=False)
    with pytest.raises(UserError, match="no such file or folder"):
        CliRunner().invoke(app, ["import-model", *words, "--data", "/none"], catch_exceptions=False)
    assert not (home_settings.home / "secrets").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "name the model: either --onnx FILE, or --torchvision NETWORK"),
        (("--onnx", "{file}", "--torchvision", "resnet18"), "name the model: either --onnx FILE, or --torchvision"),
        (("--onnx", "{file}", "--weights", "{file}"), "--weights belongs to --torchvision"),
        (("--onnx", "/none.onnx"), "--onnx /none.onnx: no such file"),
        (("--torchvision", "resnet18", "--weights", "/none.pth"), "--weights /none.pth: no such file"),
        (("--onnx", "{file}"), "--onnx needs --classes FILE: one class name a line"),
        (("--onnx", "{file}", "--classes", "{file}", "--mean", "1,2"), "--mean 1,2: expected three numbers"),
        (("--onnx", "{file}", "--classes", "{file}", "--layout", "HWC"), "--layout HWC: must be one of NCHW, NHWC"),
        (
            ("--torchvision", "resnet18", "--weights", "{file}", "--layout", "NCHW", "--embedding", "x"),
            "--layout, --embedding: only for --onnx",
        ),
        (
            ("--torchvision", "resnet18", "--weights", "{file}", "--mean", "123,116,103"),
            "torchvision's networks take pixels in 0..1",
        ),
        (("--torchvision", "resnet18", "--weights", "{file}", "--name", "No Name"), "name = 'No Name'"),
    ],
)
def test_words_that_contradict_each_other(
    arguments: tuple[str, ...], text: str, home_settings: Settings, tmp_path: Path
) -> None:
    """Found before the platform is started."""
    (tmp_path / "file").write_text("one\ntwo\n")
    filled = [one.replace("{file}", str(tmp_path / "file")) for one in arguments]
    with pytest.raises(UserError, match=re.escape(text)):
        CliRunner().invoke(app, ["import-model", "--name", "x1", "--data", "photos", *filled], catch_exceptions=False)
