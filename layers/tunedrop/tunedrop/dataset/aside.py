"""Work that runs beside the parse."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Aside:
    """Runs functions one after the other in a thread of its own.

    What runs here spends its time in code that lets go of the interpreter's lock (hashing, searching, counting tokens),
    so that it goes on while the parse does. At most ``waiting`` calls wait: that bounds the memory they hold.
    """

    def __init__(self, waiting: int = 4) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = waiting
        self._calls: deque[Future[None]] = deque()

    def run[*Arguments](self, function: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        """Run ``function`` later; raises what an earlier one raised."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
        while len(self._calls) >= self._waiting:
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(function, *arguments))

    def finish(self) -> None:
        """Wait until everything has run; raises what one of them raised."""
        while self._calls:
            self._calls.popleft().result()
        if self._thread:
            self._thread.shutdown()
            self._thread = None
