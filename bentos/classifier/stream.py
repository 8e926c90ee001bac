"""A WebSocket that classifies: one encoded image a binary frame, one JSON text back for each, in order.

A few images of a connection are worked on at once; a client that sends faster than that, or does not read its answers,
is no longer read from, and TCP holds it back.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, cast

from starlette.websockets import WebSocket, WebSocketDisconnect

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.prediction_log import Asker
from bentos.classifier.rest import options, predictions, who
from bentos.kit.access import Caller
from bentos.kit.errors import RequestRefused, logged, problem_of, problem_table
from bentos.kit.front import caller_of
from bentos.kit.telemetry import CANCELLED, STREAMS, count
from bentos.kit.tracing import begin_part

ROUTE = "stream"
_AHEAD = 4
"""Images of one connection that are worked on or wait for the answers before them."""
_UNSUPPORTED, _TOO_BIG, _ENDING, _RESTART = 1003, 1009, 1001, 1012
_OURS = 4000
"""Plus the status that HTTP would have: codes from here on are for applications."""


async def stream(socket: WebSocket) -> None:
    """Serve one connection until either side ends it."""
    dataplane = cast("Dataplane | None", socket.app.state.dataplane)
    caller = caller_of(socket)
    await socket.accept(headers=[(b"x-request-id", caller.request_id.encode())])
    try:
        if dataplane is None:
            await socket.close(_ENDING, "the process is ending")
            return
        if "name" in socket.path_params:
            dataplane.check_name(socket.path_params["name"])
        top_k, threshold = options(socket.query_params)
    except Exception as error:
        problem = problem_of(error)
        await socket.close(_OURS + problem.status, problem.reason)
        return
    with STREAMS.track_inprogress():
        await serve(socket, dataplane, caller, top_k, threshold)


async def serve(socket: WebSocket, dataplane: Dataplane, caller: Caller, top_k: int | None, threshold: float) -> None:
    """Answer the frames of an accepted connection until either side ends it."""
    answers: asyncio.Queue[asyncio.Task[dict[str, Any]] | None] = asyncio.Queue(_AHEAD)
    writer = asyncio.create_task(_write(socket, answers))
    number = 0
    unfit: _Unfit | None = None
    try:
        while True:
            try:
                image = await _frame(socket, dataplane.settings.max_body_bytes)
                if image is None:
                    break
                await caller.check()
            except RequestRefused as error:
                unfit = _Unfit(_OURS + error.status, error.reason)
                break
            except _Unfit as error:
                unfit = error
                break
            await answers.put(asyncio.create_task(_classify(dataplane, caller, image, number, top_k, threshold)))
            number += 1
        await answers.put(None)
        await writer
        if unfit is not None:  # only now: what came before it has its answers
            await socket.close(unfit.code, unfit.reason)
    except (WebSocketDisconnect, RuntimeError):
        pass  # nobody is left to answer
    finally:
        writer.cancel()
        while not answers.empty():
            if task := answers.get_nowait():
                task.cancel()


class _Unfit(Exception):
    """A frame that ends the stream."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


async def _frame(socket: WebSocket, max_bytes: int) -> bytes | None:
    """The next image; None where the stream is over. Raises _Unfit."""
    message = await socket.receive()
    if message["type"] != "websocket.receive":
        if message.get("code") == _RESTART:
            raise _Unfit(_RESTART, "the process is ending; connect again")
        return None
    data = message.get("bytes")
    if data is None:
        raise _Unfit(_UNSUPPORTED, "one image a binary frame")
    if len(data) > max_bytes:
        raise _Unfit(_TOO_BIG, f"a frame is larger than {max_bytes:,} bytes")
    return bytes(data)


async def _write(socket: WebSocket, answers: asyncio.Queue[asyncio.Task[dict[str, Any]] | None]) -> None:
    """Send answers in their order. Goes on taking them when the client has gone: the reader must not wait for a place
    for ever.
    """
    gone = False
    while task := await answers.get():
        answer = await task
        if not gone:
            try:
                await socket.send_text(json.dumps(answer, separators=(",", ":")))
            except (WebSocketDisconnect, RuntimeError, OSError):
                gone = True


async def _classify(
    dataplane: Dataplane, caller: Caller, image: bytes, number: int, top_k: int | None, threshold: float
) -> dict[str, Any]:
    started, request_id = time.perf_counter(), f"{caller.request_id}/{number}"
    begin_part("frame", started, request_id=request_id)
    reason, status = "cancelled", CANCELLED
    try:
        await caller.charge(1 if number else 0)
        answer = await dataplane.classify(image, top_k, threshold, asker=Asker(caller.credential.id, request_id))
        reason, status = "none", 200
        return {"index": number, **who(answer.identity, request_id), "predictions": predictions(answer)}
    except Exception as error:
        problem = logged(error, request_id)
        reason, status = problem.reason, problem.status
        return {"index": number, **problem_table(problem, request_id)}
    finally:
        count(ROUTE, status, reason, time.perf_counter() - started, request_id)
