"""Finds what looks like a secret or personal data: line and kind, never the text.

One linear pass for all kinds together (Hyperscan: automata that never go back, whatever the input) over the raw lines
finds candidates; the few lines that hold one are decoded and looked at closely, string by string.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import hyperscan

from tunedrop.dataset.lines import Lines
from tunedrop.dataset.report import Findings
from tunedrop.dataset.strict_json import Malformed, parse, refuse_bulk


class _Kind(NamedTuple):
    """A kind of sensitive content.

    ``candidate`` matches, without looking around, in every raw line one of whose strings holds something of the kind.
    It may match elsewhere, too, but each match costs: it takes the interpreter's lock from the parse. ``exact`` is what
    counts. It begins with something rare, so that the search skips to it; what must not stand before it is looked at
    from there, backwards.
    """

    name: str
    candidate: str
    exact: str


_CARD = "a payment card number"

_KINDS = (
    _Kind(
        "an OpenAI API key",
        r"sk-[A-Za-z0-9_-]{12}",  # less than it takes, for with 20 there is 20 ms more to prepare
        r"sk-(?<![A-Za-z0-9_-]sk-)(?!ant-)[A-Za-z0-9_-]{20,}",
    ),
    _Kind(
        "an Anthropic API key",
        r"sk-ant-[A-Za-z0-9_-]{20}",
        r"sk-ant-(?<![A-Za-z0-9_-]sk-ant-)[A-Za-z0-9_-]{20,}",
    ),
    _Kind(
        "an AWS access key",
        r"A[KS]IA[0-9A-Z]{16}",
        r"A[KS]IA(?<![A-Za-z0-9_-]....)[0-9A-Z]{16}",
    ),
    _Kind(
        "a GitHub token",
        r"gh[pousr]_[A-Za-z0-9]{36}",
        r"gh[pousr]_(?<![A-Za-z0-9_-]....)[A-Za-z0-9]{36,}",
    ),
    _Kind(
        "a fine-grained GitHub token",
        r"github_pat_[A-Za-z0-9_]{22}",
        r"github_pat_[A-Za-z0-9_]{22,}",
    ),
    _Kind(
        "a GitLab token",
        r"glpat-[A-Za-z0-9_-]{20}",
        r"glpat-[A-Za-z0-9_-]{20,}",
    ),
    _Kind(
        "a Slack token",
        r"xox[abeoprs]-[A-Za-z0-9-]{10}",
        r"xox[abeoprs]-(?<![A-Za-z0-9_-].....)[A-Za-z0-9-]{10,}",
    ),
    _Kind(
        "a Stripe key",
        r"[rs]k_(?:live|test)_[A-Za-z0-9]{16}",
        r"[rs]k_(?<![A-Za-z0-9_-]...)(?:live|test)_[A-Za-z0-9]{16,}",
    ),
    _Kind(
        "a Google API key",
        r"AIza[A-Za-z0-9_-]{35}",
        r"AIza(?<![A-Za-z0-9_-]....)[A-Za-z0-9_-]{35}",
    ),
    _Kind(
        "a Hugging Face token",
        r"hf_[A-Za-z0-9]{30}",
        r"hf_(?<![A-Za-z0-9_-]...)[A-Za-z0-9]{30,}",
    ),
    _Kind(
        "a JSON web token",
        r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8}",
        r"eyJ(?<![A-Za-z0-9_-]...)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    ),
    _Kind(
        "a private key",
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY",
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY",
    ),
    _Kind(
        "an e-mail address",
        r"[A-Za-z0-9_]@[A-Za-z0-9-]+\.[A-Za-z0-9]",
        r"@(?<=[A-Za-z0-9_]@)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])",
    ),
    _Kind(
        _CARD,
        r"[2-6](?:[ -]?[0-9]){12,18}(?:[^0-9]|$)",
        r"[2-6](?<![0-9.].)(?<![0-9][ -].)(?:[ -]?[0-9]){12,18}(?![ -]?[0-9])",
    ),
    _Kind(
        "a telephone number",
        r"(?:(?:\+|\\u002[bB])[0-9](?:[ .()/-]{0,2}[0-9]){7,14}"
        r"|\([0-9]{3}\) ?[0-9]{3}[ .-][0-9]{4}"
        r"|[0-9]{3}[.-][0-9]{3}[.-][0-9]{4})(?:[^0-9A-Za-z]|$)",
        r"(?:\+(?<![0-9A-Za-z.+-]\+)[0-9](?:[ .()/-]{0,2}[0-9]){7,14}"
        r"|\((?<![0-9A-Za-z.+-]\()[0-9]{3}\) ?[0-9]{3}[ .-][0-9]{4}"
        r"|[0-9](?<![0-9A-Za-z.+-][0-9])[0-9]{2}[.-][0-9]{3}[.-][0-9]{4})(?![0-9A-Za-z]|[.-][0-9])",
    ),
)


@cache
def candidates() -> hyperscan.Database:
    """What finds the candidates of every kind, by its index. Making it takes 50 ms, without the interpreter's lock."""
    database = hyperscan.Database()
    database.compile(expressions=[kind.candidate.encode() for kind in _KINDS])
    return database


class Scan:
    """Searches the lines of a file; what it finds becomes a warning, or an error where ``refuse`` is set."""

    def __init__(self, findings: Findings, *, refuse: bool) -> None:
        self._report = findings.error if refuse else findings.warning
        self._scratch: hyperscan.Scratch | None = None  # of each search its own, as two may run at a time

    def search(self, block: Lines, first_line: int) -> None:
        """Search consecutive lines, the first of which has the number ``first_line``."""
        self._scratch = self._scratch or hyperscan.Scratch(candidates())
        wanted: dict[int, set[_Kind]] = {}  # what to look for, by the index of a line

        def take(kind: int, _start: int, end: int, _flags: int, _context: object) -> None:
            index = bisect_left(block.ends, block.start + end)
            wanted.setdefault(index, set()).add(_KINDS[kind])

        text = memoryview(block.text)[block.start : block.end]
        candidates().scan(text, match_event_handler=take, scratch=self._scratch)  # type: ignore[type-var]  # it takes any buffer
        for index in sorted(wanted):  # matches come in no order
            text_of_line = _text_of(block[index])
            for kind in sorted(wanted[index]):
                if _is_in(text_of_line, kind):
                    remedy = f"looks like {kind.name}; remove it, or replace it by a placeholder"
                    self._report("sensitive_content", remedy, first_line + index)


def _is_in(text: str, kind: _Kind) -> bool:
    found = re.finditer(kind.exact, text, re.ASCII | re.DOTALL)
    return any(kind.name != _CARD or _is_card(match[0]) for match in found)


def _text_of(line: bytes) -> str:
    """All strings of a line, one below the other: no pattern reaches over a line end."""
    try:
        refuse_bulk(line)
        return "\n".join(_strings(parse(line)))
    except Malformed:
        return line.decode(errors="replace")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)


def _is_card(text: str) -> bool:
    """Whether digits are those of a payment card: Luhn's sum, and not all the same."""
    digits = [int(character) for character in text if character in "0123456789"]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + doubled) % 10 == 0 and len(set(digits)) > 1
