"""Measures the dataset check: whole processes, paired runs, medians and ratios.

    python tests/bench/check.py [--megabytes 200] [--runs 5] [--memory]

Each round runs every contestant once, in turn, so that a disturbance of the machine meets all of them; a ratio is the
median of the rounds' ratios. The corpus is made of the text of Python's own library: the same on the same Python.

A full check keeps more than one processor busy by itself: tokens are counted beside the parse, and sensitive content is
searched. So however many threads count, it takes at least its processor time divided by the number of processors.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tunedrop

COMMAND = [sys.executable, "-m", "tunedrop.cli", "check", "--json"]

BARE_PARSE = """
import sys, orjson
with open(sys.argv[1], "rb") as lines:
    for line in lines:
        orjson.loads(line)
"""

# As a whole process it loads its vocabulary and parses the lines, as it must; what it prints is the counting alone.
TOKENIZER = """
import sys, time, orjson
from tunedrop.tokens import Tokenizer
counter = Tokenizer("o200k_base", int(sys.argv[2]))
counter.count(["warm"])
seconds, cpu_seconds, batch, size = 0.0, 0.0, [], 0
def count():
    global seconds, cpu_seconds, batch, size
    start, cpu_start = time.perf_counter(), time.process_time()
    counter.count(batch)
    seconds += time.perf_counter() - start
    cpu_seconds += time.process_time() - cpu_start
    batch, size = [], 0
with open(sys.argv[1], "rb") as lines:
    for line in lines:
        texts = [message["content"] or "" for message in orjson.loads(line)["messages"]]
        batch += texts
        size += len(line)
        if size >= 1 << 20:
            count()
count()
print(seconds, cpu_seconds)
"""

COUNTING = "tokenizer, counting alone"

# The checks of OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning"), without its statistics.
COOKBOOK = """
import sys, json
from collections import defaultdict
with open(sys.argv[1], encoding="utf-8") as lines:
    dataset = [json.loads(line) for line in lines]
errors = defaultdict(int)
for example in dataset:
    messages = example.get("messages", None) if isinstance(example, dict) else None
    if not messages:
        errors["missing_messages_list"] += 1
        continue
    for message in messages:
        if "role" not in message or "content" not in message:
            errors["message_missing_key"] += 1
        if any(k not in ("role", "content", "name", "function_call", "weight") for k in message):
            errors["message_unrecognized_key"] += 1
        if message.get("role", None) not in ("system", "user", "assistant", "function"):
            errors["unrecognized_role"] += 1
        content = message.get("content", None)
        if (not content and not message.get("function_call", None)) or not isinstance(content, str):
            errors["missing_content"] += 1
    if not any(message.get("role", None) == "assistant" for message in messages):
        errors["example_missing_assistant_message"] += 1
"""

# What `together files check` calls; the command itself asks for an account first, even for a file that is here.
TOGETHER = """
import pathlib, sys
from together.lib.utils.files import check_file
if not check_file(pathlib.Path(sys.argv[1]))["is_check_passed"]:
    sys.exit("together found the corpus invalid")
"""


def texts() -> Iterator[str]:
    """Paragraphs of Python's library, for ever, with other scripts among them."""
    library = Path(sysconfig.get_path("stdlib"))
    paragraphs = [
        paragraph
        for file in sorted(library.glob("*.py"))
        for paragraph in file.read_text(errors="ignore").split("\n\n")
        if 40 < len(paragraph) < 1500
    ]
    source = random.Random(7)
    while True:
        text = source.choice(paragraphs)
        yield text if source.random() < 0.95 else text[:200] + " ― 日本語の文章です。 Größe 🎉"


def write_corpus(path: Path, size: int, tool_share: float) -> None:
    """Write chats of 1 to 4 turns until ``size`` bytes; ``tool_share`` of the turns call a tool."""
    source, text = random.Random(11), texts()
    written = 0
    with path.open("wb") as stream:
        while written < size:
            messages = [{"role": "system", "content": next(text)[:300]}]
            for turn in range(source.randint(1, 4)):
                messages.append({"role": "user", "content": next(text)})
                if source.random() < tool_share:
                    call = {"name": "search", "arguments": json.dumps({"query": next(text)[:60]})}
                    messages += [
                        {"role": "assistant", "tool_calls": [{"id": f"c{turn}", "type": "function", "function": call}]},
                        {"role": "tool", "tool_call_id": f"c{turn}", "content": next(text)},
                    ]
                messages.append({"role": "assistant", "content": next(text)})
            line = json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"
            stream.write(line)
            written += len(line)


class Cost(NamedTuple):
    """What a process took: seconds by the clock and of the processors, and the peak of its memory in MB."""

    seconds: float
    cpu_seconds: float
    peak: int


def run(command: list[str], stdin: Iterator[bytes] | None = None) -> tuple[Cost, str]:
    """Run a process; answers what it took and what it printed."""
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.PIPE if stdin else None, stdout=out)
        if stdin and process.stdin:
            for chunk in stdin:
                process.stdin.write(chunk)
            process.stdin.close()
        _, _, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = 0
        out.seek(0)
        return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024), out.read().decode()


def compare(title: str, file: Path, contestants: dict[str, list[str]], rounds: int) -> None:
    """Print each contestant's median, and its ratio to the first."""
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, command in contestants.items():
            cost, printed = run(command)
            if name == COUNTING:
                cost = Cost(*map(float, printed.split()), cost.peak)
            costs[name].append(cost)
    reference = next(iter(costs.values()))
    size = file.stat().st_size / 1e6
    print(f"\n{title}: {size:.0f} MB, {rounds} rounds")
    print(f"  {'':32}{'s':>8}{'MB/s':>7}{'ratio':>8}{'CPU s':>8}{'ratio':>8}{'peak MB':>9}")
    for name, values in costs.items():
        seconds, cpu_seconds = (statistics.median(v[i] for v in values) for i in (0, 1))
        ratios = [statistics.median(v[i] / r[i] for v, r in zip(values, reference, strict=True)) for i in (0, 1)]
        peak = max(value.peak for value in values)
        print(
            f"  {name:32}{seconds:8.3f}{size / seconds:7.0f}{ratios[0]:8.2f}{cpu_seconds:8.3f}{ratios[1]:8.2f}{peak:9}"
        )


def compare_rules(file: Path, title: str, rounds: int) -> None:
    """The rules and the search against a bare parse and the peers."""
    contestants = {
        "bare orjson.loads loop": [sys.executable, "-c", BARE_PARSE, str(file)],
        "rules alone": [*COMMAND, "--no-tokens", "--no-scan", str(file)],
        "rules and sensitive content": [*COMMAND, "--no-tokens", str(file)],
        "OpenAI's cookbook": [sys.executable, "-c", COOKBOOK, str(file)],
    }
    if together := shutil.which("together"):
        python = Path(together).resolve().with_name("python")
        contestants["together files check"] = [str(python), "-c", TOGETHER, str(file)]
    compare(title, file, contestants, rounds)


def compare_tokens(file: Path, rounds: int) -> None:
    """The full check against the tokenizer alone."""
    tokenizer = [sys.executable, "-c", TOKENIZER, str(file), "1"]
    contestants = {
        "tokenizer, whole process": tokenizer,
        COUNTING: tokenizer,
        "full check": [*COMMAND, str(file)],
        "full check, --jobs 2": [*COMMAND, "--jobs", "2", str(file)],
    }
    compare("tokens", file, contestants, rounds)


def show_memory(file: Path) -> None:
    """The peak memory of large inputs, which stream in through a pipe."""
    with file.open("rb") as stream:
        data = stream.read(10_000_000)  # little: a process counts what its parent held when it was forked
    data = data[: data.rfind(b"\n") + 1]
    inputs = {
        "600 MB of chats": lambda: (data for _ in range(max(1, 600_000_000 // len(data)))),
        "one line of 1 GB": lambda: (b"x" * (1 << 20) for _ in range(1000)),
        "100,000 levels deep": lambda: iter((b'{"a":' * 100_000, b"\n" * 10)),
        "3,000,000 broken lines": lambda: (b"[1,\n" * 100_000 for _ in range(30)),
    }
    print("\npeak memory, full check")
    for name, chunks in inputs.items():
        cost, _ = run([*COMMAND, "-"], chunks())
        print(f"  {name:32}{cost.seconds:8.3f} s{cost.peak:9} MB")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory of large inputs")
    options = parser.parse_args()
    # As an installer leaves every contestant: none is to be timed compiling its own sources.
    compileall.compile_dir(Path(tunedrop.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        chats, tools = Path(folder, "chats.jsonl"), Path(folder, "tools.jsonl")
        write_corpus(chats, options.megabytes * 1_000_000, 0)
        write_corpus(tools, options.megabytes * 250_000, 0.3)
        compare_rules(chats, "chats", options.runs)
        compare_rules(tools, "chats with tool calls", options.runs)
        compare_tokens(chats, options.runs)
        if options.memory:
            show_memory(chats)


if __name__ == "__main__":
    main()
