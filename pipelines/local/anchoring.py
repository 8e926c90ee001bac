"""The thread that anchors the audit log: whenever the log has grown, a signed statement of its head goes to the store.

Nothing is signed that contradicts what was signed before: from the last anchor on every row is checked first. The last
anchor is also kept at home, so that its deletion from the store is noticed. Killed at any point, the next one goes on.
"""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from datetime import UTC, datetime

from pipelines.adapters import database
from pipelines.adapters.signing import Signer, Trust, public_keys
from pipelines.core import anchors
from pipelines.core.anchors import GENESIS, Anchor, StoredAnchor
from pipelines.core.audit import Chain
from pipelines.core.errors import DarkroomError, IntegrityError
from pipelines.core.storage import LocalStorage, Storage, open_storage
from pipelines.local.secrets import AUDIT_KEY, AUDIT_PUBLIC_KEY
from pipelines.settings import Settings

PERIOD_S = 60.0
_RETRY_S = 5.0
"""After a failure: a store or a database that was away is soon back. What was tampered with is not."""
_KEPT = "last-anchor.json"
_MEND = "`darkroom audit verify` names all that was changed"


class Anchoring:
    """Anchors the log of one platform until told to stop, and once more then."""

    def __init__(self, settings: Settings, period_s: float = PERIOD_S) -> None:
        self.trouble = ""
        """Why the last try did not anchor; empty where it did."""
        self._settings = settings
        self._period_s = period_s
        self._stop = threading.Event()
        # A store that hangs must not keep the platform from ending.
        self._thread = threading.Thread(target=self._run, name="anchoring", daemon=True)
        self._storage: Storage | None = None
        self._last: Anchor | None = None

    def start(self) -> None:
        self._thread.start()

    def end(self, timeout_s: float = 10.0) -> None:
        """Anchor what is not anchored yet, then stop. While the database still runs, and nobody writes any more."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.is_set()  # looked at before the last try, so that one comes after it
            self._stop.wait(self._try())

    def _try(self) -> float:
        """Seconds until the next try. Trouble is told once."""
        try:
            self._anchor()
        except Exception as error:
            text = str(error) if isinstance(error, DarkroomError) else f"{type(error).__name__}: {error}"
            if text != self.trouble:
                _say(f"the audit log is not anchored: {text}")
            self.trouble = text
            return self._period_s if isinstance(error, IntegrityError) else min(self._period_s, _RETRY_S)
        if self.trouble:
            _say("the audit log is anchored again")
        self.trouble = ""
        return self._period_s

    def _anchor(self) -> None:
        settings = self._settings
        if self._storage is None:
            self._storage = open_storage(settings.store_uri, endpoint_url=settings.s3_endpoint_url)
        pem = settings.secrets / AUDIT_PUBLIC_KEY
        trust = Trust(public_keys(pem.read_bytes(), str(pem)))
        if self._last is None:
            self._last = _newest(self._storage, kept_anchor(settings), trust)
        head = _head(settings.database_url("darkroom"), self._last)
        if head.seq > (self._last.seq if self._last else 0):
            anchor = Anchor(
                seq=head.seq,
                hash=head.hash,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                previous=self._last.digest if self._last else GENESIS,
            )
            self._last = _publish(self._storage, Signer(settings.secret(AUDIT_KEY)).sign(anchor), trust)
        if self._last is not None and self._last != kept_anchor(settings):
            _kept(settings).write(_KEPT, self._last.to_bytes())


def kept_anchor(settings: Settings) -> Anchor | None:
    """The last anchor that this machine wrote, from its own copy; None where it never wrote one."""
    found = _kept(settings).read_versioned(_KEPT)
    return anchors.parse(found[0], _kept(settings).locate(_KEPT)) if found else None


def _kept(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.home / "audit")


def _newest(storage: Storage, kept: Anchor | None, trust: Trust) -> Anchor | None:
    """The anchor to go on from: the store's last. It may be newer than the one kept at home, never older."""
    found = anchors.newest(storage)
    last = _trusted(found, storage, trust) if found else None
    if kept is not None and (last is None or last.seq < kept.seq or (last.seq == kept.seq and last != kept)):
        raise IntegrityError(
            f"{storage.locate(kept.key)} was written at {kept.at} and is not the last anchor any more: anchors were"
            " deleted or replaced, or DARKROOM_STORE names another store"
        )
    return last


def _head(url: str, last: Anchor | None) -> Chain:
    """The last row, every row from the last anchor on being checked. Raises IntegrityError."""
    chain = Chain(seq=last.seq, hash=last.hash) if last else Chain()
    with closing(database.links(url, start=last.seq) if last else database.links(url)) as links:
        if last is not None:
            row = next(links, None)
            if row is None or (row.seq, row.hash, row.intact) != (last.seq, last.hash, True):
                raise IntegrityError(f"row {last.seq} is not what was anchored at {last.at}; {_MEND}")
        for link in links:
            if (finding := next(chain.follow(link), None)) is not None:
                raise IntegrityError(f"{finding.text}; {_MEND}")
    return chain


def _publish(storage: Storage, anchor: Anchor, trust: Trust) -> Anchor:
    """Write it once. What is there already is our own of the same row, whose answer was lost, or is refused."""
    if storage.compare_and_swap(anchor.key, None, anchor.to_bytes()):
        return anchor
    found = _trusted(StoredAnchor(key=anchor.key, data=storage.read(anchor.key)), storage, trust)
    if (found.seq, found.hash, found.previous) != (anchor.seq, anchor.hash, anchor.previous):
        raise IntegrityError(f"{storage.locate(anchor.key)} says something else of row {anchor.seq}; {_MEND}")
    return found


def _trusted(found: StoredAnchor, storage: Storage, trust: Trust) -> Anchor:
    where = storage.locate(found.key)
    anchor = anchors.parse(found.data, where)
    if reason := trust(anchor):
        raise IntegrityError(f"{where}: {reason}; the keys that count are in secrets/{AUDIT_PUBLIC_KEY}")
    return anchor


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} anchoring: {text}\n")
