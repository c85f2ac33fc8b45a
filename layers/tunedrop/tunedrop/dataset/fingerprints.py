"""Recognises the same example again, in bounded memory however many lines there are.

One number of 64 bits is kept per line, in memory for the first 200,000 lines; from then on the numbers go to 128
temporary files by their last bits, so that equal ones meet in one file and only one file at a time is looked at: at 50
million lines 800 MB of disk and about 60 MB of memory. Two different examples share a number with a probability of
1 in 15,000 at 50 million lines.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import msgspec

_PARTITIONS = 128
_IN_MEMORY = 200_000

#: The fingerprint of a line that holds no example.
NONE = 0


def fingerprint(value: Any) -> int:
    """A number of 64 bits that is the same for the same JSON value, whatever its key order, in this process."""
    return hash(msgspec.json.encode(value, order="sorted")) or 1


class Fingerprints:
    """The fingerprints of a file's lines."""

    def __init__(self) -> None:
        self._recent = array("q")
        self._first = 1  # the line that the first of the recent ones belongs to
        self._spilled: list[BinaryIO] = []

    def extend(self, numbers: list[int]) -> None:
        """Take the fingerprints of the next lines, one for each line, NONE where it holds no example."""
        self._recent.extend(numbers)
        if len(self._recent) >= _IN_MEMORY:
            self._spill()

    def repeats(self) -> Iterator[tuple[int, int]]:
        """Yield (line, the earlier line with the same example), by line as long as all is in memory."""
        if not self._spilled and _all_different(self._recent):
            return
        for part in range(self._parts):
            first: dict[int, int] = {}
            for number, line in self._entries(part):
                earlier = first.setdefault(number, line)
                if earlier != line:
                    yield line, earlier

    def shared(self, other: Fingerprints) -> Iterator[tuple[int, int]]:
        """Yield (line, line of ``other`` with the same example)."""
        if other._spilled and not self._spilled:
            self._spill()
        elif self._spilled and not other._spilled:
            other._spill()
        for part in range(self._parts):
            mine = list(self._entries(part))
            wanted = {number for number, _ in mine}
            found: dict[int, int] = {}
            for number, line in other._entries(part):
                if number in wanted:
                    found.setdefault(number, line)
            yield from ((line, found[number]) for number, line in mine if number in found)

    def close(self) -> None:
        """Remove the temporary files."""
        with contextlib.ExitStack() as stack:
            for file in self._spilled:
                stack.callback(file.close)

    @property
    def _parts(self) -> int:
        return len(self._spilled) or 1

    def _entries(self, part: int) -> Iterator[tuple[int, int]]:
        if self._spilled:
            self._spill()
            file = self._spilled[part]
            file.seek(0)
            while chunk := file.read(1 << 20):
                entries = array("q", chunk)
                yield from zip(entries[::2], entries[1::2], strict=True)
        else:
            yield from ((number, line) for line, number in enumerate(self._recent, self._first) if number)

    def _spill(self) -> None:
        parts = [array("q") for _ in range(_PARTITIONS)]
        add: list[Callable[[tuple[int, int]], None]] = [part.extend for part in parts]
        for line, number in enumerate(self._recent, self._first):
            if number:
                add[number & (_PARTITIONS - 1)]((number, line))
        if not self._spilled:
            import tempfile  # as rare as files of more than a million lines

            self._spilled = [tempfile.TemporaryFile() for _ in parts]  # noqa: SIM115 (close() closes them)
        for file, part in zip(self._spilled, parts, strict=True):
            file.seek(0, 2)
            file.write(part.tobytes())
        self._first += len(self._recent)
        self._recent = array("q")


def _all_different(numbers: array[int]) -> bool:
    examples = len(numbers) - numbers.count(NONE)
    return len({*numbers, NONE}) == examples + 1
