"""The golden set, sent to a serving process as any client would: does it answer what the package says it must?"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.deployments import Build
from pipelines.core.errors import DeploymentFailed
from pipelines.core.inference import changed_answers
from pipelines.core.model_package import ModelPackage

TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Proved:
    """What the golden set showed."""

    num_images: int
    max_logit_difference: float
    """Between probabilities' logarithms, times the temperature: what of the logits can be seen through HTTP."""


def prove(port: int, package: ModelPackage, build: Build, key: str) -> Proved:
    """Classify every golden image on 127.0.0.1:port, as whoever has the key.

    Raises DeploymentFailed where the process serves another build, naming the first image whose answer is wrong.
    """
    client = _Client(port, key)
    try:
        served = client.get(f"/v1/models/{package.name}")
        expected = {
            "model_name": build.model,
            "model_version": str(build.version),
            "package_digest": build.package_digest,
            "variant": package.variant,
        }
        for key, value in expected.items():
            if served.get(key) != value:
                raise DeploymentFailed(f"the process serves {key} {served.get(key)}, not {value}")
        images = [package.read(image.file) for image in package.golden]
        found = np.stack([client.classify(package, image) for image in images])
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DeploymentFailed(f"the process on port {port} did not answer the golden set: {error!r}") from error
    finally:
        client.close()
    return _judge(package, found, str(served["provider"]))


def _judge(package: ModelPackage, probabilities: NDArray[np.float64], provider: str) -> Proved:
    variant = package.variants[package.variant]
    logits = package.golden_logits(package.variant)
    tolerance = variant.tolerances[provider] * max(1.0, float(np.abs(logits).max()))
    expected = logits.astype(np.float64) / variant.temperature
    expected -= expected.max(axis=1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    # Below 1e-30 a float32 softmax has no digits left to compare.
    floor = np.log(1e-30)
    found = np.log(np.clip(probabilities, 1e-30, None))
    difference = np.abs(found - np.clip(expected, floor, None)).max(axis=1) * variant.temperature
    # The normalizer moves with the logits: twice their tolerance, and float32's own rounding.
    bad = np.flatnonzero(~(difference <= 2 * tolerance + 1e-4 * variant.temperature))
    changed = changed_answers(logits, found.astype(np.float32), tolerance)
    for position in (*bad, *changed):
        raise DeploymentFailed(
            f"golden image {package.golden[position].file}: answered {_top(package, probabilities[position])}, the "
            f"package says {_top(package, np.exp(expected[position]))} (logits off by {difference[position]:.3g}, "
            f"{2 * tolerance:.3g} allowed)"
        )
    return Proved(num_images=len(probabilities), max_logit_difference=float(difference.max()))


def _top(package: ModelPackage, probabilities: NDArray[np.float64]) -> str:
    label = int(probabilities.argmax())
    return f"{package.class_names[label]} at {probabilities[label]:.4f}"


class _Client:
    """One keep-alive connection."""

    def __init__(self, port: int, key: str) -> None:
        self._headers = {"X-Request-ID": "golden-set", "Authorization": f"Bearer {key}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def get(self, path: str) -> dict[str, Any]:
        return self._answer("GET", path, None)

    def classify(self, package: ModelPackage, image: bytes) -> NDArray[np.float64]:
        """Probabilities float64 [num classes] of one image."""
        num_classes = len(package.class_names)
        answer = self._answer("POST", f"/v1/models/{package.name}/classify?top_k={num_classes}", image)
        probabilities = np.zeros(num_classes)
        for one in answer["predictions"]:
            probabilities[one["label"]] = one["probability"]
        return probabilities

    def _answer(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        self._connection.request(method, path, body, self._headers)
        response = self._connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise DeploymentFailed(f"{method} {path}: {response.status} {data[:500].decode(errors='replace')}")
        return dict(json.loads(data))

    def close(self) -> None:
        self._connection.close()
