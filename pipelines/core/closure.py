"""The identity of code: the source of a module's import closure and the distributions it imports.

Read statically, so that imports inside functions count as well and nothing heavy is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGES = ("pipelines", "bentos", "feature_repo")


def closure(roots: Iterable[str], repository: Path) -> tuple[dict[str, Path], set[str]]:
    """Source files of all modules that `roots` import, directly or not, and the top-level names of foreign imports."""
    modules: dict[str, Path] = {}
    foreign: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _source(name, repository)
        if path is None or name in modules:
            continue
        modules[name] = path
        for imported in _imports(path):
            if imported.split(".")[0] in PACKAGES:
                waiting.append(imported)
            elif imported.split(".")[0] not in sys.stdlib_module_names:
                foreign.add(imported.split(".")[0])
    return modules, foreign


def code_digest(roots: Iterable[str], repository: Path) -> str:
    """SHA-256 over the closure's sources and the versions of the distributions it imports."""
    modules, foreign = closure(roots, repository)
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(f"{name}\0".encode() + hashlib.sha256(modules[name].read_bytes()).digest())
    for name, version in sorted(versions(foreign).items()):
        digest.update(f"{name}=={version}\0".encode())
    return digest.hexdigest()


# Import names that differ from the distribution's; looking all 387 up in the metadata would take half a second a step.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "great_expectations": "great-expectations",
    "onnxruntime": "onnxruntime-gpu",
    "psycopg": "psycopg",
    "yaml": "pyyaml",
    "bentoml": "bentoml",
    "google": "protobuf",
    "sklearn": "scikit-learn",
    "grpc": "grpcio",
    "opentelemetry": "opentelemetry-api",
    "prometheus_client": "prometheus-client",
    "_bentoml_sdk": "bentoml",
    "_bentoml_impl": "bentoml",
}


def versions(imports: Iterable[str]) -> dict[str, str]:
    """Installed version by distribution name; `absent` where a lazily imported one is not installed."""
    found: dict[str, str] = {}
    for name in imports:
        distribution = _DISTRIBUTIONS.get(name, name)
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[distribution] = "absent"
    return found


def _source(name: str, repository: Path) -> Path | None:
    base = repository / name.replace(".", "/")
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(_imported_names(ast.parse(path.read_bytes())))


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
