"""Model versions in MLflow's registry: each is what one model package became."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipelines.adapters.tracking.connection import connect, experiment, locked
from pipelines.adapters.tracking.flavor import save_model
from pipelines.adapters.tracking.runs import log_params, log_points
from pipelines.core import package_store
from pipelines.core.errors import NotFound, PlatformError
from pipelines.core.model_package import ModelPackage
from pipelines.core.ports import ModelVersion, Registration
from pipelines.core.storage import open_storage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pipelines.settings import Settings

CHAMPION, CHALLENGER = "champion", "challenger"


class MlflowRegistry:
    """Fulfils `core.ports.ModelRegistry`. Calls raise PlatformError where PostgreSQL does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connected: MlflowClient | None = None

    @property
    def _client(self) -> MlflowClient:
        if self._connected is None:
            self._connected = connect(self._settings)
        return self._connected

    def register(self, registration: Registration) -> ModelVersion:
        """The version of this package, made if its content is not there yet; `challenger` unless it is the champion.

        The lock for the model and the tag `content` make it happen once, whoever was killed half-way.
        """
        client, model = self._client, registration.model
        with self._lock(model):
            found = self._of_content(model, registration.package.content_digest)
            if found is None:
                number = self._create(registration)
            else:
                number = found.version
                for key in registration.tags.keys() - {"package"}:
                    client.set_model_version_tag(model, str(number), key, registration.tags[key])
            self._link(model, number)
            if CHAMPION not in self.version(model, number).aliases:
                client.set_registered_model_alias(model, CHALLENGER, str(number))
            return self.version(model, number)

    def versions(self, model: str = "") -> list[ModelVersion]:
        """Newest first; of all models where none is named."""
        from mlflow.exceptions import MlflowException

        names = [model] if model else [one.name for one in _pages(self._client.search_registered_models)]
        found: list[ModelVersion] = []
        for name in names:
            try:
                aliases = self._client.get_registered_model(name).aliases
            except MlflowException as error:
                _must_be_missing(error)
                raise NotFound(f"model {name}: no such model; `darkroom models` lists them") from error
            rows = _pages(self._client.search_model_versions, filter_string=f"name = '{name}'")
            found += [_version(row, aliases) for row in rows]
        return sorted(found, key=lambda one: (one.model, -one.version))

    def version(self, model: str, version: int) -> ModelVersion:
        """Raises NotFound."""
        from mlflow.exceptions import MlflowException

        try:
            row = self._client.get_model_version(model, str(version))
            return _version(row, self._client.get_registered_model(model).aliases)
        except MlflowException as error:
            _must_be_missing(error)
            raise NotFound(f"model {model} has no version {version}; `darkroom models` lists them") from error

    def alias(self, model: str, alias: str) -> ModelVersion | None:
        """The version that an alias points to; None where there is no such model or alias."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = self._client.get_registered_model(model).aliases
        except MlflowException as error:
            _must_be_missing(error)
            return None
        return self.version(model, int(aliases[alias])) if alias in aliases else None

    def promote(self, model: str, version: int) -> ModelVersion:
        """Move `champion` to a version that serves now. Raises NotFound."""
        with self._lock(model):
            found = self.version(model, version)
            if CHAMPION not in found.aliases:
                self._client.set_registered_model_alias(model, CHAMPION, str(version))
            if CHALLENGER in found.aliases:
                self._client.delete_registered_model_alias(model, CHALLENGER)
            return self.version(model, version)

    def package(self, model: str, version: int) -> ModelPackage:
        """The version's package, on this machine and verified. Raises NotFound, IntegrityError."""
        storage = open_storage(self._settings.store_uri, endpoint_url=self._settings.s3_endpoint_url)
        return package_store.get(storage, self.version(model, version).package_digest, self._settings.home / "cache")

    def _lock(self, model: str) -> Any:
        return locked(self._settings.database_url("mlflow"), f"model {model}")

    def _of_content(self, model: str, content_digest: str) -> ModelVersion | None:
        rows = _pages(
            self._client.search_model_versions,
            filter_string=f"name = '{model}' and tags.content = '{content_digest}'",
        )
        return self.version(model, min(int(row.version) for row in rows)) if rows else None

    def _create(self, registration: Registration) -> int:
        client, package = self._client, registration.package
        experiment_id = experiment(client, self._settings, registration.model)
        run_id = self._run(experiment_id, registration)
        tags = {**registration.tags, "package": package.digest, "content": package.content_digest}
        for killed in client.search_logged_models([experiment_id], f"tags.content = '{package.content_digest}'"):
            client.delete_logged_model(killed.model_id)
        logged = client.create_logged_model(
            experiment_id,
            name=registration.model,
            source_run_id=run_id,
            tags=tags,
            params={name: value[:500] for name, value in registration.parameters.items()},
            model_type="image-classifier",
        )
        with TemporaryDirectory(prefix="model-", dir=self._scratch()) as folder:
            save_model(package, Path(folder) / "model", run_id, logged.model_id, tags)
            client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
        client.finalize_logged_model(logged.model_id, "READY")
        self._record_results(run_id, logged.model_id, registration)
        if not self._exists(registration.model):
            client.create_registered_model(
                registration.model, tags={"darkroom": registration.model}, description=_DESCRIPTION
            )
        # All tags come with the row: a version that exists is complete. The source is a place and not models:/<id>,
        # which MLflow would look up in its process-wide default store.
        made = client.create_model_version(
            registration.model,
            source=logged.artifact_location,
            run_id=run_id,
            tags=tags,
            model_id=logged.model_id,
            description=f"{len(package.class_names)} classes, {package.variant}, {_figures(registration.metrics)}",
        )
        return int(made.version)

    def _link(self, model: str, number: int) -> None:
        """Show the version on the logged model's page, as MLflow's own register_model does."""
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

        model_id = self._client.get_model_version(model, str(number)).model_id
        if model_id and MLFLOW_MODEL_VERSIONS not in self._client.get_logged_model(model_id).tags:
            versions = json.dumps([{"name": model, "version": number}])
            self._client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: versions})

    def _run(self, experiment_id: str, registration: Registration) -> str:
        """The training's record, or one made afterwards where MLflow did not see the training."""
        from mlflow.exceptions import MlflowException

        client = self._client
        run_id = registration.tracking_run_id
        try:
            known = run_id and client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            _must_be_missing(error)
            known = False
        if not known:
            run_id = str(client.create_run(experiment_id, run_name=registration.tags.get("run")).info.run_id)
            now = int(time.time() * 1000)
            log_points(client, run_id, [(*point, now) for point in registration.history])
        log_params(client, run_id, registration.parameters)
        return run_id

    def _record_results(self, run_id: str, model_id: str, registration: Registration) -> None:
        from mlflow.entities import Dataset, DatasetInput, LoggedModelOutput

        client, now = self._client, int(time.time() * 1000)
        client.log_outputs(run_id, models=[LoggedModelOutput(model_id, step=0)])
        snapshot = registration.package.lineage.snapshot_id
        # MLflow keeps 36 characters of a dataset's digest; the whole one is in the tags.
        dataset = Dataset(registration.model, snapshot[:36], "darkroom", f'{{"snapshot": "{snapshot}"}}')
        client.log_inputs(run_id, datasets=[DatasetInput(dataset)])
        points = [(name, value, 0, now) for name, value in registration.metrics.items()]
        log_points(client, run_id, points, model_id, dataset)
        for picture in registration.pictures:
            client.log_artifact(run_id, str(picture), "evaluation")
        for key, value in registration.tags.items():
            client.set_tag(run_id, key, value)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id)

    def _exists(self, model: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(model)
        except MlflowException as error:
            _must_be_missing(error)
            return False
        return True

    def _scratch(self) -> Path:
        folder = self._settings.home / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


_DESCRIPTION = (
    "Image classifier. `champion` serves; `challenger` is the newest candidate. Tags say what made a version."
)


def _figures(metrics: Mapping[str, float]) -> str:
    words = ("test_accuracy", "test_accuracy_low", "test_accuracy_high")
    if not all(word in metrics for word in words):
        return "not evaluated"
    value, low, high = (100 * metrics[word] for word in words)
    return f"accuracy {value:.2f}% [{low:.2f}, {high:.2f}] on the snapshot's test images"


def _must_be_missing(error: MlflowException) -> None:
    """Raises PlatformError unless MLflow says that there is no such thing: a database that is away holds no verdict."""
    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: no name at all
        raise PlatformError(f"MLflow's database does not answer ({error.message}); `darkroom up` starts it") from error


def _version(row: Any, aliases: Mapping[str, str]) -> ModelVersion:
    return ModelVersion(
        model=row.name,
        version=int(row.version),
        package_digest=row.tags.get("package", ""),
        tracking_run_id=row.run_id or "",
        aliases=tuple(sorted(alias for alias, version in aliases.items() if str(version) == str(row.version))),
        tags=dict(row.tags),
        created_at=datetime.fromtimestamp(row.creation_timestamp / 1000, UTC).isoformat(),
    )


def _pages(search: Any, **arguments: Any) -> list[Any]:
    """Every row of a search that answers in pages."""
    rows: list[Any] = []
    token = None
    while True:
        page = search(**arguments, page_token=token)
        rows += page
        token = page.token
        if not token:
            return rows
