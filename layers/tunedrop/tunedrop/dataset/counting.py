"""Counts the tokens of examples, in batches beside the parse."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from operator import add, sub
from typing import TYPE_CHECKING, Any

from tunedrop.dataset.aside import Aside
from tunedrop.dataset.report import Findings, Format, Tokens

if TYPE_CHECKING:
    from tunedrop.tokens import TokenCounter

#: Tokens that an example, a message and a message's ``name`` cost beyond their texts.
PER_EXAMPLE = 3
PER_MESSAGE = 3
PER_NAME = 1

_BATCH = 1 << 20  # bytes of lines


#: What is counted of an example: its texts, and tokens that come on top.
type Countable = tuple[list[str], int]


def countable(example: dict[str, Any], name: Format) -> Countable:
    """What is counted of a valid example of the format ``name``."""
    match name:
        case "completion":
            return [example["prompt"], example["completion"]], 0
        case "preference":
            outputs = example["preferred_output"] + example["non_preferred_output"]
            messages = example["input"]["messages"] + outputs
        case _:
            messages = example["messages"]
    texts: list[str] = []
    _collect(messages, texts)
    names = sum(message.get("name") is not None for message in messages)
    return texts, PER_EXAMPLE + PER_MESSAGE * len(messages) + PER_NAME * names


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
        self._batch = _Batch()
        self._counts: Counter[int] = Counter()

    def take(self, line: int, part: Countable) -> None:
        """Take an example."""
        texts, extra = part
        batch = self._batch
        batch.texts += texts
        batch.ends.append(len(batch.texts))
        batch.extras.append(extra)
        batch.lines.append(line)

    def advance(self, size: int) -> None:
        """Count what was taken once it amounts to a batch; ``size`` is that of the lines since the last call."""
        self._batch.size += size
        if self._batch.size >= _BATCH:
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
        if self._batch.lines:
            self._aside.run(self._count, self._batch)
        self._batch = _Batch()

    def _count(self, batch: _Batch) -> None:
        # In whole lists rather than example by example: this holds the interpreter's lock, which the parse wants.
        sums = [0, *accumulate(self._counter.count(batch.texts))]
        ends = [sums[end] for end in batch.ends]
        counts = list(map(sub, map(add, ends, batch.extras), [0, *ends]))
        self._counts.update(counts)
        if self._limit and max(counts) > self._limit:
            for line, tokens in zip(batch.lines, counts, strict=True):
                if tokens > self._limit:
                    remedy = f"{tokens} tokens; the tail over {self._limit} is cut: shorten or split the example"
                    self._findings.warning("too_long", remedy, line)


class _Batch:
    """Examples that are counted together: their texts, where each example's end, their extra tokens and lines."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.ends: list[int] = []
        self.extras: list[int] = []
        self.lines: list[int] = []
        self.size = 0
