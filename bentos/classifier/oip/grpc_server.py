"""The gRPC service of the protocol, with standard health and reflection, in the event loop of the HTTP server."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import grpc

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip import grpc_messages, grpc_streams, inference, inference_pb2
from bentos.classifier.oip.large_requests import aside
from bentos.kit.access import Guard
from bentos.kit.calls import CALLER, Admission, answered
from bentos.kit.settings import ServiceSettings
from pipelines.core.access import Scope
from pipelines.core.errors import PlatformError

SERVICE = "inference.GRPCInferenceService"
_SLACK = 64 * 1024
"""Beyond the images' bytes: the message's own words."""
_SCOPES = {
    f"/{SERVICE}/ServerLive": Scope.PUBLIC,
    f"/{SERVICE}/ServerReady": Scope.PUBLIC,
    f"/{SERVICE}/ModelInfer": Scope.PREDICT,
    "/grpc.health.v1.Health/Check": Scope.PUBLIC,
    "/grpc.health.v1.Health/Watch": Scope.PUBLIC,
}
"""Every other method asks for the right to read models."""


class GrpcServer:
    """Serves from entry to exit; where the settings have no port, there is none."""

    def __init__(self, dataplane: Dataplane, guard: Guard, settings: ServiceSettings) -> None:
        self._dataplane, self._guard = dataplane, guard
        self._settings = settings
        self._server: grpc.aio.Server | None = None
        self._ending = asyncio.Event()

    async def __aenter__(self) -> GrpcServer:
        """Raises PlatformError where the port is taken."""
        settings = self._settings
        if not settings.grpc_port:
            return self
        largest = settings.max_body_bytes + _SLACK
        server = grpc.aio.server(
            interceptors=[Admission(self._guard, _SCOPES, self._dataplane.identity.model_name)],
            options=[
                # Else two versions could share a port in silence.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", largest),
                ("grpc.max_send_message_length", largest),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.max_concurrent_streams", settings.max_waiting),
            ],
        )
        streams = grpc_streams.handlers(SERVICE, self._dataplane.identity.model_name, self._ending)
        server.add_generic_rpc_handlers((_handlers(self._dataplane), *streams))
        try:
            server.add_insecure_port(f"{settings.grpc_host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise PlatformError(f"gRPC on {settings.grpc_host}:{settings.grpc_port}: {error}") from error
        await server.start()
        self._server = server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take no new calls, finish those in flight, and say so to whoever watches."""
        self._ending.set()
        if self._server is not None:
            await self._server.stop(self._settings.drain_timeout_s)


def _handlers(dataplane: Dataplane) -> grpc.GenericRpcHandler:
    messages = inference_pb2

    async def server_live(_request: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def server_ready(_request: Any) -> Any:
        return messages.ServerReadyResponse(ready=True)

    async def model_ready(request: Any) -> Any:
        dataplane.check_name(request.name, request.version)
        return messages.ModelReadyResponse(ready=True)

    async def server_metadata(_request: Any) -> Any:
        return messages.ServerMetadataResponse(
            name=inference.SERVER, version=inference.server_version(), extensions=inference.EXTENSIONS
        )

    async def model_metadata(request: Any) -> Any:
        dataplane.check_name(request.name, request.version)
        return messages.ModelMetadataResponse(**inference.metadata(dataplane))

    async def model_infer(request: Any) -> Any:
        message = grpc_messages.read_request(request)
        large = grpc_messages.is_large(request)
        ready = await aside(inference.read, dataplane, message) if large else inference.read(dataplane, message)
        answer = await inference.infer(dataplane, ready, CALLER.get())
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
                answered(handler, f"{route}-grpc", getattr(messages, f"{name}Request")),
                response_serializer=getattr(messages, f"{name}Response").SerializeToString,
            )
            for name, (handler, route) in methods.items()
        },
    )
