"""Rules of the house as failing checks: who imports whom, what stays out of the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_import_contracts_hold() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("bentos.classifier.service", ("torch", "torchvision", "mlflow", "feast", "airflow", "pandas")),
        ("bentos.classifier.service", ("opentelemetry.sdk", "opentelemetry.exporter")),
        ("bentos.similar.service", ("torch", "torchvision", "mlflow", "feast", "airflow", "pandas", "psycopg")),
        ("bentos.similar.service", ("opentelemetry.sdk", "opentelemetry.exporter", "onnxruntime", "pyarrow", "grpc")),
        ("pipelines.local.supervisor", ("pyarrow", "torch", "mlflow", "feast", "onnxruntime")),
        ("pipelines.cli.step", ("typer", "pydantic", "numpy", "torch", "mlflow", "feast", "airflow")),
        ("pipelines.core.recipe", ("numpy", "PIL", "pyarrow", "boto3")),
    ],
)
def test_a_fresh_interpreter_stays_light(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [REPOSITORY / name for name in listed.splitlines()]


def test_dag_files_stay_short() -> None:
    long = {path.name: lines for path in (REPOSITORY / "dags").glob("*.py") if (lines := _lines(path)) > 80}
    assert set(long) <= {"_step.py"}, long


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_the_lock_names_versions_and_no_addresses() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "@" not in pin and "/" not in pin for pin in pins)


def test_one_reader_of_the_environment_per_tier() -> None:
    """`os.environ` is read in the settings modules; elsewhere it is only handed on to child processes."""
    allowed = {"pipelines/settings.py", "bentos/kit/settings.py"}
    readers = set()
    for path in _tracked():
        name = str(path.relative_to(REPOSITORY))
        if not name.endswith(".py") or name.startswith(("tests/", "infra/")) or name in allowed:
            continue
        text = path.read_text()
        if "os.getenv" in text or "environ.get(" in text or 'environ["DARKROOM' in text:
            readers.add(name)
    assert readers == set()
