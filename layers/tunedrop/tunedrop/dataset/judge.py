"""Judges a file's lines, one after the other."""

from __future__ import annotations

from typing import Any

import msgspec

from tunedrop.dataset.counting import TokenTally, countable
from tunedrop.dataset.fingerprints import NONE, fingerprint
from tunedrop.dataset.formats import ExampleRules, infer, is_another, rules_of
from tunedrop.dataset.lines import Lines
from tunedrop.dataset.plain import NOT_PLAIN, PlainExample, decoders_of
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
        self._decoders: tuple[msgspec.json.Decoder[PlainExample], ...] = ()  # those of the plainest examples first
        if format:
            self._adopt(format)

    def judge(self, block: Lines, first_line: int, offset: int) -> list[int]:
        """Judge consecutive lines; answers the fingerprint of each one's example.

        The first of them has the number ``first_line`` and begins at byte ``offset`` of the file.
        """
        self.examples += len(block)
        if examples := self._decode_together(block):
            return [
                self._settle(example, number) or self._judge_line(block, number - first_line, number, offset)
                for number, example in enumerate(examples, first_line)
            ]
        return [self._judge_line(block, index, first_line + index, offset) for index in range(len(block))]

    def _decode_together(self, block: Lines) -> list[PlainExample]:
        """The examples of lines all of which are of the plainest type, at the cost of a single call; else none."""
        if not self._decoders or not block.are_objects_apart():
            return []
        try:
            examples = self._decoders[0].decode_lines(memoryview(block.text)[block.start : block.end])
        except NOT_PLAIN:
            return []
        # Each line end parts two examples, so that with as many examples as lines each line holds exactly one.
        return examples if len(examples) == len(block) else []

    def _judge_line(self, block: Lines, index: int, number: int, offset: int) -> int:
        """Judge one line of the block; answers its example's fingerprint."""
        try:
            return self._judge_alone(block[index], number)
        except Malformed as problem:
            message = problem.message
            if problem.code == "not_utf8":
                place = offset + block.start_of(index) - block.start + problem.position + 1
                message = f"byte {place} of the file is not UTF-8; save the file as UTF-8"
            elif problem.code == "invalid_json":
                message += "; write each example as one JSON object on a line of its own"
            self._findings.error(problem.code, message, number)
            return NONE

    def _judge_alone(self, line: bytes, number: int) -> int:
        """Judge a line by the first type that it is of, else in full; answers its example's fingerprint."""
        if len(line) > MAX_VALUES:  # it has a block of its own, hence is not of the plainest type
            refuse_bulk(line)
        for decoder in self._decoders:
            try:
                example = decoder.decode(line)
            except NOT_PLAIN:
                continue
            if settled := self._settle(example, number):
                return settled
        return self._judge_in_full(line, number)

    def _settle(self, example: PlainExample, number: int) -> int:
        """The fingerprint of a plain example that obeys the rules; NONE where only the rules in full can tell."""
        if not example.settle(self._findings, number):
            return NONE
        if self._tally:
            self._tally.take(number, example.countable())
        return hash(example) or 1

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
            return self._judge_alone(line, number)
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
        self._decoders = decoders_of(name)
