"""Cuts a stream of bytes into lines, in bounded memory.

Where lines end is found block by block; the bytes of a line are copied only where somebody looks at that line alone.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Bytes looked at in one go: small enough for the processor's cache, large enough to make a step cheap.
BLOCK = 1 << 18


class TooLong:
    """Stands for a line of ``size`` bytes that was dropped because it exceeded the limit."""

    def __init__(self, size: int) -> None:
        self.size = size


class Lines:
    """The lines that stand in ``text[start:end]``, each with its line end; ``ends[i]`` is where the line ``i`` ends."""

    def __init__(self, text: bytes, start: int, end: int) -> None:
        self.text = text
        self.start = start
        self.end = end
        self.size = end - start
        self.ends: list[int] = []
        find = text.find
        while start < end:
            start = find(b"\n", start, end) + 1 or end
            self.ends.append(start)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        return self.text[self.start_of(index) : self.ends[index]]

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    def start_of(self, index: int) -> int:
        """Where a line begins in ``text``."""
        return self.ends[index - 1] if index else self.start

    def are_objects_apart(self) -> bool:
        """Whether ``}`` stands before and ``{`` behind each line end inside: then no JSON value reaches over one."""
        text = self.text
        return {text[end - 2 : end + 1] for end in self.ends[:-1]} <= {b"}\n{"}


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
            begin, end = 0, block.rfind(b"\n") + 1
            if end and self._pending_size:
                begin = block.find(b"\n") + 1
                yield self._complete(block[:begin])
            if begin < end:
                yield Lines(block, begin, end)
            if end < len(block):
                self._hold(block[end:])

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
        return TooLong(size) if size - end.count(b"\n") > self._limit else Lines(line, 0, size)
