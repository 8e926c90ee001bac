"""BentoML's builder: a registered version becomes a self-contained folder, and the folder one archive.

The build runs in a process and a stage folder of its own, so that nothing of this machine (paths, package indexes,
other models) finds its way into the bento, and it needs no network: the requirements are those that are installed here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.core.archives import unpack
from pipelines.core.closure import closure
from pipelines.core.deployments import Build
from pipelines.core.errors import IntegrityError, PlatformError
from pipelines.core.model_package import ModelPackage
from pipelines.core.results import sha256_file
from pipelines.core.storage import Storage
from pipelines.settings import REPOSITORY

SERVICE = "bentos.classifier.service:ClassifierService"
ROOTS = ("bentos.classifier.service", "bentos.kit.worker", "bentos.kit.frames", "bentos.kit.heads")
"""What a serving process runs; the bento holds these modules and all of ours that they import, and no others, so that
a change elsewhere leaves it as it is."""
BUILD_TIMEOUT_S = 120

# What the serving code imports itself, in the installed versions. BentoML puts its own pin beside them.
_COMMON = (
    "asyncpg",
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "joserfc",
    "numpy",
    "opentelemetry-exporter-otlp-proto-http",
    "pillow",
    "prometheus-client",
    "protobuf",
    "python-multipart",
    "starlette",
    "uvicorn",
    "websockets",
)
REQUIREMENTS = {
    "requirements.txt": {"onnxruntime": "onnxruntime-gpu"},
    "requirements-cuda.txt": {"onnxruntime-gpu[cuda,cudnn]": "onnxruntime-gpu"},
}
"""The runtime of each list and the installed distribution that has its version: both are builds of one source, and a
machine without a GPU is spared 300 MB."""


def build_bento(package: ModelPackage, *, version: int, out: Path) -> Path:
    """Make `out`, the bento folder of a registered version. Raises PlatformError with the builder's words."""
    with tempfile.TemporaryDirectory(prefix="bento-") as scratch:
        stage, store = Path(scratch) / "stage", Path(scratch) / "store"
        _fill(stage, package, version)
        _run_builder(stage, store)
        (built,) = (path.parent for path in (store / "bentos").glob("*/*/bento.yaml"))
        _settle(built)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(built, out)
    return out


def requirement_lists() -> dict[str, str]:
    """Content of each requirements file: short, pinned, without training or pipeline packages."""
    version = importlib.metadata.version
    common = {name: version(name) for name in _COMMON}
    return {
        file: "".join(
            f"{name}=={found}\n"
            for name, found in sorted({**common, **{name: version(source) for name, source in runtime.items()}}.items())
        )
        for file, runtime in REQUIREMENTS.items()
    }


def _fill(stage: Path, package: ModelPackage, version: int) -> None:
    for source in _sources():
        target = stage / source.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for name in ("package.json", *package.files):
        (stage / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.folder / name, stage / "model" / name)
    identity = {"model": package.name, "version": version, "package_digest": package.digest}
    (stage / "identity.json").write_text(json.dumps(identity, indent=1))
    for file, text in requirement_lists().items():
        (stage / file).write_text(text)
    # JSON is YAML.
    bentofile = {
        "service": SERVICE,
        "name": package.name,
        "description": f"{package.name} version {version}: POST the bytes of one image to /v1/classify.\n",
        "labels": {"model": package.name, "version": str(version), "package_digest": package.digest},
        "include": ["**"],
        "python": {"requirements_txt": "requirements.txt", "lock_packages": False},
    }
    (stage / "bentofile.yaml").write_text(json.dumps(bentofile))


def _sources() -> list[Path]:
    """Files of the serving code, the packages on the way to them included."""
    modules, _ = closure(ROOTS, REPOSITORY)
    files = set(modules.values())
    for path in modules.values():
        for parent in path.relative_to(REPOSITORY).parents:
            if (REPOSITORY / parent / "__init__.py").is_file():
                files.add(REPOSITORY / parent / "__init__.py")
    return sorted(files)


def _run_builder(stage: Path, store: Path) -> None:
    version = json.loads((stage / "identity.json").read_text())["version"]
    # None of our environment: pip's or uv's settings would be written into the bento.
    environment = {
        **{name: os.environ[name] for name in ("PATH",) if name in os.environ},
        "HOME": str(store),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(stage),
        "BENTOML_HOME": str(store),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    store.mkdir(parents=True)
    argv = [sys.executable, "-m", "bentoml", "build", "--output", "tag", "--version", f"v{version}", str(stage)]
    try:
        done = subprocess.run(
            argv, cwd=stage, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PlatformError(f"bentoml build did not end within {BUILD_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise PlatformError(f"bentoml build failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def _settle(bento: Path) -> None:
    """Take out what differs from build to build, so that the same content gives the same archive."""
    for folder in bento.rglob("__pycache__"):
        shutil.rmtree(folder)
    # BentoML's pages describe its own kind of routes, of which we have none, and point to its website.
    shutil.rmtree(bento / "apis", ignore_errors=True)
    (bento / "src" / "bentofile.yaml").unlink(missing_ok=True)
    path = bento / "bento.yaml"
    path.write_text(re.sub(r"(?m)^creation_time:.*$", "creation_time: '2000-01-01T00:00:00+00:00'", path.read_text()))


# --- archives ------------------------------------------------------------------------------------------------------


class BentoArchives:
    """Bentos in the object store, one archive each, by content: they outlive the results that made them."""

    def __init__(self, storage: Storage, cache: Path) -> None:
        self.storage = storage
        self.cache = cache

    def keep(self, bento: Path, *, model: str, version: int, package_digest: str) -> Build:
        """Store a bento folder and return where; the same content is stored once."""
        with _scratch(self.cache) as scratch:
            archive = scratch / "bento.tar"
            _pack(bento, archive)
            digest = sha256_file(archive)
            build = Build(
                model=model,
                version=version,
                package_digest=package_digest,
                bento_digest=digest,
                bento_key=f"bentos/{folder_name(model, version, digest)}.tar",
            )
            self.storage.refresh(build.bento_key)  # gc spares what is in use
            if not self.storage.exists(build.bento_key):
                self.storage.write_file(build.bento_key, archive)
        return build

    def unpack(self, build: Build, folder: Path) -> None:
        """Make `folder` from the archive, whole or not at all. Raises NotFound, IntegrityError."""
        with _scratch(folder.parent) as scratch:
            archive = self.storage.local(build.bento_key, self.cache)
            found = sha256_file(archive)
            if found != build.bento_digest:
                raise IntegrityError(f"{archive}: digest {found} where {build.bento_digest} was deployed")
            unpack(archive, scratch / "bento")
            try:
                (scratch / "bento").rename(folder)
            except OSError:
                if not folder.exists():  # else another was quicker
                    raise


def folder_name(model: str, version: int, bento_digest: str) -> str:
    """Name of a bento's archive in the store and of its folder on a machine."""
    return f"{model}-{version}-{bento_digest[:12]}"


def _pack(folder: Path, archive: Path) -> None:
    """A tar that depends on names and contents only."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = 0
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=plain)


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    folder = parent / f".partial-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
