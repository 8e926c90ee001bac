"""`step()`: the one operator factory, and the one place where a Celery queue or a Kubernetes pod replaces the process.

A task runs `darkroom step NAME --run DAG/RUN` and reads the outcome that the command leaves behind. The command lives
in a session of its own, dies with the task, and is marked so that an orphan of a crashed machine is found and ended.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, BaseOperator, Context, XComArg
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from pipelines import settings as settings_module
from pipelines.core.actors import airflow
from pipelines.core.command import TAIL_LINES, Command, said
from pipelines.core.errors import RecipeError
from pipelines.core.recipe import Recipe, registered
from pipelines.core.runs import RunId

TASK_MARK = "DARKROOM_TASK"
RETRIES = 2
RETRY_DELAY = timedelta(seconds=5)
NO_RETRY = {1: "refused, what served before still serves", 2: "something a person has to mend"}


class StepOperator(BaseOperator):  # type: ignore[misc]  # Airflow is not typed for us
    """Runs one step as a command."""

    template_fields: Sequence[str] = ("arguments",)

    def __init__(
        self,
        *,
        step: str,
        arguments: Sequence[str] = (),
        shard: int | None = None,
        fan_out: bool = False,
        skip_unchanged: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(do_xcom_push=fan_out, **kwargs)
        self.step = step
        self.arguments = arguments
        self.shard = shard
        self.fan_out = fan_out
        self.skip_unchanged = skip_unchanged
        self._command: Command | None = None
        self._ended = False

    def execute(self, context: Context) -> list[int] | None:
        """Run the command; returns the shard numbers where later tasks are mapped over them."""
        found = self._run(context)
        value = found["value"]
        if found["facts"].get("nothing_to_do"):
            raise AirflowSkipException("there is nothing to do")
        if value.get("wait_s", 0) > 0:
            self._defer(value["wait_s"])
        if value.get("trained_by"):
            raise AirflowSkipException(f"run {value['trained_by']} has trained and deployed this very data")
        if self.skip_unchanged and not value["changed"]:
            raise AirflowSkipException("the dataset's head held exactly this before: no event for what waits on it")
        return list(range(value["num_shards"])) if self.fan_out else None

    def resume(self, context: Context, event: object = None) -> list[int] | None:  # noqa: ARG002 (Airflow's signature)
        """After a deferral: ask again, since the world may have moved meanwhile."""
        return self.execute(context)

    def on_kill(self) -> None:
        """Airflow ends the task: so does everything that the command started."""
        self._ended = True
        if self._command is not None:
            self._command.terminate()

    def _defer(self, wait_s: float) -> None:
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        self.log.info("waiting %.1f s until the data is quiet", wait_s)
        moment = datetime.now(UTC) + timedelta(seconds=wait_s)
        self.defer(trigger=DateTimeTrigger(moment=moment), method_name="resume")

    def _run(self, context: Context) -> Mapping[str, Any]:
        if _is_empty("--interval", self.arguments):
            raise AirflowFailException('a manual run names its day: trigger it with {"interval": "YYYY-MM-DD"}')
        settings = settings_module.load()
        run = context["dag_run"]
        run_id = RunId(dag_id=run.dag_id, run_id=run.run_id)
        name = str(run_id)
        shard = [] if self.shard is None else ["--shard", str(self.shard)]
        mark = "/".join([name, self.step, *shard[1:]])
        with tempfile.TemporaryDirectory(prefix="darkroom-") as folder:
            outcome = Path(folder) / "outcome.json"
            arguments = ["step", self.step, "--run", name, *shard, "--actor", airflow(run_id)]
            arguments += ["--outcome", str(outcome), *self.arguments]
            self.log.info("darkroom %s", " ".join(arguments))
            tail: list[str] = []
            self._command = Command(
                arguments,
                cwd=settings_module.REPOSITORY,
                environment=_environment(mark),
                host=settings.home / "run",
            )
            if self._ended:  # while it was being started
                self._command.terminate()
            code = self._command.run(lambda line: self._heard(line, tail))
            if code != 0:
                self._fail(code, tail)
            found: Mapping[str, Any] = json.loads(outcome.read_text())
        verb = "reused" if found["reused"] else "done"
        self.log.info("%s in %.2f s: %s", verb, found["function_s"], json.dumps(found["value"]))
        return found

    def _heard(self, line: str, tail: list[str]) -> None:
        self.log.info("%s", line)
        tail.append(line)
        del tail[:-TAIL_LINES]

    def _fail(self, code: int, tail: Sequence[str]) -> None:
        if code in NO_RETRY:
            raise AirflowFailException(f"step {self.step}: {NO_RETRY[code]} (exit {code}): {said(tail)}") from None
        how = f"killed by signal {-code}" if code < 0 else f"exit {code}"
        raise AirflowException(f"step {self.step}: {how}: {said(tail)}") from None


def _is_empty(option: str, arguments: Sequence[str]) -> bool:
    return any(name == option and not value for name, value in pairwise(arguments))


def _environment(mark: str) -> dict[str, str]:
    """The task's environment without Airflow's own, which holds its database's password."""
    kept = {key: value for key, value in os.environ.items() if not key.lstrip("_").startswith("AIRFLOW")}
    return {**kept, TASK_MARK: mark}


def step(
    name: str,
    *,
    arguments: Sequence[str] = (),
    over: XComArg | None = None,
    fan_out: bool = False,
    skip_unchanged: bool = False,
    outlets: Sequence[Asset] = (),
    pool: str = "default_pool",
    doc: str = "",
) -> Any:
    """The task of one step: a StepOperator, or one mapped over the shard numbers of `over`."""
    common: dict[str, Any] = {
        "task_id": name,
        "step": name,
        "pool": pool,
        "retries": RETRIES,
        "retry_delay": RETRY_DELAY,
        "doc_md": doc or f"`darkroom step {name}`",
    }
    queue = settings_module.load().celery_queue
    if queue:
        common["queue"] = queue
    if over is not None:
        return StepOperator.partial(arguments=list(arguments), **common).expand(shard=over)
    return StepOperator(
        arguments=list(arguments), fan_out=fan_out, skip_unchanged=skip_unchanged, outlets=list(outlets), **common
    )


def recipes() -> tuple[list[Recipe], dict[Path, RecipeError]]:
    """Registered recipes by name, and the errors of files that do not load: one broken file takes no other down."""
    found, broken = registered(*settings_module.load().recipe_folders)
    return [found[name] for name in sorted(found)], broken


def dag_id(kind: str, name: str) -> str:
    """`ingest_images` is the default recipe's; another's carries its name, as its route does."""
    return kind if name == settings_module.load().default_model else f"{kind}__{name}"


def snapshot_asset(name: str) -> Asset:
    """What `accept` announces and training waits for.

    A scheme that begins with x- is nobody's: for any other, every task loads all providers to look for its owner, boto3
    among them (0.9 of the 1.0 s that reading this file took).
    """
    return Asset(name=f"snapshot-{name}", uri=f"x-darkroom://datasets/{re.sub('[^a-z0-9-]', '-', name)}/head")


def changes(conf: Mapping[str, Any] | None) -> str:
    """The recipe keys (those with a dot) that a run was triggered with, as the JSON that `darkroom step --set` takes.

    Not `params`: their defaults are those of the recipe when Airflow last read this file.
    """
    return json.dumps({key: value for key, value in (conf or {}).items() if "." in key})
