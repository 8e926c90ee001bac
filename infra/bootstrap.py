"""Make the environment: `.venv` in the clone, with exactly what requirements.lock says. Called by the Makefile.

Only the standard library is used, in a form that an old Python can read, so that it can say what it needs. It may be
killed at any point and run again; when there is nothing to do it takes 0.1 s.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
LOCK = REPOSITORY / "requirements.lock"
STAMP = VENV / "darkroom-installed"
UNFINISHED = VENV / "darkroom-unfinished"
SUPPORTED = ((3, 11),)
INSTALLED_GB = 8.4
"""Size of the environment with its bytecode; most of it are torch's CUDA libraries."""
MARGIN_GB = 1.5
"""Room for the largest download while it is unpacked, and for the first run."""


class Stop(Exception):
    """Something a person has to mend."""


def main() -> int:
    """Exit status: 0 when the environment is there, 2 when a person has to mend something."""
    with open(__file__) as own:
        # Two `make` at once: the second waits for the first.
        fcntl.flock(own, fcntl.LOCK_EX)
        try:
            if not is_done():
                check_machine()
                other = better_python()
                if other:
                    fcntl.flock(own, fcntl.LOCK_UN)
                    os.execv(other, [other, __file__])  # noqa: S606
                install()
        except Stop as error:
            sys.stderr.write("darkroom: {}\n".format(error))  # noqa: UP032
            return 2
    return 0


def digest() -> str:
    """What the environment was made from; a clone that moved needs a new one, since scripts hold its path."""
    parts = [LOCK.read_bytes(), (REPOSITORY / "pyproject.toml").read_bytes(), str(REPOSITORY).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_done() -> bool:
    try:
        return STAMP.read_text() == digest() and (VENV / "bin" / "python").exists()
    except OSError:
        return False


def check_machine() -> None:
    """Before anything is downloaded. Raises Stop."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise Stop(
            f"this is {platform.system()} on {platform.machine()}; supported is Linux on x86-64, "
            "WSL2 included: several of the pinned wheels exist for nothing else"
        )
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 28):
        raise Stop(f"the C library is {name or 'not glibc'} {version}; the wheels need glibc 2.28 or newer")
    needed_gb = (INSTALLED_GB if not STAMP.exists() else 1.0) + MARGIN_GB
    free_gb = shutil.disk_usage(REPOSITORY).free / 1e9
    if free_gb < needed_gb:
        raise Stop(
            f"{REPOSITORY}: {free_gb:.1f} GB are free, the installation takes {needed_gb:.1f} GB; free some, "
            "or clone to another disk"
        )


def better_python() -> str | None:
    """Another interpreter to go on with, None where this one will do. Raises Stop where there is none."""
    if sys.version_info[:2] in SUPPORTED:
        return None
    for major, minor in SUPPORTED:
        path = shutil.which(f"python{major}.{minor}")
        # A version manager's shim may stand for nothing.
        if path and subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode == 0:
            return path
    found = platform.python_version()
    raise Stop(f"this is Python {found}; install Python 3.11 and run `make PYTHON=/path/to/python3.11`")


def install() -> None:
    """Environment, installer, packages, project, and last the stamp. Raises Stop."""
    began = time.monotonic()
    packages = sum("==" in line for line in LOCK.read_text().splitlines())
    say(f"installing {packages} packages into {VENV} ({INSTALLED_GB} GB, a minute or a few, once)")
    make_venv()
    STAMP.unlink(missing_ok=True)
    UNFINISHED.touch()
    python = str(VENV / "bin" / "python")
    uv = next(line for line in LOCK.read_text().splitlines() if line.startswith("uv=="))
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", uv.split()[0]], "install uv")
    install_packages(python)
    say("installing darkroom itself")
    project = ["--no-deps", "--no-build-isolation", "--quiet", "--editable", str(REPOSITORY)]
    run([python, "-m", "pip", "install", "--disable-pip-version-check", *project], "install the project")
    partial = STAMP.with_name("darkroom-installed.partial")
    partial.write_text(digest())
    partial.replace(STAMP)
    UNFINISHED.unlink()
    say(f"installed in {time.monotonic() - began:.0f} s")


def make_venv() -> None:
    """Keep one that works; anything else in its place is made anew.

    So is one whose installation was killed: it may hold half a package that counts as installed.
    """
    python = VENV / "bin" / "python"
    probe = "import sys, pip; sys.exit(sys.version_info[:2] not in {})".format(SUPPORTED)  # noqa: UP032
    works = python.exists() and not UNFINISHED.exists()
    if works and subprocess.run([str(python), "-c", probe], check=False, capture_output=True).returncode == 0:
        return
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
    if made.returncode != 0:
        raise Stop(
            f"{sys.executable} cannot make a virtual environment; on Debian and Ubuntu install "
            f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        )


def install_packages(python: str) -> None:
    """With uv (20-60 s), or where that fails with pip (3 minutes or more), which knows every setting of pip's own."""
    # Without bytecode imports run two to three times slower. The lock is complete: nothing to resolve.
    options = ["--no-deps", "--compile-bytecode", "--requirement", str(LOCK)]
    if not sys.stderr.isatty():
        options.append("--quiet")
    done = subprocess.run(
        [python, "-m", "uv", "pip", "install", "--python", python, *options], env=uv_environment(python), check=False
    )
    if done.returncode != 0:
        say("uv could not install everything; trying pip, which takes longer")
        pip = [python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--requirement", str(LOCK)]
        run(pip if sys.stderr.isatty() else [*pip, "--quiet"], "install requirements.lock")


def uv_environment(python: str) -> dict[str, str]:
    """Ours, with pip's configuration (indexes, certificate) said in uv's words, and a cache that can be hard-linked."""
    env = environment()
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True, env=env
    )
    configured = {}
    for level in ("global.", "install.", ":env:."):  # later ones win
        for line in listed.stdout.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(level):
                configured[key[len(level) :]] = value.strip("'\"").replace("\\n", " ").split()
    for theirs, ours, separator in (
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("extra-index-url", "UV_INDEX", " "),
        ("find-links", "UV_FIND_LINKS", ","),
        ("cert", "SSL_CERT_FILE", " "),
        ("trusted-host", "UV_INSECURE_HOST", " "),
    ):
        if configured.get(theirs):
            env.setdefault(ours, separator.join(configured[theirs]))
    if "extra-index-url" in configured:
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # what pip does
    env.setdefault("UV_HTTP_TIMEOUT", "180")
    cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if "UV_CACHE_DIR" not in env and not (cache.exists() and cache.stat().st_dev == VENV.stat().st_dev):
        env["UV_NO_CACHE"] = "1"
    return env


def environment() -> dict[str, str]:
    """Without what would keep bytecode from being written, or lead Python astray."""
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in unwanted}


def run(command: list[str], what: str) -> None:
    if subprocess.run(command, env=environment(), check=False).returncode != 0:
        raise Stop(f"could not {what}: see above; `make` again goes on where it stopped")


def say(text: str) -> None:
    sys.stderr.write("darkroom: {}\n".format(text))  # noqa: UP032
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
