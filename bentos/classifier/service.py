"""The classifier as a BentoML service. Importing it loads no model and binds no port."""

from __future__ import annotations

import logging
from pathlib import Path

import bentoml

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.http import Parts, application, table
from bentos.kit import settings as service_settings
from bentos.kit.access import make_guard
from bentos.kit.front import Front
from bentos.kit.life import LEAN
from bentos.kit.shared.server import RedisServer
from bentos.kit.telemetry import log_json

SOURCE = Path(__file__).resolve().parents[2]
"""The bento's src; the model package lies in its folder `model`."""


def _load() -> Parts:
    log_json()
    try:
        settings = service_settings.load(SOURCE / "model")
        redis = RedisServer(settings.redis.url_file) if settings.redis else None
        guard = make_guard(settings.access, redis, scope=settings.cluster)
        return Parts(dataplane=Dataplane(settings, redis), guard=guard, redis=redis)
    except Exception as error:
        # One line that says why, for whoever started this process; the server logs the traceback.
        logging.getLogger("darkroom.classifier").error("cannot serve", extra={"reason": str(error)})
        raise


app = application(_load)


@bentoml.asgi_app(app)
class Classifier:
    """Classes of one image, by HTTP."""


ClassifierService = bentoml.service(Classifier, name="classifier", **LEAN)
ClassifierService.add_asgi_middleware(
    Front, table=table(), served=app, cluster=service_settings.load(SOURCE / "model").cluster
)
