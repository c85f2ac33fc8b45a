"""What is to happen later, on one clock."""

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Simulated epoch seconds, moved by whoever holds it."""

    def __init__(self, at: float = 1_772_359_200.0) -> None:  # 2026-03-01T10:00:00Z
        self.at = at

    def now(self) -> float:
        return self.at


class Timers:
    """Deeds by the moment at which they are due; of those due at the same moment the first set comes first."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.clock.now() + seconds, next(self._numbers), deed))

    def next_due(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def run_next(self, until: float) -> bool:
        """Does the next deed that is due by then; whether there was one."""
        if not self._heap or self._heap[0][0] > until:
            return False
        heapq.heappop(self._heap)[2]()
        return True
