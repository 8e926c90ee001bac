"""Ten held-out images through the gateway: the proof that what was trained is what answers."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipelines.core.datasets import blob_key
from pipelines.core.errors import PlatformError
from pipelines.core.results import StoredResult
from pipelines.core.storage import Storage
from pipelines.settings import Settings

NUM_IMAGES = 10
_READY_S = 15.0


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A test image of the snapshot."""

    image_id: str
    label: str
    format: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the gateway said to one held-out image."""

    image_id: str
    label: str
    predicted: str
    probability: float
    model_version: str
    package_digest: str
    milliseconds: float


def held_out(storage: Storage, snapshot: StoredResult, number: int = NUM_IMAGES) -> list[HeldOut]:
    """Test images, taken from the classes in turn; the same ones every time."""
    import pyarrow.parquet as pq

    columns = ["image_id", "label", "split", "format"]
    table = pq.read_table(snapshot.folder / "manifest.parquet", columns=columns, filters=[("split", "=", "test")])
    by_class: dict[str, list[tuple[str, str]]] = {}
    for row in table.sort_by("image_id").to_pylist():
        by_class.setdefault(row["label"], []).append((row["image_id"], row["format"]))
    longest = max((len(images) for images in by_class.values()), default=0)
    turns = [
        (image, label)
        for turn in range(longest)
        for label, images in sorted(by_class.items())
        for image in images[turn:][:1]
    ]
    return [
        HeldOut(image_id=image_id, label=label, format=form, data=storage.read(blob_key(image_id)))
        for (image_id, form), label in turns[:number]
    ]


def classify(settings: Settings, name: str, images: Sequence[HeldOut]) -> list[Answer]:
    """Ask the gateway about each. Raises PlatformError where it does not answer."""
    url = f"{settings.gateway_url}/v1/models/{name}/classify"
    answers: list[Answer] = []
    with httpx.Client(trust_env=False, timeout=30, headers=settings.platform_authorization) as client:
        for image in images:
            began = time.perf_counter()
            found = _post(client, url, image.data)
            best = found["predictions"][0]
            answers.append(
                Answer(
                    image_id=image.image_id,
                    label=image.label,
                    predicted=best["class_name"],
                    probability=best["probability"],
                    model_version=str(found["model_version"]),
                    package_digest=found["package_digest"],
                    milliseconds=(time.perf_counter() - began) * 1000,
                )
            )
    return answers


def _post(client: httpx.Client, url: str, data: bytes) -> dict[str, Any]:
    """A while of patience: after `up`, what was deployed before is still being started."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            response = client.post(url, content=data, headers={"content-type": "application/octet-stream"})
            if response.status_code == 200:
                found: dict[str, Any] = response.json()
                return found
            said = f"{response.status_code}: {response.text[:300]}"
        except httpx.TransportError as error:
            said = str(error)
        if time.monotonic() > deadline:
            raise PlatformError(f"POST {url}: {said}; see `darkroom status` and `darkroom logs envoy`")
        time.sleep(0.3)


def example_file(settings: Settings, name: str, image: HeldOut) -> Path:
    """A held-out image as a file, for the curl line."""
    path = settings.home / "examples" / f"{name}-{image.image_id[:12]}.{image.format.lower()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(image.data)
    temporary.replace(path)
    return path


def curl_line(settings: Settings, name: str, path: Path) -> str:
    """Works when pasted, whatever characters the home has."""
    url = f"{settings.gateway_url}/v1/models/{name}/classify"
    key = shlex.quote(str(settings.secrets / "first-key"))
    who = f' -H "Authorization: Bearer $(cat {key})"' if settings.auth == "required" else ""
    return f"curl -sS --data-binary {shlex.quote(f'@{path}')}{who} {url}"
