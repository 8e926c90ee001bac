"""What must hold of the audit log: each row's hash covers the row before, and signed anchors pin rows from outside.

A walk over rows and anchors in bounded memory; where they come from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipelines.core.anchors import GENESIS, Anchor, StoredAnchor, parse
from pipelines.core.errors import IntegrityError

Distrust = Callable[[Anchor], str]
"""Why an anchor's signature counts for nothing; empty where it counts."""


Kind = Literal[
    "edited_row",
    "missing_rows",
    "misplaced_row",
    "rewritten_rows",
    "cut_tail",
    "forged_anchor",
    "missing_anchor",
    "open_table",
]


@dataclass(frozen=True, kw_only=True)
class Link:
    """A row of the history, as far as its place in the chain goes."""

    seq: int
    previous_hash: str
    hash: str
    intact: bool
    """The row's content has this hash."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it was written."""

    kind: Kind
    seq: int
    """The row where it shows."""
    text: str


class Chain:
    """Follows rows one by one from one that is known, by default from the beginning."""

    def __init__(self, *, seq: int = 0, hash: str = GENESIS) -> None:  # noqa: A002 (the row's word for it)
        self.seq = seq
        self.hash = hash

    def follow(self, link: Link) -> Iterator[Finding]:
        """Take the next row; what is wrong with its place and with itself."""
        before, expected = self.seq, self.seq + 1
        if link.seq > expected:
            yield Finding(kind="missing_rows", seq=expected, text=f"{_rows(expected, link.seq - 1)} missing")
        elif link.seq < expected:
            text = f"row {link.seq} is out of place: row {expected} should come here"
            yield Finding(kind="misplaced_row", seq=link.seq, text=text)
        elif link.previous_hash != self.hash:
            text = f"row {link.seq} does not follow row {before}: one was changed, put in, taken out or moved here"
            yield Finding(kind="misplaced_row", seq=link.seq, text=text)
        if not link.intact:
            text = f"row {link.seq} does not match its hash: it was changed after the fact, or moved or put in here"
            yield Finding(kind="edited_row", seq=link.seq, text=text)
        self.seq, self.hash = link.seq, link.hash


@dataclass(kw_only=True)
class Audit:
    """One examination of the whole log, and what it has seen so far."""

    distrust: Distrust
    must_hold: Anchor | None = None
    """An anchor kept elsewhere, which the store must still have."""
    num_rows: int = 0
    num_anchors: int = 0
    """Those that can be trusted."""
    last_seq: int = 0
    anchored: Anchor | None = None
    """The last trusted anchor that the rows agree with."""
    _before: Anchor | None = None

    def examine(self, links: Iterable[Link], anchors: Iterable[StoredAnchor]) -> Generator[Finding]:
        """Everything that was edited, deleted, put in, moved, cut or rewritten. Both come in order.

        The anchors must have been listed before the rows were read, or they may be of rows that were not.
        """
        chain, waiting = Chain(), iter(anchors)
        due = yield from self._next(waiting)
        for link in links:
            yield from chain.follow(link)
            self.num_rows, self.last_seq = self.num_rows + 1, link.seq
            while due is not None and due.seq <= link.seq:
                if (due.seq, due.hash) == (link.seq, link.hash):
                    self.anchored = due
                elif due.seq == link.seq:
                    yield self._rewritten(due)
                due = yield from self._next(waiting)
        beyond: Anchor | None = None
        while due is not None:
            beyond, due = due, (yield from self._next(waiting))
        if beyond is not None:
            text = f"{_rows(self.last_seq + 1, beyond.seq)} cut off: row {beyond.seq} was anchored at {beyond.at}"
            yield Finding(kind="cut_tail", seq=self.last_seq + 1, text=text)
        yield from self._held()

    def _next(self, anchors: Iterator[StoredAnchor]) -> Generator[Finding, None, Anchor | None]:
        """The next anchor that counts; what is wrong with it, and with those that do not, is said on the way."""
        for stored in anchors:
            try:
                anchor = parse(stored.data, stored.key)
            except IntegrityError as error:
                yield Finding(kind="forged_anchor", seq=_seq_of(stored.key), text=str(error))
                continue
            reason = self.distrust(anchor) or ("" if stored.key == anchor.key else f"its name is not {anchor.key}")
            if reason:
                yield Finding(kind="forged_anchor", seq=anchor.seq, text=f"{stored.key}: {reason}")
                continue
            before, self._before = self._before, anchor
            self.num_anchors += 1
            if anchor.previous != (before.digest if before else GENESIS):
                since = f"between {before.key} and" if before else "before"
                text = f"an anchor {since} {anchor.key} was deleted or changed"
                yield Finding(kind="missing_anchor", seq=anchor.seq, text=text)
            if self.must_hold is not None and anchor == self.must_hold:
                self.must_hold = None
            return anchor
        return None

    def _held(self) -> Iterator[Finding]:
        if (one := self.must_hold) is not None:
            text = f"{one.key}, written at {one.at}, is not in the store as it was: anchors were deleted or replaced"
            yield Finding(kind="missing_anchor", seq=one.seq, text=text)

    def _rewritten(self, anchor: Anchor) -> Finding:
        first = self.anchored.seq + 1 if self.anchored else 1
        rows = f"row {first}" if first == anchor.seq else f"one or more of rows {first} to {anchor.seq}"
        text = f"{rows} rewritten: row {anchor.seq} has another hash than was anchored at {anchor.at}"
        return Finding(kind="rewritten_rows", seq=first, text=text)


def _rows(first: int, last: int) -> str:
    return f"row {first} is" if first == last else f"rows {first} to {last} are"


def _seq_of(key: str) -> int:
    number = key.rpartition("/")[2].partition(".")[0]
    return int(number) if number.isdecimal() else 0
