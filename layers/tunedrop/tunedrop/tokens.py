"""Counts tokens as the models' own tokenizers do."""

from __future__ import annotations

from typing import Protocol


class TokenCounter(Protocol):
    """Counts the tokens of texts; texts that look like special tokens count as ordinary text."""

    encoding: str

    def count(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text."""
