"""Large requests, read on a thread of their own and a piece at a time.

The C parser of the standard library keeps the interpreter to itself until it is done, from a thread too: 0.3 s for
22 MB of numbers, in which nobody is answered. A piece takes it some milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from json.decoder import WHITESPACE, JSONDecodeError  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, ParamSpec, TypeVar

from bentos.kit.errors import RequestRefused
from pipelines.core.preprocessing import PreprocessingSpec

P = ParamSpec("P")
R = TypeVar("R")

LARGE_BYTES = 64 * 1024
"""From here on a thread parses, in 2 ms or more; what hands it over and back takes 0.1 ms."""
_PIECE = 64 * 1024
_WORDS = 4096
"""Of each kind of mark beyond what tensors have: names, parameters, outputs."""
_LIST_BYTES, _VALUE_BYTES = 104, 12
"""Memory of a short list, and of a pixel's value in a list. Of larger numbers it is up to 36, of one request at a time.
"""

_PLAIN = re.compile(r'(?:[^\[\]{}"]++|\[[^\[\]{}"]*+\])*+')
"""Numbers, and lists of nothing but numbers."""


_THREAD = ThreadPoolExecutor(1, thread_name_prefix="large-requests")
"""One, so that however many come, the event loop has the interpreter at least half of the time."""


async def aside(work: Callable[P, R], *given: P.args, **named: P.kwargs) -> R:
    """The result of work that would keep the event loop from others."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, lambda: work(*given, **named))


def memory_bytes(data: bytes, spec: PreprocessingSpec, max_images: int) -> int:
    """What parsing makes of this, at most. Raises RequestRefused for more than the largest request has."""
    lists, values = data.count(b"["), data.count(b",")
    most_lists = max_images * (1 + spec.height * (1 + spec.width)) + _WORDS
    most_values = max_images * spec.height * spec.width * 3 + most_lists
    words, most_words = max(data.count(b"{"), data.count(b'"') // 4), _WORDS + max_images
    if lists > most_lists or values > most_values or words > most_words:
        raise RequestRefused(
            400,
            "bad_input",
            f"the request: {lists:,} lists, {values:,} commas and {words:,} words in its JSON, more than a request of "
            f"{max_images} images has; send fewer images, or binary tensor data",
        )
    text = 1 if data.isascii() else 4
    return (text + 1) * len(data) + _LIST_BYTES * lists + _VALUE_BYTES * values  # + 1: the images out of it


def loads(data: bytes) -> Any:
    """As json.loads, but others get their turn in between. Raises ValueError and RecursionError."""
    return _Decoder().decode(data.decode(json.detect_encoding(data), "surrogatepass"))


class _Decoder(json.JSONDecoder):
    def __init__(self) -> None:
        super().__init__()
        self.parse_array = _array
        self.scan_once = py_make_scanner(self)


def _array(start: tuple[str, int], scan_once: Any) -> tuple[list[Any], int]:
    text, place = start
    values: list[Any] = []
    place = _next(text, place)
    if text[place : place + 1] == "]":
        return values, place + 1
    while True:
        if comma := _last_comma(text, place, _PLAIN.match(text, place, place + _PIECE).end()):  # type: ignore[union-attr]
            piece = json.loads(f"[{text[place:comma]}]")
            if not piece:
                raise JSONDecodeError("Expecting value", text, place)
            values += piece
            place = _next(text, comma + 1)
        try:
            value, place = scan_once(text, place)
        except StopIteration as error:
            raise JSONDecodeError("Expecting value", text, error.value) from None
        values.append(value)
        place = _next(text, place)
        mark = text[place : place + 1]
        if mark == "]":
            return values, place + 1
        if mark != ",":
            raise JSONDecodeError("Expecting ',' delimiter", text, place)
        place = _next(text, place + 1)


def _last_comma(text: str, place: int, end: int) -> int:
    """The last one that divides plain values, and not numbers of a list among them; 0 where there is none."""
    opened, closed = len(text), text.rfind("]", place, end)
    if (comma := text.rfind(",", max(place, closed), end)) < 0 <= closed:
        opened = text.rfind("[", place, closed)
        comma = text.rfind(",", max(place, text.rfind("]", place, opened)), opened)
    return max(comma, 0)


def _next(text: str, place: int) -> int:
    """Beyond white space."""
    return int(WHITESPACE.match(text, place).end())
