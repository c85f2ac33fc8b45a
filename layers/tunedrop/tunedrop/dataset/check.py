"""The check of one file: bytes in, report out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from tunedrop.dataset import opening
from tunedrop.dataset.fingerprints import NONE, Fingerprints, fingerprint
from tunedrop.dataset.formats import ExampleRules, infer, is_another, rules_of
from tunedrop.dataset.lines import LineSplitter, TooLong
from tunedrop.dataset.profile import DataProfile, Method
from tunedrop.dataset.report import FileName, Findings, Format, Report
from tunedrop.dataset.strict_json import Malformed, parse
from tunedrop.dataset.values import Line
from tunedrop.prices import TrainingModel
from tunedrop.tokens import TokenCounter

#: Bytes of a line that is longer than any example; the line is an error and is never held in memory.
MAX_LINE = 16 << 20

_FORMATS: dict[Method, tuple[Format, ...]] = {
    "supervised": ("chat", "completion"),
    "dpo": ("preference",),
    "reinforcement": ("reinforcement",),
}
_METHODS: dict[Format, Method] = {
    "chat": "supervised",
    "completion": "supervised",
    "preference": "dpo",
    "reinforcement": "reinforcement",
}


class DatasetCheck:
    """Checks one file while it streams by: ``feed`` it chunks of bytes, then ``finish`` for the report.

    Memory stays bounded whatever the file's size and whatever is in it. Nothing but the report is remembered of the
    data. ``method`` and ``model`` come from the job specification; ``format`` is the training file's where ``file`` is
    a validation file. Without ``tokens`` nothing is counted, without ``model`` nothing is priced, and with ``scan``
    false no sensitive content is searched.
    """

    def __init__(
        self,
        file: FileName = "training",
        *,
        method: Method | None = None,
        format: Format | None = None,  # noqa: A002 (the report's own word)
        profile: DataProfile | None = None,
        tokens: TokenCounter | None = None,
        model: TrainingModel | None = None,
        epochs: int | None = None,
        scan: bool = True,
        refuse_sensitive: bool = False,
        max_findings: int = 100,
        max_line: int = MAX_LINE,
    ) -> None:
        self.file = file
        self.method = method
        self.format = format
        self.findings = Findings(file, max_findings)
        self.fingerprints = Fingerprints()
        self._profile = profile or DataProfile()
        self._tokens = tokens
        self._model = model
        self._epochs = epochs
        self._scan = scan
        self._refuse_sensitive = refuse_sensitive
        self._rules: ExampleRules | None = rules_of(format, self._profile) if format else None
        self._splitter = LineSplitter(max_line)
        self._max_line = max_line
        self._opening: bytes | None = b""  # None once it has been looked at
        self._unreadable = False
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._line = 0  # the last line that was looked at
        self._offset = 0  # of the next line in the file
        self._examples = 0
        self._blank_lines = 0
        self._first_blank_line: int | None = None
        self._examples_with_images = 0
        self._report: Report | None = None

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the file; chunks may be of any size and end anywhere."""
        self._sha256.update(chunk)
        self._size += len(chunk)
        if self._opening is not None:
            self._opening += chunk
            if len(self._opening) < opening.ENOUGH:
                return
            chunk = self._open()
        self._split(chunk)

    def finish(self) -> Report:
        """The report; the file has ended."""
        if self._report is None:
            if self._opening is not None:
                self._split(self._open())
            for lines in self._splitter.finish():
                self._look_at(lines)
            if not self._unreadable:
                self._judge_file()
            self._report = self._write_report()
        return self._report

    def for_validation(self) -> DatasetCheck:
        """A check for the validation file that belongs to this training file, with the same options."""
        return DatasetCheck(
            "validation",
            method=self.method,
            format=self.format,
            profile=self._profile,
            scan=self._scan,
            refuse_sensitive=self._refuse_sensitive,
            max_findings=self.findings.limit,
            max_line=self._max_line,
        )

    def _open(self) -> bytes:
        """Look at the opening of the file; answers what of it is data."""
        start = self._opening or b""
        self._opening = None
        if kind := opening.compression(start):
            self.findings.error("compressed", f"this is a {kind} file; unpack it: the file is plain JSON lines")
            self._unreadable = True
        elif opening.is_wide(start):
            self.findings.error("not_utf8", "byte 1 of the file begins UTF-16 or UTF-32; save the file as UTF-8", 1)
            self._unreadable = True
        elif start.startswith(opening.BYTE_ORDER_MARK):
            self.findings.warning("byte_order_mark", "the file begins with a byte order mark; it is not uploaded", 1)
            self._offset = len(opening.BYTE_ORDER_MARK)
            return start[self._offset :]
        return start

    def _split(self, data: bytes) -> None:
        if not self._unreadable:
            for lines in self._splitter.feed(data):
                self._look_at(lines)

    def _look_at(self, lines: Sequence[bytes | TooLong]) -> None:
        numbers = []
        for line in lines:
            self._line += 1
            numbers.append(self._judge_line(line))
            self._offset += len(line) + 1
        self.fingerprints.extend(numbers)

    def _judge_line(self, line: bytes | TooLong) -> int:
        """Apply every rule to one line; answers its example's fingerprint."""
        if isinstance(line, TooLong):
            self._examples += 1
            remedy = f"{len(line)} bytes; a line has at most {self._max_line} before its line end"
            self.findings.error("line_too_long", remedy, self._line)
            return NONE
        if not line.strip(b" \t\r"):
            self._blank_lines += 1
            self._first_blank_line = self._first_blank_line or self._line
            return NONE
        self._examples += 1
        try:
            value = parse(line)
        except Malformed as problem:
            self._report_malformed(problem)
            return NONE
        if not isinstance(value, dict):
            self.findings.error("data_type", "a line is a JSON object; write the example as one", self._line)
            return NONE
        self._judge_example(value)
        return fingerprint(value)

    def _report_malformed(self, problem: Malformed) -> None:
        message = problem.message
        if problem.code == "not_utf8":
            message = f"byte {self._offset + problem.position + 1} of the file is not UTF-8; save the file as UTF-8"
        self.findings.error(problem.code, message, self._line)

    def _judge_example(self, example: dict[str, Any]) -> None:
        if self._rules is None or self.format is None:
            self.format = self._choose_format(example)
            self._rules = rules_of(self.format, self._profile)
        place = Line(self.findings, self._line)
        if is_another(example, self.format):
            place.error("mixed_formats", None, f"this example is of another format than {self.format}, the file's")
            return
        if self._rules.check(place, example):
            self._examples_with_images += 1

    def _choose_format(self, example: dict[str, Any]) -> Format:
        inferred = infer(example)
        if self.method is None:
            return inferred
        for name in _FORMATS[self.method]:
            if not is_another(example, name):
                return name
        remedy = (
            f"the method {self.method} does not fit the {inferred} examples of the file; choose {_METHODS[inferred]}"
        )
        self.findings.error("wrong_method", remedy, path="method", file="job")
        return inferred

    def _judge_file(self) -> None:
        """The rules about the file as a whole."""
        findings = self.findings
        if self._blank_lines:
            remedy = f"{self._blank_lines} blank lines are skipped"
            findings.warning("blank_line", remedy, self._first_blank_line)
        if not self._examples:
            findings.error("empty_file", "there is no example in the file; write one JSON object on each line")
        elif self.file == "training":
            method = self.method or _METHODS[self.format or "chat"]
            least = self._profile.minimum_examples.get(method, 0)
            if self._examples < least:
                remedy = f"{self._examples} examples; {method} takes at least {least}: add {least - self._examples}"
                findings.error("too_few_examples", remedy)
        most = self._profile.max_examples_with_images
        if self._examples_with_images > most:
            findings.error("too_many_images", f"{self._examples_with_images} examples with images; at most {most}")
        for line, earlier in self.fingerprints.repeats():
            findings.warning("duplicate_example", f"the same example as line {earlier}; remove one of the two", line)

    def _write_report(self) -> Report:
        findings = self.findings
        return Report(
            valid=findings.error_count == 0,
            format=self.format,
            examples=self._examples,
            bytes=self._size,
            sha256=self._sha256.hexdigest(),
            error_count=findings.error_count,
            errors=tuple(findings.errors),
            warning_count=findings.warning_count,
            warnings=tuple(findings.warnings),
        )
