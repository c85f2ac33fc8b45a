"""Judges a file's lines, one after the other."""

from __future__ import annotations

from typing import Any

import msgspec

from tunedrop.dataset.counting import TokenTally, countable
from tunedrop.dataset.fingerprints import NONE, fingerprint
from tunedrop.dataset.formats import ExampleRules, infer, is_another, rules_of
from tunedrop.dataset.lines import Lines
from tunedrop.dataset.plain import NOT_PLAIN, Decoder, PlainExample, decoders_of
from tunedrop.dataset.report import Findings, Format
from tunedrop.dataset.strict_json import MAX_VALUES, Malformed, parse, refuse_bulk
from tunedrop.dataset.values import Line
from tunedrop.providers import DataProfile, Method

_FORMATS: dict[Method, tuple[Format, ...]] = {
    "supervised": ("chat", "completion"),
    "dpo": ("preference",),
    "reinforcement": ("reinforcement",),
}
METHODS: dict[Format, Method] = {name: method for method, names in _FORMATS.items() for name in names}


class Judge:
    """Applies the rules of a format to lines; the first object decides the format where none is given."""

    def __init__(
        self,
        findings: Findings,
        profile: DataProfile,
        method: Method | None,
        format: Format | None,  # noqa: A002 (the report's own word)
        tally: TokenTally | None,
    ) -> None:
        self.examples = 0
        self.examples_with_images = 0
        self.blank_lines = 0
        self.first_blank_line: int | None = None
        self.format: Format | None = None
        self._findings = findings
        self._profile = profile
        self._method = method
        self._tally = tally
        self._rules: ExampleRules | None = None
        self._decode: Decoder = _nothing  # of the plainest examples, then those of less plain ones
        self._further: tuple[Decoder, ...] = ()
        if format:
            self._adopt(format)

    def judge(self, block: Lines, first_line: int, offset: int) -> list[int]:
        """Judge consecutive lines; answers the fingerprint of each one's example.

        The first of them has the number ``first_line`` and begins at byte ``offset`` of the file.
        """
        fingerprints: list[int] = []
        for number, line in enumerate(block.lines, first_line):
            try:
                example = self._decode(line)
            except NOT_PLAIN:
                pass
            else:
                if example.settle(self._findings, number):
                    fingerprints.append(hash(example) or 1)
                    if self._tally:
                        self._tally.take(number, example.countable())
                    continue
            try:
                fingerprints.append(self._judge_further(line, number, self._further))
            except Malformed as problem:
                fingerprints.append(NONE)
                message = problem.message
                if problem.code == "not_utf8":
                    place = offset + block.starts[number - first_line] + problem.position + 1
                    message = f"byte {place} of the file is not UTF-8; save the file as UTF-8"
                elif problem.code == "invalid_json":
                    message += "; write each example as one JSON object on a line of its own"
                self._findings.error(problem.code, message, number)
        self.examples += len(block.lines)
        return fingerprints

    def _judge_further(self, line: bytes, number: int, decoders: tuple[Decoder, ...]) -> int:
        """Judge a line by the first type that it is of, else in full; answers its example's fingerprint."""
        if len(line) > MAX_VALUES:
            refuse_bulk(line)
        for decode in decoders:
            try:
                example = decode(line)
            except NOT_PLAIN:
                continue
            if example.settle(self._findings, number):
                if self._tally:
                    self._tally.take(number, example.countable())
                return hash(example) or 1
        return self._judge_in_full(line, number)

    def _judge_in_full(self, line: bytes, number: int) -> int:
        if not line.strip(b" \t\r\n"):
            self.examples -= 1
            self.blank_lines += 1
            self.first_blank_line = self.first_blank_line or number
            return NONE
        value = parse(line)
        if not isinstance(value, dict):
            self._findings.error("data_type", "a line is a JSON object; write the example as one", number)
            return NONE
        if self.format is None or self._rules is None:
            self._adopt(self._choose(value))
            return self._judge_further(line, number, (self._decode, *self._further))
        place = Line(self._findings, number)
        if is_another(value, self.format):
            place.error("mixed_formats", None, f"this example is of another format than {self.format}, the file's")
        elif self._rules.check(place, value):
            self.examples_with_images += 1
        if self._tally and place.valid:
            self._tally.take(number, countable(value, self.format))
        return fingerprint(value)

    def _choose(self, example: dict[str, Any]) -> Format:
        inferred = infer(example)
        if self._method is None:
            return inferred
        for name in _FORMATS[self._method]:
            if not is_another(example, name):
                return name
        remedy = f"{self._method} does not fit the {inferred} examples of the file; choose {METHODS[inferred]}"
        self._findings.error("wrong_method", remedy, path="method", file="job")
        return inferred

    def _adopt(self, name: Format) -> None:
        self.format = name
        self._rules = rules_of(name, self._profile)
        self._decode, *further = decoders_of(name) or (_nothing,)
        self._further = tuple(further)


def _nothing(_line: bytes) -> PlainExample:
    """Stands for a decoder where there is none."""
    raise msgspec.DecodeError
