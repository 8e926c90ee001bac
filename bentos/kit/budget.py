"""How many bytes of its clients a process holds at once, over all requests and protocols.

Who finds no room takes it from the largest body that is still arriving, which is given up; who is the largest itself is
refused. So however many large bodies arrive, a small one gets in.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from bentos.kit import settings
from bentos.kit.errors import Overloaded
from bentos.kit.telemetry import BYTES_IN_FLIGHT


class Budget:
    """Bytes that may be held. Belongs to one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.arriving: set[Share] = set()

    @property
    def crowded(self) -> bool:
        """Half is taken: who can wait leaves the rest to those who cannot."""
        return self.used > self.max_bytes // 2

    def growing(self, give_up: Callable[[], None]) -> Share:
        """The place of a body that is arriving, as a context. `give_up` is called when its room is taken from it."""
        share = Share(self, give_up)
        self.arriving.add(share)
        return share

    def holding(self, num_bytes: int) -> Share:
        """The place of what is here already, as a context. Raises Overloaded where there is no room."""
        self.make_room(num_bytes, num_bytes)
        share = Share(self, None)
        share.resize(num_bytes)
        return share

    def make_room(self, num_bytes: int, size: int) -> None:
        """For so many bytes more of a body that has `size` with them. Raises Overloaded."""
        while self.used + num_bytes > self.max_bytes:
            largest = max(self.arriving, key=lambda share: share.size, default=None)
            if largest is None or largest.size <= size:
                raise Overloaded(self.used, what="bytes")
            largest.lose()

    def change(self, num_bytes: int) -> None:
        self.used += num_bytes


class Share:
    """One holder's part."""

    def __init__(self, budget: Budget, give_up: Callable[[], None] | None) -> None:
        self._budget = budget
        self._give_up = give_up
        self.size = 0
        self._closed = False
        self.kept = False
        """It is not arriving any more, and no longer for others to take."""
        self.lost = False
        """Its room was needed for a smaller one."""

    def grow(self, num_bytes: int) -> None:
        """Raises Overloaded where there is no room, or where it was lost."""
        self.grow_to(self.size + num_bytes)

    def grow_to(self, size: int) -> None:
        """The same of the whole part, which may also have become smaller."""
        self.check()
        if size > self.size:
            self._budget.make_room(size - self.size, size)
        self.resize(size)

    def check(self) -> None:
        """Raises Overloaded where it was lost."""
        if self.lost:
            raise Overloaded(self._budget.used, what="bytes")

    def resize(self, num_bytes: int) -> None:
        """Without asking: of less, or of what is held anyway. Of what is closed nothing is held."""
        if self._closed:
            return
        self._budget.change(num_bytes - self.size)
        self.size = num_bytes

    def keep(self) -> None:
        """All of it has come. Raises Overloaded where it was lost before."""
        self.check()
        self.kept = True
        self._budget.arriving.discard(self)
        self._give_up = None

    def lose(self) -> None:
        """Make room for another."""
        give_up = self._give_up
        self.lost = True
        self.close()
        if give_up is not None:
            give_up()

    def close(self) -> None:
        self.resize(0)
        self._closed = True
        self._budget.arriving.discard(self)
        self._give_up = None  # it refers to the holder, who refers to us

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


IN_FLIGHT = Budget(settings.max_bytes_in_flight())
"""Of this process."""
BYTES_IN_FLIGHT.set_function(lambda: IN_FLIGHT.used)
