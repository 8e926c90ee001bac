"""Which path goes to whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.adapters.gateway.config.clusters import SIMILAR, grpc_cluster, health_cluster
from pipelines.adapters.gateway.config.parts import REQUEST_TIMEOUT_S, ROUTES_NAME, TYPES, Resource
from pipelines.core.access import DEFAULT_HEADER, DEPLOYED_HEADER
from pipelines.core.limits import BodyLimits

MODEL_HEADER, VERSION_HEADER = "x-darkroom-model", "x-darkroom-version"
"""Set by `model_of_call.lua`."""

_OIP_GRPC = "/inference.GRPCInferenceService/"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A deployment's share of its model's requests."""

    cluster: str
    version: str
    weight: int


def routes(
    models: Mapping[str, Sequence[Backend]], default_model: str, limits: BodyLimits, *, similar: bool = False
) -> Resource:
    """Routes of every model, of the plain paths to the default one, and problems for everything else.

    `similar`: whether there is a process that finds similar images.
    """
    default = models.get(default_model, ())
    nothing = "the default model is not deployed yet"
    too_long = f"the body is larger than {limits.max_body_bytes} bytes"
    served = [route for model, backends in sorted(models.items()) for route in _routes_of(model, backends, limits)]
    return {
        "@type": f"{TYPES}.config.route.v3.RouteConfiguration",
        "name": ROUTES_NAME,
        "virtual_hosts": [
            {
                "name": "darkroom",
                "domains": ["*"],
                # For machines behind the gateway; a client learns nothing of how the house is built.
                "response_headers_to_remove": ["x-envoy-upstream-healthchecked-cluster"],
                "routes": [
                    *_batch_routes(models, default, limits.max_batch_bytes),
                    _problem(_longer({"prefix": "/"}, limits.max_body_bytes), 413, too_long),
                    _index(models, default_model),
                    *_similar_routes(similar),
                    *served,
                    *_default_routes(default, nothing, limits),
                    *(
                        # Anybody may read this, and so it names none.
                        _problem(
                            {"prefix": prefix}, 404, "no such model; GET / with a key lists those that are deployed"
                        )
                        if models
                        else _problem({"prefix": prefix}, 503, "nothing is deployed yet")
                        for prefix in ("/v1/models/", "/v2/models/")
                    ),
                    _problem({"prefix": "/"}, 404, "no such path; GET / with a key lists what there is"),
                ],
            }
        ],
    }


def _routes_of(model: str, backends: Sequence[Backend], limits: BodyLimits) -> list[Resource]:
    """Every path of one model."""
    base, oip = f"/v1/models/{model}", f"/v2/models/{model}"
    # A version by its name goes to its own processes, whatever their share of the requests without one.
    by_version = {
        version: [replace(backend, weight=1) for backend in backends if backend.version == version]
        for version in sorted({backend.version for backend in backends})
    }
    named = [
        route
        for version, own in by_version.items()
        for route in (
            _to_grpc(own, {"prefix": _OIP_GRPC}, limits, model, version),
            _to(own, {"path_separated_prefix": f"{oip}/versions/{version}"}),
        )
    ]
    return [
        *named,
        _to_grpc(backends, {"prefix": _OIP_GRPC}, limits, model),
        *(_to(backends, {"path": base + probe}, rewrite=probe) for probe in ("/livez", "/readyz", "/metrics")),
        _to_stream(backends, {"path": f"{base}/stream"}),
        _to(backends, {"path_separated_prefix": base}),
        _to(backends, {"path_separated_prefix": oip}),
    ]


def _similar_routes(there: bool) -> list[Resource]:
    """One process for all models, deployed or not: it knows which there are. Before the models' own paths."""
    search: tuple[Resource, ...] = (
        {"path": "/v1/similar"},
        {"safe_regex": {"google_re2": {}, "regex": "/v1/models/[^/]+/similar"}},
    )
    if not there:
        return [_problem(match, 503, "this platform runs without the search for similar images") for match in search]
    process = [Backend(cluster=SIMILAR, version="", weight=1)]
    return [
        *(_to(process, match) for match in search),
        _to(process, {"path": "/v1/similar/openapi.json"}),
        *(_to(process, {"path": f"/v1/similar{probe}"}, rewrite=probe) for probe in ("/livez", "/readyz", "/metrics")),
    ]


def _batch_routes(
    models: Mapping[str, Sequence[Backend]], default: Sequence[Backend], max_bytes: int
) -> list[Resource]:
    """Many images in a request: they pass while they arrive, and are answered meanwhile."""
    paths = {f"/v1/models/{model}/classify/batch": backends for model, backends in sorted(models.items())}
    if default:
        paths["/v1/classify/batch"] = default
    found = []
    for path, backends in paths.items():
        too_long = f"the body is larger than {max_bytes} bytes; send several requests"
        found.append(_problem(_longer({"path": path}, max_bytes), 413, too_long))
        route = _to(backends, {"path": path})
        # What a process has begun to read is not sent again, and lines may come for minutes.
        route["route"]["retry_policy"]["retry_on"] = "connect-failure,refused-stream"
        route["route"]["timeout"] = "0s"
        found.append(route)
    return found


def _default_routes(backends: Sequence[Backend], nothing: str, limits: BodyLimits) -> list[Resource]:
    """Paths that name no model. What a call by gRPC names and is not deployed is here too: any process says so."""
    calls = (_OIP_GRPC, "/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
    paths = (
        *("/v1/classify", "/v1/embed", "/v1/openapi.json", "/livez", "/readyz", "/metrics"),
        *("/v2", "/v2/health/live", "/v2/health/ready"),
    )
    if not backends:
        return [
            *(_problem({"prefix": call}, 503, nothing) for call in calls),
            *(_problem({"path": path}, 503, nothing) for path in (*paths, "/v1/classify/batch", "/v1/stream")),
        ]
    return [
        *(_to_grpc(backends, {"prefix": call}, limits) for call in calls),
        _to_stream(backends, {"path": "/v1/stream"}),
        *(_to(backends, {"path": path}) for path in paths),
    ]


def _to(
    backends: Sequence[Backend], match: Resource, rewrite: str | None = None, name_of: Callable[[str], str] = str
) -> Resource:
    action: Resource = {
        "weighted_clusters": {
            "clusters": [
                {"name": name_of(backend.cluster), "weight": backend.weight}
                for backend in sorted(backends, key=lambda backend: backend.cluster)
            ]
        },
        "timeout": f"{REQUEST_TIMEOUT_S}s",
        # To classify is to read: doing it again on another process harms nobody.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset",
            "num_retries": 3,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": f"{TYPES}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
            "host_selection_retry_max_attempts": "3",
            "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"},
        },
    }
    if rewrite is not None:
        action["prefix_rewrite"] = rewrite
    return {"match": match, "route": action}


def _to_grpc(
    backends: Sequence[Backend], match: Resource, limits: BodyLimits, model: str = "", version: str = ""
) -> Resource:
    """Calls by gRPC, of one model or version where given: the filter `model_of_call` has put them into headers."""
    named = {MODEL_HEADER: model, VERSION_HEADER: version}
    headers = [{"name": name, "string_match": {"exact": value}} for name, value in named.items() if value]
    of_model = match["prefix"] == _OIP_GRPC
    name_of = grpc_cluster if of_model else health_cluster
    found = _to(backends, {**match, "grpc": {}, **({"headers": headers} if headers else {})}, name_of=name_of)
    if of_model:
        # The message is kept until its model's name is read. Beyond this it is refused.
        found["request_body_buffer_limit"] = str(limits.max_message_bytes)
    else:  # streams, that last
        found["route"]["timeout"] = "0s"
    return found


def _to_stream(backends: Sequence[Backend], match: Resource) -> Resource:
    """WebSockets: nothing is waited for, nothing tried again."""
    found = _to(backends, {**match, "headers": [{"name": "upgrade", "string_match": {"exact": "websocket"}}]})
    del found["route"]["retry_policy"]
    found["route"] |= {"timeout": "0s", "upgrade_configs": [{"upgrade_type": "websocket", "enabled": True}]}
    return found


def _problem(match: Resource, status: int, detail: str) -> Resource:
    return {"match": match, "direct_response": {"status": status, "body": {"inline_string": detail}}}


def _longer(match: Resource, max_bytes: int) -> Resource:
    """Requests with a larger body: refused by their header, before a byte is read."""
    beyond = {"start": str(max_bytes + 1), "end": str(2**63 - 1)}
    return {**match, "headers": [{"name": "content-length", "range_match": beyond}]}


def _index(models: Mapping[str, Sequence[Backend]], default_model: str) -> Resource:
    """The list of models. A process gives it, which knows keys; the names it has from here."""
    if not models:
        return _problem({"path": "/"}, 503, "nothing is deployed yet")
    found = _to(models.get(default_model) or models[min(models)], {"path": "/"})
    told = {
        DEPLOYED_HEADER: ",".join(sorted(models)),
        DEFAULT_HEADER: default_model if default_model in models else "-",
    }
    found["request_headers_to_add"] = [
        {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for name, value in told.items()
    ]
    return found
