"""Cuts a stream of bytes into lines, in bounded memory.

``BytesIO.readlines`` does the cutting: it searches with ``memchr`` and is four times as fast as ``bytes.split``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from itertools import accumulate

#: Bytes looked at in one go: small enough for the processor's cache, large enough to make a step cheap.
BLOCK = 1 << 18


class TooLong:
    """Stands for a line of ``size`` bytes that was dropped because it exceeded the limit."""

    def __init__(self, size: int) -> None:
        self.size = size


class Lines:
    """Consecutive lines with their line ends, and the same lines as they stand in ``text[start:end]``."""

    def __init__(self, lines: list[bytes], text: bytes, start: int, end: int) -> None:
        self.lines = lines
        self.text = text
        self.start = start
        self.end = end
        self.size = end - start

    @cached_property
    def starts(self) -> list[int]:
        """Where each line begins, counted from the first one's begin."""
        return list(accumulate(map(len, self.lines[:-1]), initial=0))


class LineSplitter:
    """Cuts chunks of any size into lines that end with LF; a line over ``limit`` bytes is dropped as it arrives."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._block = min(BLOCK, limit)  # so that only a line that spans blocks can exceed the limit
        self._pending: list[bytes] = []
        self._pending_size = 0

    def feed(self, data: bytes) -> Iterator[Lines | TooLong]:
        """Yield the lines that ``data`` completes, about a block at a time."""
        for start in range(0, len(data), self._block):
            block = data[start : start + self._block]
            lines = BytesIO(block).readlines()
            rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
            begin = 0
            if lines and self._pending_size:
                begin = len(lines[0])
                yield self._complete(lines.pop(0))
            if lines:
                yield Lines(lines, block, begin, len(block) - len(rest))
            if rest:
                self._hold(rest)

    def finish(self) -> Iterator[Lines | TooLong]:
        """Yield the last line where it has no LF."""
        if self._pending_size:
            yield self._complete(b"")

    def _hold(self, rest: bytes) -> None:
        self._pending_size += len(rest)
        if self._pending_size <= self._limit:
            self._pending.append(rest)
        else:
            self._pending = []

    def _complete(self, end: bytes) -> Lines | TooLong:
        size = self._pending_size + len(end)
        line = b"".join((*self._pending, end))
        self._pending, self._pending_size = [], 0
        return TooLong(size) if size - end.count(b"\n") > self._limit else Lines([line], line, 0, size)
