"""Feeds the dataset check whatever a file may hold: no input may crash it, hang it or fill the memory.

    python tests/fuzz/dataset.py [--seconds 60] [--seed N]

Inputs are good files of every format, damaged: bytes flipped, cut, repeated, joined with one another and with fragments
that parsers stumble over, in chunks of any size. After each, the report is held against what holds for every report.
The first input that breaks a promise is written to a file and the run ends with 1.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the examples' builders

from tunedrop.dataset import DatasetCheck, Report
from tunedrop.job_specification import parse
from tunedrop.tokens import Tokenizer

from tests.unit.dataset.builders import ANSWER, CALLING, IMAGE, SYSTEM, TOOL, USER, chat, file_with, numbered

FRAGMENTS = [
    *(
        b"\xef\xbb\xbf",
        b"\x1f\x8b",
        b"\xff\xfe",
        b"\x00",
        b"\xed\xa0\x80",
        b"\xf0\x9f",
        b"\r",
        b"\n",
        b"\r\n",
        b" " * 99,
    ),
    *(b"NaN", b"-", b"1e999", b"0" * 5000, b"\\ud800", b"\\u0000", b'"', b"\\", b"null", b"true", b"{}", b"[]", b","),
    *(b"[" * 1000, b'{"a":' * 100_000, b"]" * 200, b"[]," * 5000, b'{"":' * 129 + b"1" + b"}" * 129),
    *(b'"role":"tool"', b'"content":[]', b'"weight":0', b'"tool_calls":[{}]', b'"messages":', b'"prompt":"x"'),
    *(b"4111 1111 1111 1111", b"ann@example.org", b"+49 30 1234567", b"sk-" + b"a" * 40, b"@" * 999, b"1-" * 999),
    *(b"x" * 70_000, "日本語🎉\u202e".encode(), b"<|endoftext|>" * 9),
]
SECONDS_PER_INPUT = 10
MEGABYTES = 400


def seeds() -> list[bytes]:
    """Good files to begin with."""
    tools = chat(SYSTEM, USER, CALLING, ANSWER, numbered("chat", 1)["messages"][2], tools=[TOOL])
    images = chat(SYSTEM, {"role": "user", "content": [IMAGE]}, numbered("chat", 1)["messages"][2])
    kinds = ("chat", "preference", "reinforcement", "completion")
    return [file_with(tools), file_with(images), *(file_with(numbered(kind, 99), kind) for kind in kinds)]


def damaged(source: random.Random, corpus: list[bytes]) -> bytes:
    """An input that is a file of the corpus no more."""
    data = bytearray(source.choice(corpus))
    for _ in range(source.randint(0, 6)):
        start = source.randint(0, len(data))
        end = min(len(data), start + source.choice((0, 1, 1, 5, 80)))
        match source.randint(0, 4):
            case 0:
                data[start:end] = source.choice(FRAGMENTS)
            case 1:
                data[start:end] = source.randbytes(end - start)
            case 2:
                data[start:end] = data[start:end] * source.choice((0, 2, 50))
            case 3:
                data = data[:start] if source.random() < 0.3 else data + source.choice(corpus)
            case _:
                data[start:end] = source.choice((b'"', b",", b":", b"{", b"}", b"[", b"]", b"\n", b"\\"))
    return bytes(data)


def run_check(source: random.Random, data: bytes) -> Report:
    """Check ``data`` in chunks of any size."""
    check = DatasetCheck(
        method=source.choice((None, None, "supervised", "dpo", "reinforcement")),
        tokens=Tokenizer(source.choice(("o200k_base", "cl100k_base"))) if source.random() < 0.5 else None,
        max_findings=source.choice((1, 100)),
        max_line=source.choice((100, 16 << 20)),
    )
    size = source.choice((1 if len(data) < 20_000 else 1000, 777, 1 << 20))
    for start in range(0, len(data), size):
        check.feed(data[start : start + size])
    return check.finish()


def assert_promises(report: Report, data: bytes, seconds: float) -> None:
    """What holds for every report."""
    assert report.bytes == len(data)
    assert report.valid == (report.error_count == 0)
    assert len(report.errors) <= report.error_count
    lines = data.count(b"\n") + 1
    assert all(1 <= f.line <= lines for f in (*report.errors, *report.warnings) if f.line is not None)
    assert report.examples <= lines
    assert seconds < SECONDS_PER_INPUT, f"{seconds:.1f} s"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert peak < MEGABYTES, f"{peak:.0f} MB"


def main() -> int:
    """Fuzz for a while."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args()
    source, corpus, inputs = random.Random(options.seed), seeds(), 0
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        data = damaged(source, corpus)
        try:
            start = time.monotonic()
            report = run_check(source, data)
            assert_promises(report, data, time.monotonic() - start)
            parse(data)
        except Exception:  # noqa: BLE001 (whatever it is, it is what the fuzzer looks for)
            traceback.print_exc()
            with tempfile.NamedTemporaryFile(prefix="tunedrop-fuzz-", suffix=".jsonl", delete=False) as kept:
                kept.write(data)
            print(f"seed {options.seed}, input {inputs}: {kept.name}")
            return 1
        inputs += 1
    print(f"{inputs} inputs, seed {options.seed}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
