"""Rules for tools, and for the calls an assistant makes of them."""

from __future__ import annotations

import re
from typing import Any

from tunedrop.dataset.strict_json import Malformed, parse
from tunedrop.dataset.values import Line, child

MAX_TOOLS = 128
TOOL_NAME = "[A-Za-z0-9_-]{1,64}"
_NAME = re.compile(TOOL_NAME)


def check_tools(line: Line, example: dict[str, Any], path: str) -> None:
    """``tools`` and ``parallel_tool_calls`` of an example; ``path`` is that of the object holding them."""
    tools = example.get("tools")
    where = child(path, "tools")
    for number, tool in enumerate(_list(line, tools, where)):
        here = f"{where}[{number}]"
        if not isinstance(tool, dict) or tool.get("type") != "function" or _present(tool) != {"type", "function"}:
            line.error("invalid_tool", here, 'a tool is {"type": "function", "function": {…}}')
        else:
            _check_function(line, tool["function"], f"{here}.function")
    parallel = example.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        line.error("invalid_value", child(path, "parallel_tool_calls"), "it is true or false")


def check_functions(line: Line, functions: Any) -> None:
    """The deprecated ``functions`` of a chat example."""
    for number, function in enumerate(_list(line, functions, "functions")):
        _check_function(line, function, f"functions[{number}]")


def _list(line: Line, tools: Any, path: str) -> list[Any]:
    if tools is None:
        return []
    if not isinstance(tools, list):
        line.error("invalid_value", path, "it is a list")
        return []
    if len(tools) > MAX_TOOLS:
        line.error("invalid_tool", path, f"{len(tools)} tools; at most {MAX_TOOLS} are accepted")
    return tools


def _check_function(line: Line, function: Any, path: str) -> None:
    if not isinstance(function, dict):
        line.error("invalid_tool", path, "a function is an object with a name")
        return
    line.only_keys("invalid_tool", function, path, ("name", "description", "parameters", "strict"))
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        line.error("invalid_tool", f"{path}.name", "a function's name is 1 to 64 of A-Z, a-z, 0-9, _ and -")
    for key, kind, message in (
        ("description", str, "a description is text"),
        ("parameters", dict, "parameters are a JSON Schema object"),
        ("strict", bool, "strict is true or false"),
    ):
        if function.get(key) is not None and not isinstance(function[key], kind):
            line.error("invalid_tool", f"{path}.{key}", message)


def check_tool_calls(line: Line, calls: Any, path: str) -> None:
    """``tool_calls`` of an assistant message."""
    if not isinstance(calls, list) or not calls:
        line.error(
            "invalid_tool_call", path, "tool_calls is a list of at least one call; leave it out if there is none"
        )
        return
    for number, call in enumerate(calls):
        here = f"{path}[{number}]"
        if not isinstance(call, dict):
            line.error("invalid_tool_call", here, "a call is an object with id, type and function")
            continue
        line.only_keys("invalid_tool_call", call, here, ("id", "type", "function"))
        if not isinstance(call.get("id"), str) or not call["id"]:
            line.error("invalid_tool_call", f"{here}.id", "a call has an id that is text")
        if call.get("type") != "function":
            line.error("invalid_tool_call", f"{here}.type", 'a call\'s type is "function"')
        check_function_call(line, call.get("function"), f"{here}.function")


def check_function_call(line: Line, call: Any, path: str) -> None:
    """What is called: a name, and arguments as a string that holds JSON."""
    if not isinstance(call, dict):
        line.error("invalid_tool_call", path, "it is an object with name and arguments")
        return
    line.only_keys("invalid_tool_call", call, path, ("name", "arguments"))
    if not isinstance(call.get("name"), str) or not call["name"]:
        line.error("invalid_tool_call", f"{path}.name", "the called function's name is text")
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        line.error("invalid_tool_call", f"{path}.arguments", "arguments are a string that holds JSON")
        return
    try:
        parse(arguments.encode())
    except Malformed as problem:
        deep = problem.code == "nesting_too_deep"
        code = problem.code if deep else "invalid_tool_call"
        message = (
            problem.message if deep else "arguments are a string that holds one JSON value; this one does not parse"
        )
        line.error(code, f"{path}.arguments", message)


class Answers:
    """Follows a conversation: each call is answered once, by the tool messages right after it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._open: dict[str, str] = {}  # id of a call → its path

    def copy(self) -> Answers:
        """The same state again, for a conversation that goes on in two ways."""
        answers = Answers(self._line)
        answers._open = dict(self._open)
        return answers

    def follow(self, message: dict[str, Any], path: str) -> None:
        """Take the next message."""
        if message.get("role") != "tool":
            self._unanswered()
            calls = message.get("tool_calls")
            if message.get("role") == "assistant" and isinstance(calls, list):
                self._open = {
                    call["id"]: f"{path}.tool_calls[{number}]"
                    for number, call in enumerate(calls)
                    if isinstance(call, dict) and isinstance(call.get("id"), str)
                }
        elif isinstance(message.get("tool_call_id"), str) and self._open.pop(message["tool_call_id"], None) is None:
            self._line.error(
                "unknown_tool_call_id",
                f"{path}.tool_call_id",
                "a tool message answers, once, a call of the assistant message before it; no such call is open",
            )

    def finish(self, last: dict[str, Any]) -> None:
        """The conversation ends: only calls made in its last message may stay open."""
        if last.get("role") != "assistant":
            self._unanswered()

    def _unanswered(self) -> None:
        for path in self._open.values():
            self._line.error("unanswered_tool_call", path, "add the tool message that answers this call right after it")
        self._open = {}


def _present(value: dict[str, Any]) -> set[str]:
    return {key for key in value if value[key] is not None}
