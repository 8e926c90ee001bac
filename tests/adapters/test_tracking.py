"""MLflow on the embedded PostgreSQL: training records, versions, aliases, and what is in the artifacts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow.onnx
import mlflow.pyfunc
import numpy as np
import psycopg
import pytest
from example_packages import RIGHT_PIXELS, write_package
from mlflow.entities import Metric

from pipelines.adapters.tracking import MlflowRegistry, RunTracker
from pipelines.adapters.tracking.connection import connect, experiment
from pipelines.core import model_package, package_store
from pipelines.core.errors import NotFound, PlatformError
from pipelines.core.model_package import ModelPackage
from pipelines.core.ports import Registration
from pipelines.core.storage import open_storage
from pipelines.core.values import Interval
from pipelines.settings import Settings

TAGS = {"snapshot": "0" * 64, "recipe": "1" * 64, "code": "2" * 64, "run": "train_classifier/test", "verdict": "better"}


@pytest.fixture(scope="module")
def settings(postgres_settings: Settings) -> Settings:
    return postgres_settings


@pytest.fixture
def candidate(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Registration]:
    """Registrations of a model named after the test."""
    model = request.node.name.replace("_", "-")[:39].rstrip("-")

    def make(folder: str = "package", scale: float = 1.0, run_id: str = "train_classifier/test") -> Registration:
        package = write_package(
            tmp_path / f"{folder}-bare", name=model, weights=scale * np.eye(3, dtype=np.float32), run_id=run_id
        )
        accuracy = {"accuracy": Interval(value=0.9, low=0.8, high=0.95)}
        final = model_package.with_metrics(package, tmp_path / folder, accuracy, 60)
        picture = tmp_path / "confusion.png"
        picture.write_bytes(b"png")
        return Registration(
            model=model,
            package=final,
            tracking_run_id="",
            parameters={"training.epochs": "5"},
            metrics={"test_accuracy": 0.9, "test_accuracy_low": 0.8, "test_accuracy_high": 0.95},
            history=[("val_loss", 0.5, 1), ("val_loss", 0.25, 2)],
            pictures=[picture],
            tags={**TAGS, "package": final.digest},
        )

    return make


def test_a_training_is_recorded_without_waiting(settings: Settings) -> None:
    tracker = RunTracker(settings, "recorded")
    run_id = tracker.start("train_classifier/one", {"training.epochs": "3", "long": "x" * 10_000}, {"run": "one"})
    began = time.perf_counter()
    for step in range(2500):
        tracker.log([("loss", 1 / (step + 1), step), ("rate", 0.1, step)])
    logged_s = time.perf_counter() - began
    tracker.finish("FINISHED")
    run = connect(settings).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "train_classifier/one"
    assert run.data.params["training.epochs"] == "3"
    assert run.data.tags["run"] == "one"
    history = connect(settings).get_metric_history(run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(s, 1 / (s + 1)) for s in range(2500)]
    # 5,000 points through a queue: had each waited for a request of some ms, it would have been many seconds.
    assert logged_s < 2


def test_a_killed_training_is_marked_when_it_is_tried_again(settings: Settings) -> None:
    killed = RunTracker(settings, "killed").start("train_classifier/k", {}, {})
    again = RunTracker(settings, "killed")
    second = again.start("train_classifier/k", {}, {})
    again.finish("FAILED")
    client = connect(settings)
    assert client.get_run(killed).info.status == "KILLED"
    assert client.get_run(second).info.status == "FAILED"


def test_an_unreachable_server_stops_no_training(home_settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    home_settings.secrets.mkdir(parents=True)
    (home_settings.secrets / "postgres-mlflow").write_text("wrong")
    tracker = RunTracker(home_settings, "nowhere")
    assert tracker.start("train_classifier/n", {}, {}) == ""
    tracker.log([("loss", 1.0, 0)])
    tracker.finish("FINISHED")
    assert "MLflow does not answer" in caplog.text
    with pytest.raises(PlatformError, match="darkroom up"):
        MlflowRegistry(home_settings).alias("digits", "champion")


def test_registering_makes_a_complete_version(
    settings: Settings, candidate: Callable[..., Registration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registration = candidate()
    registry = MlflowRegistry(settings)
    version = registry.register(registration)
    assert (version.version, version.aliases) == (1, ("challenger",))
    assert version.package_digest == registration.package.digest
    assert version.tags["content"] == registration.package.content_digest
    assert {key: version.tags[key] for key in TAGS} == TAGS
    client = connect(settings)
    run = client.get_run(version.tracking_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"training.epochs": "5"}
    assert run.data.metrics["test_accuracy"] == 0.9
    assert [point.value for point in client.get_metric_history(run.info.run_id, "val_loss")] == [0.5, 0.25]
    assert [one.path for one in client.list_artifacts(run.info.run_id, "evaluation")] == ["evaluation/confusion.png"]
    assert run.inputs.dataset_inputs[0].dataset.digest == "0" * 36
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert logged.status == "READY"
    assert {metric.key for metric in logged.metrics} == set(registration.metrics)
    assert isinstance(logged.metrics[0], Metric)
    # MLflow's own defaults, such as a database in the working directory, were left alone.
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("ml")]


def test_the_artifact_is_an_onnx_model_with_the_package_inside(
    settings: Settings, candidate: Callable[..., Registration]
) -> None:
    registration = candidate(scale=10)
    version = MlflowRegistry(settings).register(registration)
    client = connect(settings)
    logged = client.get_logged_model(client.get_run(version.tracking_run_id).outputs.model_outputs[0].model_id)
    folder = Path(logged.artifact_location)
    assert folder.is_relative_to(Path(settings.store_uri) / "mlflow" / version.model)
    assert model_package.load(folder / "package").digest == registration.package.digest
    requirements = (folder / "requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in requirements) == ["mlflow", "numpy", "onnxruntime-gpu", "pillow"]
    assert mlflow.onnx.load_model(str(folder)).graph.input[0].name == "pixels_NHWC"
    model = mlflow.pyfunc.load_model(str(folder))
    assert model.metadata.signature.inputs.input_names() == ["pixels_NHWC"]
    answers = model.predict({"pixels_NHWC": RIGHT_PIXELS})
    assert answers["logits"].argmax(axis=1).tolist() == [0, 1, 2]
    secret = settings.secret("postgres-mlflow").encode()
    assert not [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_the_same_content_is_registered_once(settings: Settings, candidate: Callable[..., Registration]) -> None:
    """Another run's package of equal work is the version that is there; what was said of it last stays with it."""
    registry = MlflowRegistry(settings)
    first = registry.register(candidate("one"))
    other = candidate("two", run_id="train_classifier/later")
    again = registry.register(replace(other, tags={**other.tags, "verdict": "same"}))
    assert other.package.digest != first.package_digest
    assert (again.version, again.package_digest, again.tags["verdict"]) == (1, first.package_digest, "same")
    assert registry.register(candidate("three", scale=2)).version == 2
    assert [one.version for one in registry.versions(first.model)] == [2, 1]


def test_registering_at_once_makes_one_version(settings: Settings, candidate: Callable[..., Registration]) -> None:
    registration = candidate()
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: MlflowRegistry(settings).register(registration), range(3)))
    assert [one.version for one in made] == [1, 1, 1]
    assert [one.version for one in MlflowRegistry(settings).versions(registration.model)] == [1]


def test_a_registration_killed_half_way_is_made_whole(
    settings: Settings, candidate: Callable[..., Registration]
) -> None:
    registration = candidate()
    client = connect(settings)
    experiment_id = experiment(client, settings, registration.model)
    left = client.create_logged_model(experiment_id, tags={"content": registration.package.content_digest})
    version = MlflowRegistry(settings).register(registration)
    assert version.version == 1
    models = client.search_logged_models([experiment_id])
    assert [one.status for one in models] == ["READY"]
    assert left.model_id not in {one.model_id for one in models}


def test_aliases_follow_promotions(settings: Settings, candidate: Callable[..., Registration]) -> None:
    registry = MlflowRegistry(settings)
    first, second = registry.register(candidate("one")), registry.register(candidate("two", scale=2))
    model = first.model
    assert registry.alias(model, "champion") is None
    assert registry.promote(model, 1).aliases == ("champion",)
    assert second.aliases == ("challenger",)
    assert registry.promote(model, 2).aliases == ("champion",)
    assert registry.alias(model, "challenger") is None
    assert registry.version(model, 1).aliases == ()
    # The champion registered again stays just that.
    assert registry.register(candidate("three", scale=2)).aliases == ("champion",)


def test_what_is_not_there(settings: Settings) -> None:
    registry = MlflowRegistry(settings)
    assert registry.alias("nothing", "champion") is None
    for call in (lambda: registry.version("nothing", 1), lambda: registry.versions("nothing")):
        with pytest.raises(NotFound, match="darkroom models"):
            call()
    with pytest.raises(NotFound):
        registry.promote("nothing", 1)


def test_a_database_that_goes_away_is_not_an_empty_registry(
    settings: Settings, candidate: Callable[..., Registration]
) -> None:
    """A champion that cannot be asked for is still the champion: the gate must not judge without it."""
    registration = candidate()
    registry = MlflowRegistry(settings)
    model = registry.register(registration).model
    registry.promote(model, 1)
    with _without_database(settings):
        for call in (
            lambda: registry.alias(model, "champion"),
            lambda: registry.version(model, 1),
            lambda: registry.versions(model),
            lambda: registry._exists(model),
            lambda: registry._run("0", replace(registration, tracking_run_id="0" * 32)),
        ):
            with pytest.raises(PlatformError, match="darkroom up"):
                call()
    found = registry.alias(model, "champion")
    assert found is not None
    assert found.version == 1


@contextmanager
def _without_database(settings: Settings) -> Iterator[None]:
    """MLflow's database takes no connection, and has ended those that there were."""
    url = settings.database_url("mlflow")
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0".encode())
        connection.execute(others.encode(), [name])
        try:
            yield
        finally:
            connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1".encode())


def test_the_package_of_a_version(settings: Settings, candidate: Callable[..., Registration]) -> None:
    registration = candidate()
    registry = MlflowRegistry(settings)
    registry.register(registration)
    with pytest.raises(NotFound, match="no such model package"):
        registry.package(registration.model, 1)
    package_store.put(open_storage(settings.store_uri), registration.package)
    found: ModelPackage = registry.package(registration.model, 1)
    assert found.digest == registration.package.digest
