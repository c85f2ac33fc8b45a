"""What the dataset tests build their files from."""

import json
from typing import Any

from tunedrop.dataset import DatasetCheck, Report

type Value = Any

SYSTEM = {"role": "system", "content": "Answer in one word."}
USER = {"role": "user", "content": "What is the capital of France?"}
ASSISTANT = {"role": "assistant", "content": "Paris"}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Paris"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "found"}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def chat(*messages: Value, **keys: Value) -> Value:
    return {"messages": list(messages), **keys}


def preference(**keys: Value) -> Value:
    return {
        "input": {"messages": [USER]},
        "preferred_output": [ASSISTANT],
        "non_preferred_output": [{"role": "assistant", "content": "Rome"}],
    } | keys


def numbered(kind: str, number: int) -> Value:
    """A good example, different for each number."""
    answer = {"role": "assistant", "content": f"answer {number}"}
    match kind:
        case "chat":
            return chat(SYSTEM, USER, answer)
        case "preference":
            return preference(preferred_output=[answer])
        case "reinforcement":
            return chat(USER, reference=number)
        case _:
            return {"prompt": f"question {number}", "completion": " yes"}


def jsonl(*lines: Value) -> bytes:
    """A file of these lines; bytes stand for themselves."""
    raw = (line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines)
    return b"".join(line + b"\n" for line in raw)


def file_with(example: Value, kind: str = "chat") -> bytes:
    """A file of twelve good examples of a kind whose third line is ``example``."""
    lines = [numbered(kind, number) for number in range(12)]
    lines[2] = example
    return jsonl(*lines)


def check(data: bytes, **options: Value) -> Report:
    judge = DatasetCheck(**options)
    judge.feed(data)
    return judge.finish()


def errors(report: Report) -> list[tuple[int | None, str, str | None]]:
    return [(finding.line, finding.code, finding.path) for finding in report.errors]


def warnings(report: Report) -> list[tuple[int | None, str, str | None]]:
    return [(finding.line, finding.code, finding.path) for finding in report.warnings]
