"""The process that finds similar images: one on a machine, for all models, from the platform's own code."""

from __future__ import annotations

import os
import sys

from pipelines.adapters.gateway.config import SIMILAR
from pipelines.core.cores import num_cores
from pipelines.local import access
from pipelines.local.process import ManagedProcess
from pipelines.local.services import Service
from pipelines.local.serving.environment import serving_environment
from pipelines.local.serving.fleet import CLOSE_S, vouches_for
from pipelines.settings import REPOSITORY, Settings

NAME = "similar"
_SERVICE = "bentos.similar.service:SimilarService"
DRAIN_S = 5
"""Its drain timeout."""


def service(settings: Settings) -> Service:
    """Not started yet. `access.prepare_search` comes first."""
    port = settings.port("similar")
    process = ManagedProcess(
        NAME,
        [
            *(sys.executable, "-m", "bentos.kit.worker", _SERVICE),
            *("--port", str(port), "--drain-timeout", str(DRAIN_S)),
        ],
        environment(settings),
        settings.home / "logs" / "similar.log",
        port=port,
        cwd=REPOSITORY,
    )
    return Service(process=process, ready=lambda: vouches_for(port, SIMILAR), stop_s=DRAIN_S + CLOSE_S)


def environment(settings: Settings) -> dict[str, str]:
    """Where everything is that it reads; the store's credentials where the store asks for some."""
    in_s3 = settings.store_uri.startswith("s3://")
    return {
        **serving_environment(settings, cluster=SIMILAR, sources=REPOSITORY),
        **({name: value for name, value in os.environ.items() if name.startswith("AWS_")} if in_s3 else {}),
        "DARKROOM_STORE": settings.store_uri,
        "DARKROOM_S3_ENDPOINT_URL": settings.s3_endpoint_url or "",
        "DARKROOM_CACHE": str(settings.home / "cache"),
        "DARKROOM_RECIPES": os.pathsep.join(map(str, settings.recipe_folders)),
        "DARKROOM_DEFAULT_MODEL": settings.default_model,
        # Redis is not searched, and its URL, which may hold a password, is nothing for a serving process.
        "DARKROOM_VECTORS_URL_FILE": "" if settings.features_redis else str(access.search_url_file(settings)),
        # Models come first.
        "DARKROOM_CONCURRENCY": str(max(1, num_cores() // 4)),
        **access.environment(settings, 1),
    }
