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
        self._punctual: set[int] = set()

    def after(self, seconds: float, deed: Callable[[], None], *, punctual: bool = False) -> None:
        """Sets a deed. A punctual one is done at its moment even where the clock jumps over it."""
        number = next(self._numbers)
        heapq.heappush(self._heap, (self.clock.now() + seconds, number, deed))
        if punctual:
            self._punctual.add(number)

    def next_due(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def run_next(self, until: float) -> bool:
        """Does the next deed that is due by then; whether there was one."""
        if not self._heap or self._heap[0][0] > until:
            return False
        self._do(heapq.heappop(self._heap))
        return True

    def run_punctual(self, until: float) -> None:
        """Does the punctual deeds that are due by then, each with the clock at its moment; the others stay."""
        while due := min(
            (entry for entry in self._heap if entry[1] in self._punctual and entry[0] <= until), default=None
        ):
            self._heap.remove(due)
            heapq.heapify(self._heap)
            self.clock.at = max(self.clock.at, due[0])
            self._do(due)

    def _do(self, entry: tuple[float, int, Callable[[], None]]) -> None:
        self._punctual.discard(entry[1])
        entry[2]()
