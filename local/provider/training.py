"""Reading a dataset, and numbers that look like training on it: the same data always gives the same numbers."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunedrop.runs import CONFIG, WEIGHTS

from local.adapter import config, shapes, weights

LONGEST_LINE = 16 * 1024 * 1024
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Survey:
    """What one reading of a dataset found. `problem` is a sentence when the data cannot be trained on."""

    examples: int = 0
    tokens: int = 0
    digest: str = ""
    variety: float = 0.5
    """Share of distinct words among the first ten thousand: varied text is harder to learn."""
    problem: str | None = None


def survey(path: Path, form: str) -> Survey:
    """Read the file line by line, in constant memory.

    `form` is `chat`, `completion`, `preference` or `reinforcement`. Tokens are an estimate, a token for
    every four characters and three for every message, as good as any for an emulation.
    """
    examples = tokens = words = 0
    distinct: set[str] = set()
    digest = hashlib.sha256()
    try:
        with path.open("rb") as lines:
            number = 0
            while line := lines.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    return Survey(problem=f"line {number} is too long")
                digest.update(line)
                if not line.strip():
                    continue
                try:
                    text = line.decode()
                    example = json.loads(text)
                except (ValueError, RecursionError):
                    return Survey(problem=f"line {number} is not valid JSON in UTF-8")
                problem = _problem(example, form)
                if problem:
                    return Survey(problem=f"line {number}: {problem}")
                examples += 1
                tokens += count_tokens(example)
                if words < 10_000:
                    found = text.split()
                    words += len(found)
                    distinct.update(found)
    except OSError:
        return Survey(problem="the file no longer exists")
    return Survey(examples, tokens, digest.hexdigest(), len(distinct) / max(1, words))


def _problem(example: Any, form: str) -> str | None:
    if not isinstance(example, dict):
        return "an object is expected"
    if form == "completion":
        ok = isinstance(example.get("prompt"), str) and isinstance(example.get("completion"), str)
        return None if ok else "`prompt` and `completion` are expected, both strings"
    if form == "preference":
        if not isinstance(example.get("input"), dict):
            return "`input` is missing"
        if not all(_is_list(example.get(key)) for key in ("preferred_output", "non_preferred_output")):
            return "`preferred_output` and `non_preferred_output` are lists with at least one message"
        return _messages_problem(example["input"].get("messages"))
    if form == "chat":
        unknown = set(example) - {"messages", "tools", "parallel_tool_calls", "functions"}
        if unknown:
            return f"unknown key {min(unknown)!r}"
    problem = _messages_problem(example.get("messages"))
    if problem is None and form == "chat" and example["messages"][-1]["role"] != "assistant":
        return "the last message must be the assistant's"
    return problem


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _messages_problem(messages: Any) -> str | None:
    if not _is_list(messages):
        return "`messages` is a list with at least one message"
    for message in messages:
        if not isinstance(message, dict):
            return "a message is an object"
        if message.get("role") not in _ROLES:
            return "a message has no known `role`"
        speaks_otherwise = message["role"] == "assistant" and message.keys() & {
            "tool_calls",
            "function_call",
            "refusal",
        }
        if not speaks_otherwise and not (isinstance(message.get("content"), str) or _is_list(message.get("content"))):
            return "a message has no `content`"
    return None


def count_tokens(value: Any) -> int:
    """Return the estimated tokens of every text inside `value`, however deep it is nested."""
    tokens, rest = 0, [value]
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            tokens += math.ceil(len(part) / 4)
        elif isinstance(part, list):
            rest.extend(part)
        elif isinstance(part, dict):
            tokens += 3 * ("role" in part)
            rest.extend(part.values())
    return tokens


def epochs_for(examples: int) -> int:
    """What the provider chooses where the epochs are left to it: more for little data, fewer for much."""
    if 3 * examples < 100:
        return min(25, 100 // examples)
    return max(1, 25_000 // examples) if 3 * examples > 25_000 else 3


def training_seconds(tokens: int) -> float:
    """Simulated length of a training of so many tokens, epochs included: 5 minutes and up, growing slowly."""
    return 240 + 60 * math.log2(2 + tokens / 1000)


def loss(data: Survey, seed: int, step: int, total: int) -> float:
    """A falling loss: its height comes from the variety of the data, its jitter from data, seed and step."""
    start, end = 1.2 + 1.8 * data.variety, 0.25 + 0.6 * data.variety
    jitter = int.from_bytes(hashlib.sha256(f"{data.digest}:{seed}:{step}".encode()).digest()[:4]) / 2**32 - 0.5
    return round((end + (start - end) * math.exp(-4 * step / total)) * (1 + 0.06 * jitter), 5)


def accuracy(of_loss: float) -> float:
    """The share of tokens guessed right that goes with a loss."""
    return round(math.exp(-0.6 * of_loss), 5)


def adapter(model: str, step: int) -> dict[str, bytes]:
    """The files that a LoRA adapter of that model has after that step, by name."""
    return {
        "tokenizer_config.json": b"{}",
        CONFIG: json.dumps(config(model)).encode(),
        WEIGHTS: weights(shapes(), step, step=str(step)),
    }
