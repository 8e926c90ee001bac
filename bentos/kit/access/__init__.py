"""Who is asking, whether they may, and whether they have not asked too often: the same for every transport."""

from bentos.kit.access.guard import Caller, Guard, make_guard

__all__ = ["Caller", "Guard", "make_guard"]
