"""Counts tokens as the models' own tokenizers do."""

from __future__ import annotations

from typing import Protocol


class TokenCounter(Protocol):
    """Counts the tokens of texts; texts that look like special tokens count as ordinary text."""

    encoding: str

    def count(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text."""


class Tokenizer:
    """Counts with the vocabularies that toktok carries inside its wheel, hence without a download.

    ``encoding`` is ``cl100k_base`` or ``o200k_base``; the texts of a batch are shared out over ``threads`` threads.
    """

    def __init__(self, encoding: str, threads: int = 1) -> None:
        import toktok  # type: ignore[import-untyped]  # no types in it; 8 MB, for those who count

        self.encoding = encoding
        self._threads = threads
        self._count = toktok.batch_count

    def count(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text."""
        counts: list[int] = self._count(texts, self.encoding, threads=self._threads)
        return counts
