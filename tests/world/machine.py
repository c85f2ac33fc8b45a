"""Step Functions' interpreter, as far as ``finetune.asl.yaml`` needs it, on timers in place of threads.

It executes the file itself. ``test_machine.py`` holds it to moto's interpreter, path by path; a field or a function of
the Amazon States Language that it does not know is refused when the machine is made, never passed over.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.world.timers import Timers

DEFINITION = Path(__file__).resolve().parents[2] / "statemachine" / "finetune.asl.yaml"
WAITS_FOR_TOKEN = ".waitForTaskToken"

_KNOWN = {
    "Task": {
        *("Resource", "Parameters", "TimeoutSeconds", "TimeoutSecondsPath", "ResultPath", "ResultSelector", "Retry"),
        *("Catch", "Next"),
    },
    "Choice": {"Choices", "Default"},
    "Wait": {"Seconds", "SecondsPath", "Next"},
    "Pass": {"Parameters", "ResultPath", "Next"},
    "Succeed": set(),
    "Fail": {"Error", "Cause", "ErrorPath", "CausePath"},
}
_KNOWN_OF_RETRY = {
    "ErrorEquals",
    "IntervalSeconds",
    "BackoffRate",
    "MaxDelaySeconds",
    "MaxAttempts",
    "JitterStrategy",
}
_KNOWN_OF_CHOICE = {"Variable", "IsPresent", "StringEquals", "Next"}


class TaskFailed(Exception):
    """A task ended in an error of that name."""

    def __init__(self, error: str, cause: str = "") -> None:
        super().__init__(error)
        self.error = error
        self.cause = cause


@dataclass
class Execution:
    """One run of the machine. ``status`` is Step Functions' own word; ``states`` are the names in order of entry."""

    name: str
    input: Any
    started: str
    data: Any
    status: str = "RUNNING"
    error: str | None = None
    cause: str | None = None
    states: list[str] = field(default_factory=list)
    entered: str = ""
    attempts: dict[int, int] = field(default_factory=dict)
    turn: int = 0
    """Counts tasks and retries: an answer or a timeout that belongs to an earlier one is void."""


Reply = Callable[[Any], None]
"""Takes a task's result, or the TaskFailed that it ended in."""

Call = Callable[[str, Any, Reply], None]
"""Calls the resource of that name with these parameters."""


class Machine:
    """The state machine and its executions. ``call`` carries tasks out and answers when it likes."""

    def __init__(
        self, call: Call, timers: Timers, chance: random.Random, definition: Mapping[str, Any] | None = None
    ) -> None:
        self._definition = definition or _deployed()
        self._states = self._definition["States"]
        for name, state in self._states.items():
            _refuse_unknown(name, state)
        self._call = call
        self._timers = timers
        self._chance = chance
        self.executions: dict[str, Execution] = {}
        self._tokens: dict[str, Callable[[Any], None]] = {}

    def start(self, name: str, given: Any) -> bool:
        """Starts an execution, or answers False where the name is taken."""
        if name in self.executions:
            return False
        at = _timestamp(self._timers.clock.now())
        execution = self.executions[name] = Execution(name, given, at, given)
        self._timers.after(0, lambda: self._enter(execution, self._definition["StartAt"]))
        return True

    def succeed_task(self, token: str, result: Any) -> bool:
        """Ends the wait of that token; False where it is over."""
        reply = self._tokens.pop(token, None)
        if reply is None:
            return False
        reply(result)
        return True

    def _enter(self, execution: Execution, name: str) -> None:
        execution.states.append(name)
        execution.entered = _timestamp(self._timers.clock.now())
        execution.attempts = {}
        self._execute(execution, name)

    def _execute(self, execution: Execution, name: str) -> None:
        state = self._states[name]
        match state["Type"]:
            case "Task":
                self._task(execution, name, state)
            case "Choice":
                chosen = next((c["Next"] for c in state["Choices"] if _holds(c, execution.data)), state.get("Default"))
                self._enter(execution, chosen)
            case "Wait":
                seconds = self._path(execution, state["SecondsPath"]) if "SecondsPath" in state else state["Seconds"]
                self._timers.after(seconds, lambda: self._enter(execution, state["Next"]))
            case "Pass":
                execution.data = _placed(self._fill(execution, state["Parameters"]), state, execution.data)
                self._enter(execution, state["Next"])
            case "Succeed":
                execution.status = "SUCCEEDED"
            case "Fail":
                execution.status = "FAILED"
                for name, value in (("error", "Error"), ("cause", "Cause")):
                    path = state.get(f"{value}Path")
                    setattr(execution, name, self._path(execution, path) if path else state.get(value))

    def _task(self, execution: Execution, name: str, state: Mapping[str, Any]) -> None:
        execution.turn += 1
        turn, resource = execution.turn, state["Resource"]
        token = f"{execution.name}/{turn}" if resource.endswith(WAITS_FOR_TOKEN) else None

        def take(answer: Any) -> None:
            if execution.turn != turn:
                return  # it comes after the timeout
            if token is not None:
                self._tokens.pop(token, None)
            execution.turn += 1
            if isinstance(answer, TaskFailed):
                self._failed(execution, name, state, answer)
                return
            execution.data = _placed(answer, state, execution.data)
            self._enter(execution, state["Next"])

        def called(answer: Any) -> None:
            # Who waits for a token is not done when the call is.
            if token is None or isinstance(answer, TaskFailed):
                take(answer)

        seconds = state.get("TimeoutSeconds")
        if "TimeoutSecondsPath" in state:
            seconds = self._path(execution, state["TimeoutSecondsPath"])
        if token is not None:
            self._tokens[token] = take
        given = self._fill(execution, state["Parameters"], token) if "Parameters" in state else execution.data
        self._timers.after(seconds, lambda: take(TaskFailed("States.Timeout")))
        self._call(_callee(resource), given, called)

    def _failed(self, execution: Execution, name: str, state: Mapping[str, Any], failure: TaskFailed) -> None:
        for number, retrier in enumerate(state.get("Retry", [])):
            if not _names(retrier, failure):
                continue
            attempt = execution.attempts.get(number, 0)
            if attempt >= retrier.get("MaxAttempts", 3):
                break
            execution.attempts[number] = attempt + 1
            pause = retrier.get("IntervalSeconds", 1) * retrier.get("BackoffRate", 2) ** attempt
            pause = min(pause, retrier.get("MaxDelaySeconds", pause))
            if retrier.get("JitterStrategy") == "FULL":
                pause = self._chance.uniform(0, pause)
            self._timers.after(pause, lambda: self._execute(execution, name))
            return
        for catcher in state.get("Catch", []):
            if _names(catcher, failure):
                output = {"Error": failure.error, "Cause": failure.cause}
                execution.data = _placed(output, catcher, execution.data)
                self._enter(execution, catcher["Next"])
                return
        execution.status, execution.error, execution.cause = "FAILED", failure.error, failure.cause

    def _fill(self, execution: Execution, template: Any, token: str | None = None) -> Any:
        if isinstance(template, dict):
            filled = {}
            for key, value in template.items():
                if key.endswith(".$"):
                    filled[key[:-2]] = self._expression(execution, value, token)
                else:
                    filled[key] = self._fill(execution, value, token)
            return filled
        if isinstance(template, list):
            return [self._fill(execution, value, token) for value in template]
        return template

    def _expression(self, execution: Execution, text: str, token: str | None) -> Any:
        if match := re.fullmatch(r"States\.(Format|JsonToString)\((.*)\)", text):
            arguments = [argument.strip() for argument in match[2].split(",")]
            values = [a[1:-1] if a.startswith("'") else self._expression(execution, a, token) for a in arguments]
            if match[1] == "Format":
                return values[0].replace("{}", "%s") % tuple(values[1:])
            return json.dumps(values[0], separators=(",", ":"), ensure_ascii=False)
        if text.startswith("States."):
            raise NotImplementedError(text)
        return self._path(execution, text, token)

    def _path(self, execution: Execution, path: str, token: str | None = None) -> Any:
        if path.startswith("$$."):
            context = {
                "Execution": {"StartTime": execution.started, "Name": execution.name},
                "State": {"EnteredTime": execution.entered},
                "Task": {"Token": token},
            }
            return _at(path.removeprefix("$"), context)
        try:
            return _at(path, execution.data)
        except LookupError as error:
            raise NotImplementedError(f"{path} leads nowhere in {execution.data}: States.Runtime") from error


@cache
def _deployed() -> Mapping[str, Any]:
    return dict(yaml.safe_load(DEFINITION.read_text()))


def _refuse_unknown(name: str, state: Mapping[str, Any]) -> None:
    unknown = set(state) - _KNOWN[state["Type"]] - {"Type", "Comment"}
    unknown |= {key for retrier in state.get("Retry", []) for key in retrier} - _KNOWN_OF_RETRY
    unknown |= {key for choice in state.get("Choices", []) for key in choice} - _KNOWN_OF_CHOICE
    if unknown:
        raise NotImplementedError(f"{name}: {', '.join(sorted(unknown))}")


def _at(path: str, data: Any) -> Any:
    if not re.fullmatch(r"\$(\.\w+)*", path):
        raise NotImplementedError(path)
    for step in path.split(".")[1:]:
        data = data[step] if isinstance(data, dict) else {}[step]
    return data


def _holds(choice: Mapping[str, Any], data: Any) -> bool:
    try:
        value = _at(choice["Variable"], data)
    except LookupError:
        return choice.get("IsPresent") is False
    if "IsPresent" in choice:
        return bool(choice["IsPresent"])
    return bool(value == choice["StringEquals"])


def _placed(result: Any, state: Mapping[str, Any], data: Any) -> Any:
    path = state.get("ResultPath", "$")
    if path is None:
        return data
    if path == "$":
        return result
    if not re.fullmatch(r"\$\.\w+", path):
        raise NotImplementedError(path)
    return {**data, path[2:]: result}


def _names(rule: Mapping[str, Any], failure: TaskFailed) -> bool:
    names = rule["ErrorEquals"]
    return failure.error in names or "States.ALL" in names or "States.TaskFailed" in names


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _callee(resource: str) -> str:
    """The folder of the function that is called, or the service's resource."""
    function = re.fullmatch(r"\$\{(\w+)FunctionArn\}", resource)
    if function:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", function[1]).lower()
    return resource.removesuffix(WAITS_FOR_TOKEN)
