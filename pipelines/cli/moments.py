"""Times as people give them on the command line."""

from __future__ import annotations

from datetime import UTC, datetime

from pipelines.core.errors import UserError


def moment(option: str, text: str) -> datetime:
    """In UTC, which is also what a time without a zone is in. Raises UserError naming the option."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(
            f"{option} {text!r}: expected YYYY-MM-DD or a time such as 2026-01-31T12:00:00+01:00"
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
