"""Reading one file out of a request, in bounded memory and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from bentos.kit.budget import IN_FLIGHT, Share
from bentos.kit.errors import RequestRefused
from pipelines.core.limits import BODY_TIMEOUT_S

READ_TIMEOUT_S = BODY_TIMEOUT_S + 2.0
"""The gateway's own comes first."""
_MIN_BYTES_PER_S = 32 * 1024
"""Of a body that may take longer: below it stands a client that holds a place on purpose."""


async def read_file(request: Request, max_bytes: int) -> bytes:
    """The raw body, or the one file of a multipart form. Any other Content-Type chooses nothing: content decides.

    Raises RequestRefused for a body that is too large, cut off, or a form without exactly one file.
    """
    body = await read_body(request, max_bytes)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        return await _only_file(request.headers, body)
    return body


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises RequestRefused where it is too large, too slow or cut off, Overloaded where too many others arrive.
    """
    body, share = await read_held(request, max_bytes)
    share.close()
    return body


async def read_held(request: Request, max_bytes: int) -> tuple[bytes, Share]:
    """The same, with its share of all, which is the caller's to close and no longer for others to take."""
    check_declared(request, max_bytes)
    chunks: list[bytes] = []
    size = 0
    deadline = asyncio.timeout(READ_TIMEOUT_S)
    share = IN_FLIGHT.growing(lambda: deadline.reschedule(0))
    try:
        async with deadline:
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large(max_bytes)
                share.grow(len(chunk))
                chunks.append(chunk)
        share.keep()
    except (ClientDisconnect, TimeoutError) as error:
        share.check()
        raise _unfinished(error) from error
    finally:
        if not share.kept:
            share.close()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks), share


async def chunks_of(request: Request, share: Share, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """A body that may take long, as it comes. The share grows with it: who has done with a part makes it smaller.

    Raises RequestRefused where it is too large, too slow or cut off, Overloaded where too many others arrive.
    """
    check_declared(request, max_bytes)
    arriving = aiter(request.stream())
    clock = asyncio.get_running_loop().time
    size, waited_s = 0, 0.0
    while True:
        began = clock()
        try:
            async with asyncio.timeout(READ_TIMEOUT_S + size / _MIN_BYTES_PER_S - waited_s):
                chunk = await anext(arriving, None)
        except (ClientDisconnect, TimeoutError) as error:
            raise _unfinished(error) from error
        if chunk is None:
            return
        waited_s += clock() - began
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
        share.grow(len(chunk))
        yield chunk


def check_declared(request: Request, max_bytes: int) -> None:
    """Raises RequestRefused for a body that says of itself that it is too large, before a byte is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> RequestRefused:
    return RequestRefused(413, "too_many_bytes", f"the body is larger than {max_bytes:,} bytes")


def _unfinished(error: ClientDisconnect | TimeoutError) -> RequestRefused:
    if isinstance(error, ClientDisconnect):
        return RequestRefused(400, "body_cut_off", "the connection ended before the body did")
    return RequestRefused(408, "too_slow", f"the body did not arrive within {READ_TIMEOUT_S:g} s")


async def _only_file(headers: Headers, body: bytes) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        # Never spooled to disk: the body is in memory already, and bounded.
        form = await _InMemory(headers, stream(), max_files=8, max_fields=32).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestRefused(400, "bad_multipart", f"not a readable multipart form: {error}") from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise RequestRefused(
            400, "bad_multipart", f"expected one file in the form, found {len(files)}; curl: -F image=@FILE"
        )
    data = await files[0].read()
    await form.close()
    return data


class _InMemory(MultiPartParser):
    spool_max_size = 2**31
