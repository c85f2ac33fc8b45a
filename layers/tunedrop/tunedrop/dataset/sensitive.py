"""Finds what looks like a secret or personal data: line and kind, never the text.

One linear pass (RE2: no backtracking, whatever the input) over the raw lines finds candidates; the few lines that hold
one are decoded and looked at closely, string by string.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import re2  # type: ignore[import-untyped]  # its wheel carries no types

from tunedrop.dataset.lines import Lines
from tunedrop.dataset.report import Findings
from tunedrop.dataset.strict_json import Malformed, parse, refuse_bulk

#: By kind, a pattern that begins with something rare, so that the search skips to it; what must not stand before it is
#: looked at from there, backwards.
_SECRETS = {
    "an OpenAI API key": r"sk-(?<![A-Za-z0-9_-]sk-)(?!ant-)[A-Za-z0-9_-]{20,}",
    "an Anthropic API key": r"sk-ant-(?<![A-Za-z0-9_-]sk-ant-)[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"A(?:KIA|SIA)(?<![A-Za-z0-9_-]....)[0-9A-Z]{16}",
    "a GitHub token": r"gh[pousr]_(?<![A-Za-z0-9_-]....)[A-Za-z0-9]{36,}",
    "a fine-grained GitHub token": r"github_pat_[A-Za-z0-9_]{22,}",
    "a GitLab token": r"glpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"xox[abeoprs]-(?<![A-Za-z0-9_-].....)[A-Za-z0-9-]{10,}",
    "a Stripe key": r"[rs]k_(?<![A-Za-z0-9_-]...)(?:live|test)_[A-Za-z0-9]{16,}",
    "a Google API key": r"AIza(?<![A-Za-z0-9_-]....)[A-Za-z0-9_-]{35}",
    "a Hugging Face token": r"hf_(?<![A-Za-z0-9_-]...)[A-Za-z0-9]{30,}",
    "a JSON web token": r"eyJ(?<![A-Za-z0-9_-]...)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY",
}
_EMAIL = r"@(?<=[A-Za-z0-9_]@)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
_CARD = r"[0-9](?<![0-9.][0-9])(?<![0-9][ -][0-9])(?:[ -]?[0-9]){12,18}(?![ -]?[0-9])"
_TELEPHONE = (
    r"(?:\+(?<![0-9A-Za-z.+-]\+)[0-9](?:[ .()/-]{0,2}[0-9]){7,14}"
    r"|\((?<![0-9A-Za-z.+-]\()[0-9]{3}\) ?[0-9]{3}[ .-][0-9]{4}"
    r"|[0-9](?<![0-9A-Za-z.+-][0-9])[0-9]{2}[.-][0-9]{3}[.-][0-9]{4})(?![0-9A-Za-z]|[.-][0-9])"
)

#: What a raw line holds, at the least, if one of its strings holds something of the kinds above.
_CANDIDATE = "|".join(
    (
        r"sk-[A-Za-z0-9_-]{20}",
        r"(?:AKIA|ASIA)[0-9A-Z]{16}",
        r"gh[pousr]_[A-Za-z0-9]{20}|github_pat_|glpat-|xox[abeoprs]-|[rs]k_(?:live|test)_|AIza|hf_[A-Za-z0-9]{30}",
        r"eyJ[A-Za-z0-9_-]{8,}\.eyJ",
        r"-----BEGIN ",
        r"\b@[A-Za-z0-9-]+\.[A-Za-z0-9]",
        r"\d(?:[ -]?\d){12}",
        r"(?:\+|\\u002[bB])\d(?:[ .()/-]{0,2}\d){7}|\d{3}\)? ?[.-]?\d{3}[ .-]\d{4}",
    )
)


def _candidates() -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, of whatever encoding
    options.never_capture = True
    return re2.compile(_CANDIDATE.encode(), options)


def _compiled(patterns: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {kind: re.compile(pattern, re.ASCII | re.DOTALL) for kind, pattern in patterns.items()}


#: What to look for where a candidate begins with one of these bytes; elsewhere it is a secret's.
_BY_FIRST_BYTE = dict.fromkeys(
    b"0123456789+\\", _compiled({"a payment card number": _CARD, "a telephone number": _TELEPHONE})
) | {ord("@"): _compiled({"an e-mail address": _EMAIL})}
_SECRET_PATTERNS = _compiled(_SECRETS)


class Scan:
    """Searches the lines of a file; what it finds becomes a warning, or an error where ``refuse`` is set."""

    def __init__(self, findings: Findings, *, refuse: bool) -> None:
        self._report = findings.error if refuse else findings.warning
        self._candidates = _candidates()

    def search(self, block: Lines, first_line: int) -> None:
        """Search consecutive lines, the first of which has the number ``first_line``."""
        wanted: dict[int, dict[str, re.Pattern[str]]] = {}  # what to look for, by the index of a line
        for match in self._candidates.finditer(block.text, block.start, block.end):
            position = match.start()
            index = bisect_right(block.ends, position)
            wanted.setdefault(index, {}).update(_BY_FIRST_BYTE.get(block.text[position], _SECRET_PATTERNS))
        for index, patterns in wanted.items():
            text = _text_of(block[index])
            for kind, pattern in sorted(patterns.items()):
                if any(kind != "a payment card number" or _is_card(match[0]) for match in pattern.finditer(text)):
                    remedy = f"looks like {kind}; remove it, or replace it by a placeholder"
                    self._report("sensitive_content", remedy, first_line + index)


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
    """Whether digits are those of a payment card: the issuers' first digits, and Luhn's sum."""
    digits = [int(character) for character in text if character in "0123456789"]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return digits[0] in (2, 3, 4, 5, 6) and (sum(digits[-1::-2]) + doubled) % 10 == 0 and len(set(digits)) > 1
