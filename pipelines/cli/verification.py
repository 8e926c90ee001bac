"""`darkroom audit verify`: rows and anchors put together, with the keys and the anchor that the verifier trusts."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.adapters import database
from pipelines.adapters.signing import Trust, public_keys
from pipelines.cli.execute import storage_of
from pipelines.core import anchors
from pipelines.core.anchors import Anchor
from pipelines.core.audit import Audit, Finding
from pipelines.core.errors import IntegrityError, UserError
from pipelines.core.storage import Storage
from pipelines.local.anchoring import kept_anchor
from pipelines.local.secrets import AUDIT_PUBLIC_KEY
from pipelines.settings import Settings

MAX_TOLD = 100
"""Findings that are kept with their text; a chain that was shifted has as many as it has rows."""


@dataclass(kw_only=True)
class Verified:
    """What an examination of the audit log has found."""

    audit: Audit
    pinned: str
    """File of the public keys that counted; empty where they were taken from the store's own first anchor."""
    findings: list[Finding] = field(default_factory=list)
    num_findings: int = 0

    @property
    def unanchored_rows(self) -> int:
        """Rows at the end that could be cut off or replaced unnoticed."""
        return self.audit.last_seq - (self.audit.anchored.seq if self.audit.anchored else 0)


def verify(settings: Settings, *, public_key: Path | None = None, anchor: Path | None = None) -> Verified:
    """Examine the whole log. `public_key` and `anchor` are the verifier's own; by default those of this installation.

    Raises UserError for a file that does not serve, PlatformError where store or database do not answer.
    """
    storage = storage_of(settings)
    own = settings.secrets / AUDIT_PUBLIC_KEY
    pinned = public_key or (own if own.exists() else None)
    keys = public_keys(_read(pinned), str(pinned)) if pinned else _first_key(storage)
    must_hold = _given(anchor) if anchor else kept_anchor(settings)
    found = Verified(audit=Audit(distrust=Trust(keys), must_hold=must_hold), pinned=str(pinned or ""))
    for finding in _examine(settings, storage, found.audit):
        found.num_findings += 1
        if len(found.findings) < MAX_TOLD:
            found.findings.append(finding)
    return found


def _examine(settings: Settings, storage: Storage, audit: Audit) -> Generator[Finding]:
    url = settings.database_url("darkroom")
    # Anchors are listed first: one that is written meanwhile may be of a row that we do not see.
    with closing(anchors.stored(storage)) as stored, closing(database.links(url)) as links:
        yield from audit.examine(links, stored)
    yield from database.open_guards(url)


def _first_key(storage: Storage) -> frozenset[str]:
    """Trust on first use, for who has nothing better: the store vouches for itself."""
    with closing(anchors.stored(storage)) as stored:
        for one in stored:
            try:
                return frozenset([anchors.parse(one.data, one.key).public_key])
            except IntegrityError:
                continue
    return frozenset()


def _given(path: Path) -> Anchor:
    try:
        return anchors.parse(_read(path), str(path))
    except IntegrityError as error:
        raise UserError(f"{error}; --anchor takes a copy of an object below {anchors.PREFIX} in the store") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
