"""Darkroom's own PostgreSQL database: deployments, the desired state of each model, and the audit log.

Every function opens what it needs from a URL and leaves nothing open.
"""

from pipelines.adapters.database.api_keys import (
    ApiKey,
    Grant,
    allow_serving,
    api_keys,
    create_key,
    ensure_key,
    revoke_key,
)
from pipelines.adapters.database.chain import links, open_guards
from pipelines.adapters.database.connection import connect, migrate
from pipelines.adapters.database.deployments import (
    Watch,
    current,
    deployments,
    desired_state,
    get,
    has_served,
    mark_failed,
    mark_live,
    mark_starting,
    previous,
    request_deployment,
    wait_for,
)
from pipelines.adapters.database.events import Event
from pipelines.adapters.database.history import history, record, record_change, record_once, withdrawn

__all__ = [
    "ApiKey",
    "Event",
    "Grant",
    "Watch",
    "allow_serving",
    "api_keys",
    "connect",
    "create_key",
    "current",
    "deployments",
    "desired_state",
    "ensure_key",
    "get",
    "has_served",
    "history",
    "links",
    "mark_failed",
    "mark_live",
    "mark_starting",
    "migrate",
    "open_guards",
    "previous",
    "record",
    "record_change",
    "record_once",
    "request_deployment",
    "revoke_key",
    "wait_for",
    "withdrawn",
]
