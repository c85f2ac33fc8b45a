"""Looks at one JSON value with a sense of where it is in its line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tunedrop.dataset.report import Findings

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_PLACE = re.compile(r"\[\d+\]")
_WORDS_OF_THE_FORMATS = frozenset(
    {
        *("messages", "tools", "functions", "parallel_tool_calls", "input", "preferred_output", "non_preferred_output"),
        *("prompt", "completion", "role", "content", "name", "weight", "refusal", "tool_calls", "function_call"),
        *("tool_call_id", "id", "type", "function", "arguments", "description", "parameters", "strict", "text"),
        *("image_url", "url", "detail"),
    }
)


def child(path: str, key: str) -> str:
    """The path of a member; a key that may be text of the dataset rather than a name shows as ``*``."""
    shown = key if _PLAIN_KEY.fullmatch(key) else "*"
    return f"{path}.{shown}" if path else shown


def is_plain(path: str) -> bool:
    """Whether every key in a path looks like a name."""
    return all(_PLAIN_KEY.fullmatch(_PLACE.sub("", key)) for key in path.split("."))


def is_of_the_formats(path: str) -> bool:
    """Whether every key in a path is a word of the formats: no other may be told outside of the report."""
    return all(_PLACE.sub("", key) in _WORDS_OF_THE_FORMATS for key in path.split("."))


class Line:
    """The findings of one line: rules report to it, it remembers whether the line is still good."""

    def __init__(self, findings: Findings, number: int) -> None:
        self._findings = findings
        self.number = number
        self.valid = True

    def error(self, code: str, path: str | None, message: str) -> None:
        """Record an error at ``path``."""
        self.valid = False
        self._findings.error(code, message, self.number, path or None)

    def warning(self, code: str, path: str | None, message: str) -> None:
        """Record a warning at ``path``."""
        self._findings.warning(code, message, self.number, path or None)

    def only_keys(self, code: str, value: dict[str, Any], path: str, known: Iterable[str]) -> None:
        """Report every key of ``value`` that is not in ``known``; null counts as absent."""
        for key in value:
            if key not in known and value[key] is not None:
                self.error(code, child(path, key), f"this key is not known here; known are {', '.join(sorted(known))}")
