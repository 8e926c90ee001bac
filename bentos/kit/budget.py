"""How many bytes of its clients a process holds at once, over all requests and protocols."""

from __future__ import annotations

from types import TracebackType

from bentos.kit import settings
from bentos.kit.errors import Overloaded
from bentos.kit.telemetry import BYTES_IN_FLIGHT


class Budget:
    """Bytes that may be held. Belongs to one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    def growing(self) -> Share:
        """The place of a body that is still arriving, as a context."""
        return Share(self)

    def holding(self, num_bytes: int) -> Share:
        """The place of what is here already, as a context. Raises Overloaded where there is none."""
        if self.used + num_bytes > self.max_bytes:
            raise Overloaded(self.used, what="bytes")
        share = Share(self)
        share.resize(num_bytes)
        return share

    def change(self, num_bytes: int) -> None:
        self.used += num_bytes
        BYTES_IN_FLIGHT.set(self.used)


class Share:
    """One holder's part."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def grow(self, num_bytes: int) -> None:
        """Raises Overloaded where this part would be larger than what is left for all others.

        So many large bodies never shut out a small one (Choudhury and Hahne, "Dynamic Queue Length Thresholds for
        Shared-Memory Packet Switches", 1998).
        """
        self.grow_to(self._size + num_bytes)

    def grow_to(self, size: int) -> None:
        """The same of the whole part, which may also have become smaller."""
        free = self._budget.max_bytes - self._budget.used - (size - self._size)
        if size > max(free, self._size):
            raise Overloaded(self._budget.used, what="bytes")
        self.resize(size)

    def resize(self, num_bytes: int) -> None:
        """Without asking: of less, or of what is held anyway."""
        self._budget.change(num_bytes - self._size)
        self._size = num_bytes

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resize(0)


IN_FLIGHT = Budget(settings.max_bytes_in_flight())
"""Of this process."""
