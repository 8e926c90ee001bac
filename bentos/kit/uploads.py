"""Many files out of one request, one after another as they arrive: a multipart form, or a tar."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Protocol

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from bentos.kit.bodies import check_declared, chunks_of
from bentos.kit.budget import Share
from bentos.kit.errors import RequestRefused

_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER_BYTES = 16 * 1024
"""Of a part of a form, or of the extended header of a tar's member."""


_FILE_BYTES = 320
"""What a file that waits takes beside its bytes: a form may have a million empty ones."""


@dataclass(slots=True, eq=False, kw_only=True)
class Upload:
    """One file, which takes part of its request's share until it is dropped."""

    name: str
    data: bytes | None
    """None for a file beyond the limit, whose bytes were not kept."""
    share: Share
    held: int = 0
    """Of the share."""

    def __post_init__(self) -> None:
        self.held = _FILE_BYTES + len(self.name) + len(self.data or b"")

    @contextlib.contextmanager
    def counted_elsewhere(self) -> Iterator[None]:
        """While the block lasts it takes nothing of the share."""
        self.share.resize(self.share.size - self.held)
        try:
            yield
        finally:
            self.share.resize(self.share.size + self.held)

    def drop(self) -> None:
        """Nobody needs it any more, whoever may still refer to it."""
        self.share.resize(self.share.size - self.held)
        self.held, self.data = 0, None


class _Parser(Protocol):
    def feed(self, chunk: bytes) -> Iterator[Upload]:
        """Files that end within these bytes. Raises RequestRefused."""
        ...

    def finish(self) -> None:
        """Raises RequestRefused where the last file is cut off."""
        ...

    @property
    def num_bytes(self) -> int:
        """That are here of files that have not ended."""
        ...


async def uploads(
    request: Request, share: Share, *, max_file_bytes: int, max_bytes: int
) -> AsyncGenerator[Upload, None]:
    """Files in the order in which they come. The share grows with them and with what is here of the next.

    Raises RequestRefused for a body that is neither form nor tar, is cut off, too slow, or larger than `max_bytes` in
    all; Overloaded where too many others arrive.
    """
    check_declared(request, max_bytes)
    parser = _parser(request.headers.get("content-type", ""), share, max_file_bytes)
    async with contextlib.aclosing(chunks_of(request, share, max_bytes)) as chunks:
        unfinished = 0
        async for chunk in chunks:
            unfinished += len(chunk)
            for upload in parser.feed(chunk):
                share.grow(upload.held + parser.num_bytes - unfinished)
                unfinished = parser.num_bytes
                yield upload
            share.grow(parser.num_bytes - unfinished)
            unfinished = parser.num_bytes
    parser.finish()


def _parser(content_type: str, share: Share, max_file_bytes: int) -> _Parser:
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise RequestRefused(400, "bad_multipart", "the form's Content-Type has no boundary")
        return _Form(boundary, share, max_file_bytes)
    return _Tar(share, max_file_bytes)


class _Form:
    """multipart/form-data; parts without a file name are no files."""

    def __init__(self, boundary: bytes, share: Share, max_file_bytes: int) -> None:
        self._share, self._max = share, max_file_bytes
        self._done: list[Upload] = []
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value = b"", b""
        self._name: str | None = None
        self._data: bytearray | None = None
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> Iterator[Upload]:
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise RequestRefused(400, "bad_multipart", f"not a readable multipart form: {error}") from error
        done, self._done = self._done, []
        return iter(done)

    def finish(self) -> None:
        if not self._ended:
            raise RequestRefused(400, "bad_multipart", "the form ends without its closing boundary")

    @property
    def num_bytes(self) -> int:
        return len(self._data or b"")

    def _on_part_begin(self) -> None:
        self._headers, self._name, self._data = {}, None, None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _check_header(self) -> None:
        if len(self._field) + len(self._value) > _MAX_HEADER_BYTES:
            raise RequestRefused(400, "bad_multipart", "a part's header is too long")

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"filename" in options:
            self._name = options[b"filename"].decode("utf-8", "replace")
            self._data = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is None:
            return
        if len(self._data) + end - start > self._max:
            self._data = None  # its name stays: the file is told of, its bytes are not kept
        else:
            self._data += data[start:end]

    def _on_part_end(self) -> None:
        if self._name is not None:
            data = None if self._data is None else bytes(self._data)
            self._done.append(Upload(name=self._name, data=data, share=self._share))

    def _on_end(self) -> None:
        self._ended = True


class _Tar:
    """A tar, uncompressed: ustar, GNU or pax. What is no regular file is passed over."""

    def __init__(self, share: Share, max_file_bytes: int) -> None:
        self._share, self._max = share, max_file_bytes
        self._buffer = bytearray()
        self._member: tarfile.TarInfo | None = None
        self._kept: bytearray | None = None
        self._left = 0
        """Bytes of the member that are still to come, with the padding behind it."""
        self._padding = 0
        self._long_name = ""
        self._ended = False
        self._begun = False

    def feed(self, chunk: bytes) -> Iterator[Upload]:
        if self._ended:  # only padding follows
            return
        self._buffer += chunk
        while True:
            if self._member is not None:
                self._take_data()
                if self._left:
                    return
                if (upload := self._end_member()) is not None:
                    yield upload
            elif len(self._buffer) >= _BLOCK:
                block = bytes(self._buffer[:_BLOCK])
                del self._buffer[:_BLOCK]
                if not block.strip(b"\0"):
                    self._ended = True
                    self._buffer.clear()
                    return
                self._begin_member(block)
            else:
                return

    def finish(self) -> None:
        if not self._begun and not self._ended:
            raise self._no_tar("it is empty")
        if self._member is not None or self._buffer:
            raise RequestRefused(400, "body_cut_off", "the tar ends within a member")

    @property
    def num_bytes(self) -> int:
        return len(self._buffer) + len(self._kept or b"")

    def _begin_member(self, block: bytes) -> None:
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise self._no_tar(str(error)) from error
        if member.size < 0:
            raise self._no_tar("a member of negative size")
        self._begun = True
        self._member = member
        self._padding = -member.size % _BLOCK
        self._left = member.size + self._padding
        limit = self._max if member.isreg() else _MAX_HEADER_BYTES
        self._kept = bytearray() if member.size <= limit else None

    def _take_data(self) -> None:
        taken = min(self._left, len(self._buffer))
        if self._kept is not None:
            wanted = max(0, self._left - self._padding)
            self._kept += self._buffer[: min(taken, wanted)]
        del self._buffer[:taken]
        self._left -= taken

    def _end_member(self) -> Upload | None:
        member, kept = self._member, self._kept
        assert member is not None
        self._member = self._kept = None
        if member.type == tarfile.GNUTYPE_LONGNAME and kept is not None:
            self._long_name = bytes(kept).rstrip(b"\0").decode("utf-8", "replace")
            return None
        if member.type == tarfile.XHDTYPE and kept is not None:
            self._long_name = _path_of(bytes(kept)) or self._long_name
            return None
        name, self._long_name = self._long_name or member.name, ""
        if not member.isreg() or member.type == tarfile.GNUTYPE_SPARSE:
            return None
        return Upload(name=name, data=None if kept is None else bytes(kept), share=self._share)

    def _no_tar(self, why: str) -> RequestRefused:
        return RequestRefused(
            400, "bad_batch", f"the body is neither a multipart form nor a tar ({why}); curl: -F image=@A -F image=@B"
        )


def _path_of(header: bytes) -> str:
    """`path` of a pax header, whose records are "LENGTH KEY=VALUE\\n"."""
    place = 0
    while place < len(header):
        length, space, _ = header[place : place + 20].partition(b" ")
        if not space or not length.isdigit() or int(length) < len(length) + 2:
            break
        key, _, value = header[place + len(length) + 1 : place + int(length) - 1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "replace")
        place += int(length)
    return ""
