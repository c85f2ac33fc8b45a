"""Cuts a stream of bytes into lines, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

#: Bytes looked at in one go: small enough for the processor's cache, large enough to make a step cheap.
BLOCK = 1 << 18


class TooLong:
    """Stands for a line of ``size`` bytes that was dropped because it exceeded the limit."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class LineSplitter:
    """Cuts chunks of any size into lines that end with LF; a line over ``limit`` bytes is dropped as it arrives."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: list[bytes] = []
        self._pending_size = 0

    def feed(self, data: bytes) -> Iterator[Sequence[bytes | TooLong]]:
        """Yield the lines that ``data`` completes, without their LF, in lists of about a block."""
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            lines = block.split(b"\n")
            rest = lines.pop()
            if lines and self._pending_size:
                yield [self._join(lines.pop(0))]
                self._pending, self._pending_size = [], 0
            if lines:
                yield lines
            if rest:
                self._pending_size += len(rest)
                if self._pending_size <= self._limit:
                    self._pending.append(rest)
                else:
                    self._pending = []

    def finish(self) -> Iterator[Sequence[bytes | TooLong]]:
        """Yield the last line where it has no LF."""
        if self._pending_size:
            yield [self._join(b"")]

    def _join(self, end: bytes) -> bytes | TooLong:
        size = self._pending_size + len(end)
        if size > self._limit:
            return TooLong(size)
        return b"".join((*self._pending, end))
