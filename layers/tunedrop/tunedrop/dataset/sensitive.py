"""Finds what looks like a secret or personal data: line and kind, never the text.

One linear pass (RE2: no backtracking, whatever the input) over the raw lines finds candidates; the few lines that hold
one are decoded and looked at closely, string by string.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import re2  # type: ignore[import-untyped]

from tunedrop.dataset.lines import Lines
from tunedrop.dataset.report import Findings
from tunedrop.dataset.strict_json import Malformed, parse

_SECRETS = {
    "an OpenAI API key": r"sk-(?!ant-)[A-Za-z0-9_-]{20,}",
    "an Anthropic API key": r"sk-ant-[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"(?:AKIA|ASIA)[0-9A-Z]{16}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}",
    "a GitLab token": r"glpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a Stripe key": r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "a Google API key": r"AIza[A-Za-z0-9_-]{35}",
    "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "a JSON web token": r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
}
_PRIVATE_KEY = r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY"
_EMAIL = r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}"
_CARD = r"\d(?:[ -]?\d){12,18}"
_TELEPHONE = r"\+\d(?:[ .()/-]{0,2}\d){7,14}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}"

#: What a raw line holds, at the least, if one of its strings holds something of the kinds above.
_CANDIDATE = "|".join(
    (
        r"sk-[A-Za-z0-9_-]{20}",
        r"(?:AKIA|ASIA)[0-9A-Z]{16}",
        r"gh[pousr]_[A-Za-z0-9]{20}|github_pat_|glpat-|xox[abeoprs]-|[rs]k_(?:live|test)_|AIza|hf_[A-Za-z0-9]{30}",
        r"eyJ[A-Za-z0-9_-]{8,}\.eyJ",
        r"-----BEGIN ",
        r"[A-Za-z0-9_%+-]@[A-Za-z0-9]",
        r"\d(?:[ -]?\d){12}",
        r"(?:\+|\\u002[bB])\d(?:[ .()/-]{0,2}\d){7}|\d{3}\)? ?[.-]?\d{3}[ .-]\d{4}",
    )
)


def _candidates() -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, of whatever encoding
    options.never_capture = True
    return re2.compile(_CANDIDATE.encode(), options)


_EXACT = tuple(
    (kind, re.compile(pattern, re.ASCII))
    for kind, pattern in (
        *((kind, rf"(?<![A-Za-z0-9_-])(?:{pattern})") for kind, pattern in _SECRETS.items()),
        ("a private key", _PRIVATE_KEY),
        ("an e-mail address", rf"(?<![A-Za-z0-9._%+-]){_EMAIL}(?![A-Za-z0-9-])"),
        ("a payment card number", rf"(?<![0-9.])(?<!\d[ -]){_CARD}(?![ -]?\d)"),
        ("a telephone number", rf"(?<![0-9A-Za-z.+-])(?:{_TELEPHONE})(?![0-9A-Za-z]|[.-]\d)"),
    )
)


def kinds_in(text: str) -> set[str]:
    """The kinds of sensitive content in a text."""
    return {
        kind
        for kind, pattern in _EXACT
        if any(kind != "a payment card number" or _is_card(match[0]) for match in pattern.finditer(text))
    }


class Scan:
    """Searches the lines of a file; what it finds becomes a warning, or an error where ``refuse`` is set."""

    def __init__(self, findings: Findings, *, refuse: bool) -> None:
        self._report = findings.error if refuse else findings.warning
        self._candidates = _candidates()

    def search(self, block: Lines, first_line: int) -> None:
        """Search consecutive lines, the first of which has the number ``first_line``."""
        last = -1
        for match in self._candidates.finditer(block.text, block.start, block.end):
            index = bisect_right(block.starts, match.start() - block.start) - 1
            if index == last:
                continue
            last = index
            for kind in sorted(_kinds_in_line(block.lines[index])):
                remedy = f"looks like {kind}; remove it, or replace it by a placeholder"
                self._report("sensitive_content", remedy, first_line + index)


def _kinds_in_line(line: bytes) -> set[str]:
    try:
        strings = _strings(parse(line))
    except Malformed:
        strings = iter((line.decode(errors="replace"),))
    return {kind for text in strings for kind in kinds_in(text)}


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
    """Whether digits are those of a payment card: the issuers' first digits, and Luhn's sum."""
    digits = [int(character) for character in text if character in "0123456789"]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return digits[0] in (2, 3, 4, 5, 6) and (sum(digits[-1::-2]) + doubled) % 10 == 0 and len(set(digits)) > 1
