"""Mends what can be mended mechanically, and counts what it mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

import msgspec

from tunedrop.dataset.lines import LineSplitter, TooLong
from tunedrop.dataset.opening import BYTE_ORDER_MARK
from tunedrop.dataset.plain import NOT_PLAIN, PlainCompletion

_BLANK = b" \t\r\n"


class Unmendable(Exception):
    """The file cannot be copied; the message says why."""


class Mender:
    """Rewrites the lines of a file that was checked: ``mended`` counts each kind of repair.

    ``repeats`` are the numbers of the lines to leave out, since an earlier line holds the same example; ``completions``
    says that the file's examples are completions, which begin with a space.
    """

    def __init__(self, repeats: set[int], *, completions: bool, max_line: int) -> None:
        self.mended: Counter[str] = Counter()
        self._repeats = repeats
        self._decode = msgspec.json.Decoder(PlainCompletion).decode if completions else None
        self._max_line = max_line

    def mend(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines of the file that ``chunks`` make up, mended; none of them is longer than the limit."""
        for number, line in enumerate(self._lines(chunks), 1):
            if number == 1 and line.startswith(BYTE_ORDER_MARK):
                self.mended["byte order mark"] += 1
            text = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).strip(_BLANK)
            if not text:
                self.mended["blank line"] += 1
            elif number in self._repeats:
                self.mended["duplicate example"] += 1
            else:
                self.mended["CRLF line end"] += line.endswith(b"\r\n")
                yield self._with_leading_space(text) + b"\n"

    def _lines(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        splitter = LineSplitter(self._max_line)
        for block in chain(chain.from_iterable(map(splitter.feed, chunks)), splitter.finish()):
            if isinstance(block, TooLong):
                raise Unmendable(f"a line of it has more than {self._max_line} bytes")
            yield from block

    def _with_leading_space(self, line: bytes) -> bytes:
        if self._decode is None:
            return line
        try:
            example = self._decode(line)
        except NOT_PLAIN:
            return line
        if example.completion.startswith(" "):
            return line
        self.mended["leading space"] += 1
        return msgspec.json.encode({"prompt": example.prompt, "completion": f" {example.completion}"})
