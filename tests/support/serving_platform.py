"""A platform of only what serves: reconciler and Envoy, over a PostgreSQL that runs already."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
import psycopg
from example_packages import COLOURS, SIDE, coloured, onnx_model, write_package

from pipelines.adapters import database
from pipelines.adapters.gateway import Gateway, envoy_argv, write_initial
from pipelines.adapters.packaging import BentoArchives, build_bento
from pipelines.core import model_package
from pipelines.core.deployments import Build, Deployment, ServingSpec
from pipelines.core.storage import open_storage
from pipelines.local import access, certificates, secrets
from pipelines.local.deployments import Reconciler
from pipelines.local.process import ManagedProcess, environment
from pipelines.settings import PLATFORM_KEY, Settings

VARIABLE = "DARKROOM_DATABASE_URL_DARKROOM"
SPEC = ServingSpec(drain_timeout_s=5)
_PLATFORM_KEY = "the key of every platform that a test starts"
AUTHORIZED = {"Authorization": f"Bearer {_PLATFORM_KEY}"}
"""`ask` and `Load` send it."""
ACTOR = "ada@lab"


def in_own_schema(settings: Settings) -> str:
    """URL of Darkroom's database with an empty schema of its own: rows of other tests are out of sight."""
    url, name = settings.database_url("darkroom"), f"test_{uuid.uuid4().hex}"
    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    return f"{url}?options=-csearch_path%3D{name}"


def make_build(settings: Settings, folder: Path, *, model: str, version: int, spoil: str = "") -> Build:
    """Package, bento and archive of a version; each version answers with its own temperature.

    `spoil="answers"` makes a package whose graph is not what its golden logits say; `spoil="file"` damages the bento.
    """
    package = write_package(folder / f"package-{version}", name=model, temperature=1 + version / 10)
    if spoil == "answers":
        wrong = onnx_model(10 * np.roll(np.eye(3, dtype=np.float32), 1, axis=1), 1 + version / 10)
        (package.folder / "model.onnx").write_bytes(wrong)
        package = model_package.write(package.folder, package.description, package.preprocessing)
    bento = build_bento(package, version=version, out=folder / f"bento-{version}")
    if spoil == "file":
        with (bento / "src" / "model" / "model.onnx").open("ab") as file:
            file.write(b"x")
    archives = BentoArchives(open_storage(settings.store_uri), settings.home / "cache")
    return archives.keep(bento, model=model, version=version, package_digest=package.digest)


@contextmanager
def serving(settings: Settings) -> Iterator[Reconciler]:
    """Envoy and a reconciler, until the block ends."""
    url = settings.database_url("darkroom")
    database.migrate(url)
    settings.secrets.mkdir(exist_ok=True)
    (settings.secrets / PLATFORM_KEY).write_text(_PLATFORM_KEY)
    secrets.ensure(settings)
    access.prepare(settings)
    certificates.ensure(settings)
    write_initial(settings)
    envoy = ManagedProcess("envoy", envoy_argv(settings), environment(settings), settings.home / "logs" / "envoy.log")
    envoy.start()
    try:
        wait_until(Gateway(settings).ready)
        with reconciling(settings) as reconciler:
            yield reconciler
    finally:
        envoy.stop(5)


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def reconciling(settings: Settings) -> Iterator[Reconciler]:
    reconciler, stop = Reconciler(settings), threading.Event()
    thread = threading.Thread(target=reconciler.run, args=(stop,))
    thread.start()
    try:
        yield reconciler
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def deploy(settings: Settings, build: Build, spec: ServingSpec = SPEC, kind: str = "deploy") -> Deployment:
    url = settings.database_url("darkroom")
    return database.wait_for(url, database.request_deployment(url, build, spec, kind=kind, actor=ACTOR).id, 60)


def ask(port: int, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, dict]:  # type: ignore[type-arg]
    """Status and JSON of one request on a connection of its own."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST" if body is not None else "GET", path, body, {**AUTHORIZED, **(headers or {})})
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data.strip() else {}
    finally:
        connection.close()


@dataclass
class Load:
    """A constant load of requests; counts what came back, and from which version."""

    port: int
    path: str
    side: int = SIDE
    """Of the images; with 1000 they are larger than what the gateway collects."""
    failures: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    num_answers: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, threads: int = 2) -> Iterator[Load]:
        workers = [threading.Thread(target=self._work, args=(seed,)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield self
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()

    def _work(self, seed: int) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        expected = COLOURS[seed % 3]
        image = coloured(expected, seed, self.side)
        while not self._stop.is_set():
            try:
                connection.request("POST", self.path, image, AUTHORIZED)
                response = connection.getresponse()
                body = response.read()
                answer = json.loads(body) if response.status == 200 else {}
                if response.status != 200 or answer["predictions"][0]["class_name"] != expected:
                    self.failures.append(f"{response.status} {body[:200]!r}")
                else:
                    self.versions[answer["model_version"]] = self.versions.get(answer["model_version"], 0) + 1
            except (OSError, HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            self.num_answers += 1
            time.sleep(0.002)


def main() -> None:
    """A process of its own that reconciles until it is killed."""
    from pipelines import settings as settings_module

    Reconciler(settings_module.load()).run(threading.Event())


if __name__ == "__main__":
    main()
