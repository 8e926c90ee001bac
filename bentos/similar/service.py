"""Search for similar images as a BentoML service. Importing it opens nothing and binds no port.

One process on a machine serves all models, from the code beside it and not from a built bento: it has no model of its
own. `python -m bentos.kit.worker bentos.similar.service:SimilarService --port N` starts it.
"""

from __future__ import annotations

import logging

import bentoml

from bentos.kit import settings as service_settings
from bentos.kit.access import Guard, make_guard
from bentos.kit.front import Front
from bentos.kit.life import LEAN
from bentos.kit.telemetry import log_json
from bentos.similar.dataplane import Dataplane
from bentos.similar.http import application, table


def _load() -> tuple[Dataplane, Guard]:
    log_json()
    try:
        settings = service_settings.load_search()
        return Dataplane(settings), make_guard(settings.access)
    except Exception as error:
        # One line that says why, for whoever started this process; the server logs the traceback.
        logging.getLogger("darkroom.similar").error("cannot serve", extra={"reason": str(error)})
        raise


app = application(_load)


@bentoml.asgi_app(app)
class Similar:
    """Stored images near one image, by HTTP."""


SimilarService = bentoml.service(Similar, name="similar", **LEAN)
SimilarService.add_asgi_middleware(Front, table=table(), served=app, cluster=service_settings.cluster())
