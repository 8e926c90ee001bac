"""Parameters of a query that several services take."""

from __future__ import annotations

from collections.abc import Mapping

from bentos.kit.errors import RequestRefused


def top_k(query: Mapping[str, str], maximum: int) -> int | None:
    """`top_k`, from 1 to `maximum`; None where it is not given. Raises RequestRefused."""
    text = query.get("top_k")
    if text is None:
        return None
    if not text.isdecimal() or not text.isascii() or len(text) > 9 or not 1 <= int(text) <= maximum:
        raise RequestRefused(400, "bad_top_k", f"top_k={text!r}: expected a number from 1 to {maximum}")
    return int(text)
