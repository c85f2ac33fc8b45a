"""Work that runs beside the parse."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import Queue

type _Call = Callable[[], object]


class Aside:
    """Runs functions one after the other in a thread of its own.

    What runs here spends its time in code that lets go of the interpreter's lock (hashing, searching, counting tokens),
    so that it goes on while the parse does. At most ``waiting`` calls wait: that bounds the memory they hold.
    """

    def __init__(self, waiting: int = 8) -> None:
        self._calls: Queue[_Call | None] = Queue(waiting)
        self._failures: list[Exception] = []
        self._thread: threading.Thread | None = None

    def run[*Arguments](self, function: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Run ``function`` later; raises what an earlier one raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._calls, self._failures), daemon=True)
            self._thread.start()
            weakref.finalize(self, self._calls.put, None)  # one that is given up halfway ends its thread, too
        self._raise()
        self._calls.put(lambda: function(*arguments))

    def finish(self) -> None:
        """Wait until everything has run; raises what one of them raised."""
        self._calls.join()
        self._raise()

    def _raise(self) -> None:
        if self._failures:
            raise self._failures[0]


def _work(calls: Queue[_Call | None], failures: list[Exception]) -> None:
    while call := calls.get():
        try:
            call()
        except Exception as error:  # noqa: BLE001 (raised again where the result is wanted)
            failures.append(error)
        finally:
            del call  # and what it holds, while waiting for the next
            calls.task_done()
