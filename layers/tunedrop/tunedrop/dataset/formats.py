"""The four formats: how to tell them apart, and the rules of an example of each."""

from __future__ import annotations

from typing import Any, Protocol

from tunedrop.dataset.message_rules import ROLES, MessageRules, find_messages, has_role
from tunedrop.dataset.report import Format
from tunedrop.dataset.tool_rules import Answers, check_functions, check_tools
from tunedrop.dataset.values import Line
from tunedrop.providers import DataProfile

_CHAT_KEYS = ("messages", "tools", "parallel_tool_calls", "functions")
_OUTPUTS = ("preferred_output", "non_preferred_output")


class ExampleRules(Protocol):
    """The rules of one format."""

    def check(self, line: Line, example: dict[str, Any]) -> int:
        """Report what is wrong with an example; answers the number of images in it."""


def infer(example: dict[str, Any]) -> Format:
    """The format that an example is plainly in; a key whose value is null counts as absent."""
    keys = {key for key, value in example.items() if value is not None}
    if {"prompt", "completion"} <= keys:
        return "completion"
    if "input" in keys and not keys.isdisjoint(_OUTPUTS):
        return "preference"
    messages = example.get("messages")
    if messages is not None:
        further = not keys.issubset(_CHAT_KEYS)
        if further or (isinstance(messages, list) and messages and has_role(messages[-1:], "user")):
            return "reinforcement"
    return "chat"


def is_another(example: dict[str, Any], expected: Format) -> bool:
    """Whether an example is plainly not of the format expected; chat and reinforcement pass for each other."""
    keys = {key for key, value in example.items() if value is not None}
    families = {
        "messages": "messages" in keys,
        "preference": "input" in keys and not keys.isdisjoint(_OUTPUTS),
        "completion": {"prompt", "completion"} <= keys,
    }
    family = expected if expected in families else "messages"
    return not families[family] and any(families.values())


def warn_of_roles(line: Line, *, instructed: bool, asked: bool) -> None:
    """Warn where a chat has no system or developer message, or no user message."""
    if not instructed:
        line.warning("missing_system_message", "messages", "no system message: say how the model is to behave")
    if not asked:
        line.warning("missing_user_message", "messages", "no user message: there is nothing that is answered")


def warn_of_identical_outputs(line: Line) -> None:
    """Warn of a pair that has nothing to choose from."""
    line.warning("identical_outputs", None, "both outputs are the same: there is nothing to prefer")


def warn_of_leading_space(line: Line) -> None:
    """Warn of a completion that does not begin with a space."""
    remedy = "begin the completion with a space: it is part of the first word's token"
    line.warning("missing_leading_space", "completion", remedy)


class ChatRules:
    """Chat, for supervised fine-tuning."""

    def __init__(self, profile: DataProfile) -> None:
        self._messages = MessageRules(profile, images=profile.images)

    def check(self, line: Line, example: dict[str, Any]) -> int:
        """Report what is wrong with an example; answers the number of images in it."""
        line.only_keys("unrecognized_key", example, "", _CHAT_KEYS)
        check_tools(line, example, "")
        check_functions(line, example.get("functions"))
        messages = find_messages(line, example, "messages")
        if not messages:
            return 0
        answers = Answers(line)
        images = self._messages.check(line, messages, "messages", ROLES, answers)
        self._messages.check_image_count(line, images, "messages")
        if not has_role(messages[-1:], "assistant"):
            remedy = "the last message is the assistant's: it is what the model learns to say"
            line.error("example_missing_assistant_message", f"messages[{len(messages) - 1}]", remedy)
            if isinstance(messages[-1], dict):
                answers.finish(messages[-1])
        weights = [m.get("weight") for m in messages if isinstance(m, dict) and m.get("role") == "assistant"]
        if weights and all(_is_zero(weight) for weight in weights):
            line.error("invalid_weight", "messages", "a weight of 0 on every assistant message leaves nothing to learn")
        warn_of_roles(line, instructed=has_role(messages, "system", "developer"), asked=has_role(messages, "user"))
        return images


class PreferenceRules:
    """Pairs of a better and a worse answer, for direct preference optimisation."""

    def __init__(self, profile: DataProfile) -> None:
        self._messages = MessageRules(profile, images=False)

    def check(self, line: Line, example: dict[str, Any]) -> int:
        """Report what is wrong with an example; there are no images in it."""
        line.only_keys("unrecognized_key", example, "", ("input", *_OUTPUTS))
        answers = Answers(line)
        given = example.get("input")
        messages: list[Any] = []
        if not isinstance(given, dict):
            line.error("missing_input", "input", "input is an object with messages")
        else:
            line.only_keys("unrecognized_key", given, "input", ("messages", "tools", "parallel_tool_calls"))
            check_tools(line, given, "input")
            messages = find_messages(line, given, "input.messages")
            self._messages.check(line, messages, "input.messages", ROLES, answers)
        for key in _OUTPUTS:
            self._check_output(line, example.get(key), key, answers.copy())
        if isinstance(example.get(_OUTPUTS[0]), list) and example[_OUTPUTS[0]] == example.get(_OUTPUTS[1]):
            warn_of_identical_outputs(line)
        return 0

    def _check_output(self, line: Line, output: Any, path: str, answers: Answers) -> None:
        if not isinstance(output, list) or not output:
            line.error("missing_output", path, "it is a list of at least one message")
            return
        self._messages.check(line, output, path, ("assistant", "tool"), answers)
        if not has_role(output, "assistant"):
            line.error("example_missing_assistant_message", path, "add the assistant's message to this output")
        if isinstance(output[-1], dict):
            answers.finish(output[-1])


class ReinforcementRules:
    """Prompts with what a grader needs, for reinforcement fine-tuning."""

    def __init__(self, profile: DataProfile) -> None:
        self._messages = MessageRules(profile, images=profile.images)
        self._roles = frozenset({"developer", "user", "assistant", "tool"})
        if profile.system_in_reinforcement:
            self._roles |= {"system"}

    def check(self, line: Line, example: dict[str, Any]) -> int:
        """Report what is wrong with an example; answers the number of images in it."""
        check_tools(line, example, "")
        messages = find_messages(line, example, "messages")
        if not messages:
            return 0
        answers = Answers(line)
        images = self._messages.check(line, messages, "messages", self._roles, answers)
        self._messages.check_image_count(line, images, "messages")
        if isinstance(messages[-1], dict):
            answers.finish(messages[-1])
        if not has_role(messages[-1:], "user"):
            remedy = "the last message is not the user's: the model is to answer a user"
            line.warning("last_message_not_user", f"messages[{len(messages) - 1}]", remedy)
        return images


class CompletionRules:
    """Prompt and completion, the legacy format."""

    def check(self, line: Line, example: dict[str, Any]) -> int:
        """Report what is wrong with an example; there are no images in it."""
        line.only_keys("unrecognized_key", example, "", ("prompt", "completion"))
        for key in ("prompt", "completion"):
            value = example.get(key)
            if value is None or (value == "" and key == "completion"):
                line.error(f"missing_{key}", key, f"add the {key}")
            elif not isinstance(value, str):
                line.error("invalid_value", key, f"a {key} is text")
            elif key == "completion" and not value.startswith(" "):
                warn_of_leading_space(line)
        return 0


def rules_of(name: Format, profile: DataProfile) -> ExampleRules:
    """The rules of a format at a provider."""
    match name:
        case "chat":
            return ChatRules(profile)
        case "preference":
            return PreferenceRules(profile)
        case "reinforcement":
            return ReinforcementRules(profile)
        case "completion":
            return CompletionRules()


def _is_zero(weight: Any) -> bool:
    return weight == 0 and weight is not None and not isinstance(weight, bool)
