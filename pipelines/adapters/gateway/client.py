"""What a client of the gateway sees of a model."""

from __future__ import annotations

import http.client
import json
import time

from pipelines.core.deployments import Build
from pipelines.core.errors import PlatformError
from pipelines.settings import Settings


def answers(settings: Settings, build: Build) -> bool:
    """True where the gateway answers for the model with this very version."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.gateway_port, timeout=5)
    try:
        connection.request("GET", f"/v1/models/{build.model}", headers=settings.platform_authorization)
        response = connection.getresponse()
        body = response.read()
        found = json.loads(body) if response.status == 200 else {}
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    expected = (build.package_digest, str(build.version))
    return (found.get("package_digest"), found.get("model_version")) == expected


def wait_until_answers(settings: Settings, build: Build, timeout_s: float) -> None:
    """Raises PlatformError where the gateway does not answer with this version in time."""
    deadline = time.monotonic() + timeout_s
    while not answers(settings, build):
        if time.monotonic() > deadline:
            raise PlatformError(
                f"{build.model} version {build.version} is deployed, but {settings.gateway_url} has not answered with"
                f" it for {timeout_s:g} s; is the platform up (`darkroom status`)?"
            )
        time.sleep(0.1)
