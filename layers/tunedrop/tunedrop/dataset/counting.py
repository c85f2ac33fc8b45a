"""Counts the tokens of examples, in batches beside the parse."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tunedrop.dataset.aside import Aside
from tunedrop.dataset.report import Findings, Format, Tokens

if TYPE_CHECKING:
    from tunedrop.tokens import TokenCounter

#: Tokens that an example, a message and a message's ``name`` cost beyond their texts.
PER_EXAMPLE = 3
PER_MESSAGE = 3
PER_NAME = 1

_BATCH = 1 << 20  # characters


class Countable(NamedTuple):
    """What is counted of an example: its texts, and tokens that come on top."""

    texts: list[str]
    extra: int = 0


def countable(example: dict[str, Any], name: Format) -> Countable:
    """What is counted of a valid example of the format ``name``."""
    match name:
        case "completion":
            return Countable([example["prompt"], example["completion"]])
        case "preference":
            outputs = example["preferred_output"] + example["non_preferred_output"]
            messages = example["input"]["messages"] + outputs
        case _:
            messages = example["messages"]
    texts: list[str] = []
    _collect(messages, texts)
    names = sum(message.get("name") is not None for message in messages)
    return Countable(texts, PER_EXAMPLE + PER_MESSAGE * len(messages) + PER_NAME * names)


def _collect(value: Any, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, list):
        for item in value:
            _collect(item, texts)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "image_url" and isinstance(item, dict):
                _collect(item.get("detail"), texts)
            else:
                _collect(item, texts)


class TokenTally:
    """Adds up the tokens of a file's examples.

    Kept is how many examples have which count: the distinct counts of a file of 8 GB are 63,000 at most.
    """

    def __init__(self, counter: TokenCounter, limit: int | None, findings: Findings) -> None:
        self._counter = counter
        self._limit = limit
        self._findings = findings
        self._aside = Aside()
        self._texts: list[str] = []
        self._examples: list[tuple[int, int, int]] = []  # line, number of texts, tokens on top
        self._waiting = 0
        self._counts: Counter[int] = Counter()

    def take(self, line: int, part: Countable) -> None:
        """Take an example."""
        self._texts += part.texts
        self._examples.append((line, len(part.texts), part.extra))

    def advance(self, size: int) -> None:
        """Count what was taken once it amounts to a batch; ``size`` is that of the lines since the last call."""
        self._waiting += size
        if self._waiting >= _BATCH:
            self._send()

    def finish(self) -> Tokens | None:
        """The sums; None where there was no example."""
        self._send()
        self._aside.finish()
        if not self._counts:
            return None
        examples = self._counts.total()
        return Tokens(
            encoding=self._counter.encoding,
            total=sum(count * times for count, times in self._counts.items()),
            p50=self._rank(examples, 50),
            p95=self._rank(examples, 95),
            max=max(self._counts),
            over_limit=sum(times for count, times in self._counts.items() if self._limit and count > self._limit),
        )

    @property
    def billable(self) -> int:
        """The tokens of one epoch, each example cut at the limit."""
        limit = self._limit or max(self._counts, default=0)
        return sum(min(count, limit) * times for count, times in self._counts.items())

    def histogram(self) -> dict[int, int]:
        """How many examples have which number of tokens."""
        return dict(self._counts)

    def _rank(self, examples: int, percent: int) -> int:
        """The percentile by nearest rank."""
        rank = -(-examples * percent // 100)
        for count in sorted(self._counts):
            rank -= self._counts[count]
            if rank <= 0:
                break
        return count

    def _send(self) -> None:
        if self._examples:
            self._aside.run(self._count, self._texts, self._examples)
        self._texts, self._examples, self._waiting = [], [], 0

    def _count(self, texts: list[str], examples: list[tuple[int, int, int]]) -> None:
        counts = iter(self._counter.count(texts))
        for line, number, extra in examples:
            tokens = sum(islice(counts, number)) + extra
            self._counts[tokens] += 1
            if self._limit and tokens > self._limit:
                remedy = f"{tokens} tokens; the tail over {self._limit} is cut: shorten or split the example"
                self._findings.warning("too_long", remedy, line)
