"""Feast's import, without what makes it slow."""

from __future__ import annotations

import sys
from typing import Any


def import_feast() -> None:
    """Import feast without what makes it slow: 1.0 s and 180 MB instead of 5 s and 810 MB.

    It imports torch for one type annotation, and typeguard recompiles most of its classes (2.5 s) to check calls that
    are checked here by mypy and the tests. Both are put back, so that a process that needs torch still gets it.
    """
    if "feast" in sys.modules:
        return
    import typeguard

    absent = object()
    torch = sys.modules.get("torch", absent)
    checked = typeguard.typechecked
    typeguard.typechecked = _unchecked
    if torch is absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import feast
    finally:
        typeguard.typechecked = checked
        if torch is absent:
            del sys.modules["torch"]
    assert feast


def _unchecked(target: Any = None, **_: Any) -> Any:
    return (lambda inner: inner) if target is None else target
