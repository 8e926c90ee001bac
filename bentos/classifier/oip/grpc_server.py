"""The gRPC service of the protocol, with standard health and reflection, in the event loop of the HTTP server."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip import grpc_messages, inference, inference_pb2
from bentos.kit.errors import grpc_status, logged
from bentos.kit.settings import ServiceSettings
from bentos.kit.telemetry import CANCELLED, accepted_request_id, count
from pipelines.core.errors import PlatformError

SERVICE = "inference.GRPCInferenceService"
_SLACK = 64 * 1024
"""Beyond the images' bytes: the message's own words."""

Context = Any
"""grpc.aio.ServicerContext, which has no published types."""


class GrpcServer:
    """Serves from entry to exit; where the settings have no port, there is none."""

    def __init__(self, dataplane: Dataplane, settings: ServiceSettings) -> None:
        self._dataplane = dataplane
        self._settings = settings
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()

    async def __aenter__(self) -> GrpcServer:
        """Raises PlatformError where the port is taken."""
        settings = self._settings
        if not settings.grpc_port:
            return self
        largest = settings.max_body_bytes + _SLACK
        server = grpc.aio.server(
            options=[
                # Else two versions could share a port in silence.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", largest),
                ("grpc.max_send_message_length", largest),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.max_concurrent_streams", settings.max_waiting),
            ]
        )
        server.add_generic_rpc_handlers((_handlers(self._dataplane),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            server.add_insecure_port(f"{settings.grpc_host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise PlatformError(f"gRPC on {settings.grpc_host}:{settings.grpc_port}: {error}") from error
        await server.start()
        for name in ("", SERVICE, self._dataplane.identity.model_name):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take no new calls, finish those in flight."""
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(self._settings.drain_timeout_s)


def _handlers(dataplane: Dataplane) -> grpc.GenericRpcHandler:
    messages = inference_pb2

    async def server_live(_request: Any, _id: str) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def server_ready(_request: Any, _id: str) -> Any:
        return messages.ServerReadyResponse(ready=True)

    async def model_ready(request: Any, _id: str) -> Any:
        dataplane.check_name(request.name, request.version)
        return messages.ModelReadyResponse(ready=True)

    async def server_metadata(_request: Any, _id: str) -> Any:
        return messages.ServerMetadataResponse(
            name=inference.SERVER, version=inference.server_version(), extensions=inference.EXTENSIONS
        )

    async def model_metadata(request: Any, _id: str) -> Any:
        dataplane.check_name(request.name, request.version)
        return messages.ModelMetadataResponse(**inference.metadata(dataplane))

    async def model_infer(request: Any, request_id: str) -> Any:
        answer = await inference.infer(dataplane, grpc_messages.read_request(request), request_id)
        return grpc_messages.write_answer(answer)

    methods = {
        "ServerLive": (server_live, "oip-health"),
        "ServerReady": (server_ready, "oip-health"),
        "ModelReady": (model_ready, "oip-health"),
        "ServerMetadata": (server_metadata, "oip-metadata"),
        "ModelMetadata": (model_metadata, "oip-metadata"),
        "ModelInfer": (model_infer, "oip-infer"),
    }
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            name: grpc.unary_unary_rpc_method_handler(
                _answered(handler, f"{route}-grpc"),
                request_deserializer=getattr(messages, f"{name}Request").FromString,
                response_serializer=getattr(messages, f"{name}Response").SerializeToString,
            )
            for name, (handler, route) in methods.items()
        },
    )


def _answered(handler: Callable[[Any, str], Awaitable[Any]], route: str) -> Callable[[Any, Context], Awaitable[Any]]:
    """The handler with a request id, its errors as gRPC statuses, counts and times."""

    async def handle(request: Any, context: Context) -> Any:
        started = time.perf_counter()
        given = dict(context.invocation_metadata() or ()).get("x-request-id", "")
        request_id = accepted_request_id(str(given).encode())
        context.set_trailing_metadata((("x-request-id", request_id),))
        reason, status = "cancelled", CANCELLED
        try:
            answer = await handler(request, request_id)
            reason, status = "none", 200
            return answer
        except Exception as error:
            problem = logged(error, request_id)
            reason, status = problem.reason, problem.status
            metadata = [("x-request-id", request_id), ("x-darkroom-reason", reason)]
            if problem.retry_after_s is not None:
                metadata.append(("retry-after", str(problem.retry_after_s)))
            await context.abort(grpc_status(problem), problem.detail, tuple(metadata))
        finally:
            count(route, status, reason, time.perf_counter() - started, request_id)

    return handle
