"""The check of one file: bytes in, report out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunedrop.dataset import opening
from tunedrop.dataset.aside import Aside
from tunedrop.dataset.counting import TokenTally
from tunedrop.dataset.fingerprints import NONE, Fingerprints
from tunedrop.dataset.judge import METHODS, Judge
from tunedrop.dataset.lines import Lines, LineSplitter, TooLong
from tunedrop.dataset.report import FileName, Findings, Format, Report
from tunedrop.prices import TrainingModel
from tunedrop.providers import DataProfile, Method

if TYPE_CHECKING:
    from hashlib import _Hash

    from tunedrop.dataset.sensitive import Scan
    from tunedrop.tokens import TokenCounter

#: Bytes of a line that is longer than any example; the line is an error and is never held in memory.
MAX_LINE = 16 << 20


class DatasetCheck:
    """Checks one file while it streams by: ``feed`` it chunks of bytes, then ``finish`` for the report.

    Memory stays bounded whatever the file's size and whatever is in it. ``method``, ``epochs`` and the model's name
    come from the job specification; ``format`` is the training file's where ``file`` is a validation file. Without
    ``tokens`` nothing is counted, without ``model`` nothing is estimated, and with ``scan`` false no sensitive content
    is searched; ``refuse_sensitive`` makes what is found an error. With ``sha256`` false the report has no such sum.
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
        sha256: bool = True,
        max_findings: int = 100,
        max_line: int = MAX_LINE,
    ) -> None:
        self.file = file
        self.max_findings = max_findings
        self.fingerprints = Fingerprints()
        self._profile = profile or DataProfile()
        self._method = method
        self._model = model
        self._epochs = epochs
        self._max_line = max_line
        self._refuse_sensitive = refuse_sensitive
        # Each origin has findings of its own: what runs beside the parse must not change which ones are kept.
        self._findings = Findings(file, max_findings)
        self._of_scan = Findings(file, max_findings)
        self._of_tokens = Findings(file, max_findings)
        self._aside = Aside()
        self._scan: Scan | None = None
        if scan:
            from tunedrop.dataset.sensitive import Scan  # its pattern engine is loaded only where it is wanted

            self._scan = Scan(self._of_scan, refuse=refuse_sensitive)
        self._tally = TokenTally(tokens, self._token_limit(), self._of_tokens) if tokens else None
        self._judge = Judge(self._findings, self._profile, method, format, self._tally)
        self._splitter = LineSplitter(max_line)
        self._opening: bytes | None = b""  # None once it has been looked at
        self._unreadable = False
        self._sha256: _Hash | None = None
        if sha256:
            from hashlib import sha256 as new_sha256

            self._sha256 = new_sha256()
        self._size = 0
        self._next_line = 1
        self._offset = 0  # of the next line in the file
        self._report: Report | None = None

    @property
    def is_broken(self) -> bool:
        """Whether an error has been found so far."""
        return self._findings.error_count > 0

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the file; chunks may be of any size and end anywhere."""
        if self._sha256:
            self._aside.run(self._sha256.update, chunk)
        self._size += len(chunk)
        if self._opening is not None:
            self._opening += chunk
            if len(self._opening) < opening.ENOUGH:
                return
            chunk = self._open()
        if not self._unreadable:
            for block in self._splitter.feed(chunk):
                self._look_at(block)

    def finish(self) -> Report:
        """The report, the same however often it is asked for; the file has ended."""
        if self._report is None:
            if self._opening is not None:
                rest = self._open()
                if not self._unreadable:
                    for block in self._splitter.feed(rest):
                        self._look_at(block)
            for block in self._splitter.finish():
                self._look_at(block)
            if not self._unreadable:
                self._judge_file()
            self._report = self._write_report()
        return self._report

    def for_validation(self) -> DatasetCheck:
        """A check with the same options for the validation file of this training file, which has ended."""
        return DatasetCheck(
            "validation",
            method=self._method,
            format=self.finish().format,
            profile=self._profile,
            scan=self._scan is not None,
            refuse_sensitive=self._refuse_sensitive,
            sha256=self._sha256 is not None,
            max_findings=self.max_findings,
            max_line=self._max_line,
        )

    def histogram(self) -> dict[int, int]:
        """How many examples have which number of tokens; empty where none were counted."""
        return self._tally.histogram() if self._tally else {}

    def _token_limit(self) -> int | None:
        return self._profile.token_limit or (self._model.token_limit if self._model else None)

    def _open(self) -> bytes:
        """Look at the opening of the file; answers what of it is data."""
        start = self._opening or b""
        self._opening = None
        if kind := opening.compression(start):
            self._findings.error("compressed", f"this is a {kind} file; unpack it: the file is plain JSON lines")
            self._unreadable = True
        elif opening.is_wide(start):
            self._findings.error("not_utf8", "byte 1 of the file begins UTF-16 or UTF-32; save the file as UTF-8", 1)
            self._unreadable = True
        elif start.startswith(opening.BYTE_ORDER_MARK):
            self._findings.warning("byte_order_mark", "the file begins with a byte order mark; it is not uploaded", 1)
            self._offset = len(opening.BYTE_ORDER_MARK)
            return start[self._offset :]
        return start

    def _look_at(self, block: Lines | TooLong) -> None:
        if isinstance(block, TooLong):
            remedy = f"{block.size} bytes; a line has at most {self._max_line} before its line end"
            self._findings.error("line_too_long", remedy, self._next_line)
            self._judge.examples += 1
            self.fingerprints.extend([NONE])
            self._next_line += 1
        else:
            if self._scan:
                self._aside.run(self._scan.search, block, self._next_line)
            self.fingerprints.extend(self._judge.judge(block, self._next_line, self._offset))
            self._next_line += len(block)
            if self._tally:
                self._tally.advance(block.size)
        self._offset += block.size

    def _judge_file(self) -> None:
        """The rules about the file as a whole."""
        findings, judge = self._findings, self._judge
        if judge.blank_lines:
            remedy = f"{judge.blank_lines} blank lines are skipped; this is the first"
            findings.warning("blank_line", remedy, judge.first_blank_line)
        if not judge.examples:
            findings.error("empty_file", "there is no example in the file; write one JSON object on each line")
        elif self.file == "training":
            method = self._method or METHODS[judge.format or "chat"]
            least = self._profile.minimum_examples.get(method, 0)
            if judge.examples < least:
                remedy = f"{judge.examples} examples; {method} takes at least {least}: add {least - judge.examples}"
                findings.error("too_few_examples", remedy)
        most = self._profile.max_examples_with_images
        if judge.examples_with_images > most:
            findings.error("too_many_images", f"{judge.examples_with_images} examples with images; at most {most}")
        for line, earlier in self.fingerprints.repeats():
            findings.warning("duplicate_example", f"the same example as line {earlier}; remove one of the two", line)

    def _write_report(self) -> Report:
        self._aside.finish()
        tokens = self._tally.finish() if self._tally else None
        estimate = None
        findings = self._findings
        if self._tally and self._model and tokens:
            estimate = self._model.estimate(self._judge.examples, self._tally.billable, self._epochs)
            if self._model.name and estimate.usd is None:
                message = f"no training price is known for {self._model.name}: the cost is not estimated"
                self._of_tokens.warning("unknown_price", message, path="model", file="job")
        findings.absorb(self._of_scan)
        findings.absorb(self._of_tokens)
        return Report(
            valid=findings.error_count == 0,
            format=self._judge.format,
            examples=self._judge.examples,
            bytes=self._size,
            sha256=self._sha256.hexdigest() if self._sha256 else None,
            error_count=findings.error_count,
            errors=tuple(findings.errors),
            warning_count=findings.warning_count,
            warnings=tuple(findings.warnings),
            tokens=tokens,
            estimate=estimate,
        )
