"""An environment for each peer, made once from its pinned list by the package installer's own defaults."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from bench.harness import progress
from pipelines.core.errors import PlatformError, UserError

_FOLDER = Path(__file__).parent
_SAME = {"onnxruntime": "onnxruntime-gpu", "numpy": "numpy", "pillow": "pillow"}
"""What does the work: pinned to the versions that serve here, by the name they have here."""


def python(peer: str, kept: Path) -> Path:
    """Its interpreter; the environment is made below `kept` where it is not there yet.

    Raises what `check` raises, and PlatformError where it cannot be installed.
    """
    requirements = _list(peer)
    check(peer)
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = kept / "peers" / f"{peer}-{digest}"
    made = folder / "complete"
    if not made.exists():
        progress(f"installing {requirements.name} into {folder}")
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(requirements))
        made.touch()
    return folder / "bin" / "python"


def _list(peer: str) -> Path:
    return _FOLDER / f"{peer}.txt"


def check(peer: str) -> None:
    """Raises UserError where its list would measure another runtime, or other decoding, than ours."""
    requirements = _list(peer)
    pins = dict(line.split("==") for line in requirements.read_text().splitlines() if "==" in line)
    for name, here in _SAME.items():
        version = importlib.metadata.version(here)
        if pins.get(name) != version:
            raise UserError(
                f"{requirements}: {name}=={pins.get(name)}, and {version} serves here; set it to that, to measure "
                "servers and not runtimes"
            )


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlatformError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-2000:]}")
