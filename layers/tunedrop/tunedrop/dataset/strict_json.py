"""JSON as RFC 8259 has it, and no deeper than is wise."""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from typing import Any

import msgspec

#: Levels of nesting that are accepted.
MAX_DEPTH = 128

#: Values that one line may hold: each costs up to 250 bytes of memory once it is decoded.
MAX_VALUES = 500_000

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


class Malformed(Exception):
    """The text is no JSON value: ``code`` and ``message`` of the finding, and where known the byte, from 0."""

    def __init__(self, code: str, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.position = position


def too_deep(text: bytes) -> bool:
    """Whether brackets outside of strings open more than MAX_DEPTH levels."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    steps = array("b", _STRING.sub(b"", text).translate(_BRACKETS, _NO_BRACKETS))
    return max(accumulate(steps), default=0) > MAX_DEPTH


def refuse_bulk(text: bytes) -> None:
    """Raise Malformed where decoding ``text`` would fill the memory, as 16 MiB of empty lists do (800 MB)."""
    if _values(text) > MAX_VALUES and _values(_STRING.sub(b"", text)) > MAX_VALUES:
        raise Malformed("line_too_long", f"more than {MAX_VALUES} values in one line; shorten it")


def _values(text: bytes) -> int:
    """The number of values at most; commas and brackets inside of strings count, too."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def is_json(text: str) -> bool:
    """Whether ``text`` is one JSON value that ``parse`` would take."""
    if text.count("[") + text.count("{") > MAX_DEPTH and too_deep(text.encode()):
        return False
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def parse(text: bytes) -> Any:
    """The one JSON value in ``text``; raises Malformed."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise Malformed("not_utf8", "a byte is not UTF-8; save the file as UTF-8", error.start) from None
    if too_deep(text):
        raise Malformed("nesting_too_deep", f"nested deeper than {MAX_DEPTH} levels; flatten the value")
    try:
        return msgspec.json.decode(text)
    except msgspec.ValidationError:
        raise Malformed("invalid_json", "not one JSON value: a number is out of range") from None
    except msgspec.DecodeError as error:
        raise Malformed("invalid_json", _sentence(str(error))) from None


def _sentence(reason: str) -> str:
    """The parser's reason, with its place as people count: from 1."""
    reason = reason.removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early")
    reason = re.sub(r"\(byte (\d+)\)", lambda place: f"at byte {int(place[1]) + 1}", reason)
    return f"not one JSON value: {reason}"
