"""Many images in one request, their answers as lines of JSON (NDJSON) in the same order, while more are arriving.

The body is read as fast as it comes, up to a limit that bounds what a request can hold; images are classified a few at
a time, so that other requests are not kept waiting. One that is no image is a problem in its line and spoils nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.engine import LOOK_AGAIN_S
from bentos.classifier.prediction_log import Asker
from bentos.classifier.rest import named, options, predictions, who
from bentos.kit.access import Caller
from bentos.kit.access.guard import ANYBODY
from bentos.kit.errors import Overloaded, RequestRefused, logged, problem_table
from bentos.kit.front import caller_of
from bentos.kit.uploads import Upload
from bentos.kit.uploads_ahead import Ahead
from pipelines.core.access import Credential
from pipelines.core.errors import ImageError

_AHEAD = 8
"""Images of one request that are worked on or wait for the answers before them."""
_MAX_REQUESTS = 4
"""Such requests in a process at once: each may hold as many bytes as its limit."""
_MAX_OF_ONE = 2
"""Of one credential. One request already keeps all cores busy; the second arrives meanwhile."""


class Places:
    """Of batch requests in this process, by credential."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def taken(self, credential: Credential) -> Iterator[None]:
        """One of them, while the block lasts. Raises Overloaded: nobody waits for one, as waiting takes memory too."""
        if self._taken.total() >= _MAX_REQUESTS:
            raise Overloaded(_MAX_REQUESTS, what="batch requests")
        # Without authentication all are one credential, and may be many clients.
        if credential.id != ANYBODY.id and self._taken[credential.id] >= _MAX_OF_ONE:
            raise Overloaded(_MAX_OF_ONE, what="batch requests of this credential")
        self._taken[credential.id] += 1
        try:
            yield
        finally:
            self._taken[credential.id] -= 1
            if not self._taken[credential.id]:
                del self._taken[credential.id]


PLACES = Places()


async def classify_batch(request: Request) -> Response:
    """POST the files of a multipart form, or a tar; a line of JSON comes back for each."""
    dataplane, caller = named(request), caller_of(request)
    top_k, threshold = options(request.query_params)
    settings = dataplane.settings
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(PLACES.taken(caller.credential))
        ahead = await stack.enter_async_context(
            Ahead(request, max_file_bytes=settings.max_body_bytes, max_bytes=settings.max_batch_bytes)
        )
        # The first file decides whether this is a batch at all: a problem of its own still has a status of its own.
        first = await ahead.arrived.get()
        if first is None:
            raise RequestRefused(400, "bad_batch", "no file in the form or tar; curl: -F image=@A -F image=@B")
        if isinstance(first, Exception):
            raise first
        return _Lines(_Batch(dataplane, caller, top_k, threshold), first, ahead, stack.pop_all())


class _Batch:
    """How one request's images are answered."""

    def __init__(self, dataplane: Dataplane, caller: Caller, top_k: int | None, threshold: float) -> None:
        self._dataplane, self._caller = dataplane, caller
        self._top_k, self._threshold = top_k, threshold

    async def answer(self, upload: Upload | Exception, index: int) -> bytes:
        """The line of one file; or of what ended the body before its end, where the answer has already begun."""
        line: dict[str, Any] = {"index": index, "name": None if isinstance(upload, Exception) else upload.name}
        try:
            if isinstance(upload, Exception):
                raise upload
            if upload.data is None:
                limit = self._dataplane.settings.max_body_bytes
                raise ImageError("too_many_bytes", f"the file is larger than {limit:,} bytes")
            await self._caller.charge(1 if index else 0)
            found = await self._classified(upload, upload.data, index)
            line |= {**who(found.identity, self._caller.request_id), "predictions": predictions(found)}
        except Exception as error:
            line |= problem_table(logged(error, self._caller.request_id), self._caller.request_id)
        finally:
            if isinstance(upload, Upload):
                upload.drop()
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    async def _classified(self, upload: Upload, image: bytes, index: int) -> Any:
        """A batch has time: where others wait, it does too, unless the room that it waits in was needed."""
        asker = Asker(self._caller.credential.id, self._caller.request_id, index)
        while True:
            upload.share.check()
            try:
                with upload.counted_elsewhere():  # the dataplane counts what it works on
                    return await self._dataplane.classify(image, self._top_k, self._threshold, asker=asker)
            except Overloaded:
                # Where bytes are what is short there is room at once, and without a pause nobody would give any back.
                await asyncio.sleep(LOOK_AGAIN_S)
                await self._dataplane.engine.room()


class _Lines(Response):
    """Reads the body and writes the lines at the same time, which Starlette's streaming response does not."""

    media_type = "application/x-ndjson"

    def __init__(self, batch: _Batch, first: Upload, ahead: Ahead, held: contextlib.AsyncExitStack) -> None:
        """`held`: what is given back when the answer ends."""
        super().__init__()
        del self.headers["content-length"]
        self._batch, self._first, self._ahead, self._held = batch, first, ahead, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        async with self._held:
            answering = asyncio.create_task(self._answer(send))
            try:
                await asyncio.wait((answering, self._ahead.gone), return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    answering.result()
            finally:
                answering.cancel()
                await asyncio.wait((answering,))

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._answers(self._ahead.arrived)) as answers:
            async for line in answers:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answers(self, arrived: asyncio.Queue[Upload | Exception | None]) -> AsyncGenerator[bytes, None]:
        """Lines in order, of `_AHEAD` images at a time."""
        tasks = deque([asyncio.create_task(self._batch.answer(self._first, 0))])
        index, ended = 1, False
        try:
            while tasks or not ended:
                while not ended and len(tasks) < _AHEAD and not (tasks and arrived.empty()):
                    upload = await arrived.get()
                    if upload is None:
                        ended = True
                    else:
                        tasks.append(asyncio.create_task(self._batch.answer(upload, index)))
                        index += 1
                if tasks:
                    yield await tasks[0]
                    tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
