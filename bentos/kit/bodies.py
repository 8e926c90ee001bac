"""Reading one file out of a request, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from bentos.kit.errors import RequestRefused


async def read_file(request: Request, max_bytes: int) -> bytes:
    """The raw body, or the one file of a multipart form. Any other Content-Type chooses nothing: content decides.

    Raises RequestRefused for a body that is too large, cut off, or a form without exactly one file.
    """
    body = await read_body(request, max_bytes)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        return await _only_file(request.headers, body)
    return body


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises RequestRefused where it is too large or cut off."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise RequestRefused(400, "body_cut_off", "the connection ended before the body did") from error
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int) -> RequestRefused:
    return RequestRefused(413, "too_many_bytes", f"the body is larger than {max_bytes:,} bytes")


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
