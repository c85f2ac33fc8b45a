"""What a check answers: findings, and the report that holds them."""

from __future__ import annotations

from typing import Literal

import msgspec

FileName = Literal["training", "validation", "job"]
Format = Literal["chat", "preference", "reinforcement", "completion"]


class Finding(msgspec.Struct, frozen=True):
    """One thing to know about one place.

    ``line`` counts from 1 and is None where the finding is about the whole file; ``path`` is the JSON path inside the
    line (``messages[2].content``), None where it is about the whole line. The message holds no text of the dataset.
    """

    file: FileName
    line: int | None
    code: str
    path: str | None
    message: str


class Tokens(msgspec.Struct, frozen=True):
    """Token counts of the training file's examples, uncut; ``over_limit`` of them will be cut."""

    encoding: str
    total: int
    p50: int
    p95: int
    max: int
    over_limit: int


class Estimate(msgspec.Struct, frozen=True):
    """What training will be billed: US dollars, or None where no price is known; ``price_date`` is an ISO date."""

    epochs: int
    billable_tokens: int
    usd: float | None
    price_date: str | None


class Report(msgspec.Struct, frozen=True):
    """The verdict on a dataset.

    ``examples``, ``bytes``, ``sha256`` (hex, of the bytes as they were read; None where nobody wants it), ``tokens``
    and ``estimate`` are the training file's; the findings are those of every file that was looked at. The lists are
    bounded, the counts are not.
    """

    valid: bool
    format: Format | None
    examples: int
    bytes: int
    sha256: str | None
    error_count: int
    errors: tuple[Finding, ...]
    warning_count: int
    warnings: tuple[Finding, ...]
    tokens: Tokens | None = None
    estimate: Estimate | None = None

    def to_json(self) -> str:
        """The report as one JSON object: what ``tunedrop check --json`` prints and ``report.json`` holds."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "sha256"}
        return msgspec.json.encode(shown).decode()


class Findings:
    """Collects findings of one origin: keeps the first ``limit`` errors and warnings, counts them all."""

    def __init__(self, file: FileName, limit: int) -> None:
        self.file = file
        self.limit = limit
        self.errors: list[Finding] = []
        self.warnings: list[Finding] = []
        self.error_count = 0
        self.warning_count = 0

    def error(
        self,
        code: str,
        message: str,
        line: int | None = None,
        path: str | None = None,
        file: FileName | None = None,
    ) -> None:
        """Record an error, of this file unless another is named: the dataset is rejected."""
        self.error_count += 1
        if len(self.errors) < self.limit:
            self.errors.append(Finding(file or self.file, line, code, path, message))

    def warning(
        self,
        code: str,
        message: str,
        line: int | None = None,
        path: str | None = None,
        file: FileName | None = None,
    ) -> None:
        """Record a warning, of this file unless another is named: the run goes on."""
        self.warning_count += 1
        if len(self.warnings) < self.limit:
            self.warnings.append(Finding(file or self.file, line, code, path, message))

    def absorb(self, other: Findings) -> None:
        """Add the findings of another origin, in the order of lines; those about a whole file come last."""
        self.error_count += other.error_count
        self.warning_count += other.warning_count
        self.errors = sorted(self.errors + other.errors, key=_by_line)[: self.limit]
        self.warnings = sorted(self.warnings + other.warnings, key=_by_line)[: self.limit]


def _by_line(finding: Finding) -> tuple[bool, int]:
    return finding.line is None, finding.line or 0
