"""The fast path: examples of the ordinary kind, decoded straight into types.

What decodes and settles here obeys every error rule. Whatever does not (parts, images, or a mistake) is judged by the
rules in full. So nothing here decides that a line is wrong; a test holds the two against each other.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec

from tunedrop.dataset.counting import PER_EXAMPLE, PER_MESSAGE, PER_NAME, Countable
from tunedrop.dataset.formats import warn_of_identical_outputs, warn_of_leading_space, warn_of_roles
from tunedrop.dataset.report import Findings, Format
from tunedrop.dataset.strict_json import is_json, too_deep
from tunedrop.dataset.tool_rules import MAX_TOOLS, TOOL_NAME
from tunedrop.dataset.values import Line

#: What a decoder raises at a line that is not plain.
NOT_PLAIN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

type Text = Annotated[str, msgspec.Meta(min_length=1)]


class Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Base of the typed values: they hold no cycles, hence need no garbage collection."""


class Message(Plain, frozen=True, tag_field="role"):
    """A message that is text and nothing else."""

    content: Text


class SystemMessage(Message, frozen=True, tag="system"):
    """A system message."""


class DeveloperMessage(Message, frozen=True, tag="developer"):
    """A developer message."""


class UserMessage(Message, frozen=True, tag="user"):
    """A user message."""


class AssistantMessage(Message, frozen=True, tag="assistant"):
    """An assistant message."""


type AnyMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage
type Messages = Annotated[tuple[AnyMessage, ...], msgspec.Meta(min_length=1)]


class PlainExample(Plain, frozen=True):
    """An example that types alone have judged, but for what ``settle`` adds; equal ones have the same hash."""

    def settle(self, findings: Findings, line: int) -> bool:
        """Report what is worth a warning; False where only the rules in full can judge the example."""
        raise NotImplementedError

    def countable(self) -> Countable:
        """What of it is counted as tokens."""
        raise NotImplementedError


class PlainChat(PlainExample, frozen=True):
    """A conversation."""

    messages: Messages

    def settle(self, findings: Findings, line: int) -> bool:
        """Report what is worth a warning; False where only the rules in full can judge the example."""
        messages = self.messages
        if type(messages[-1]) is not AssistantMessage:
            return False
        if type(messages[0]) is not SystemMessage or type(messages[1]) is not UserMessage:
            kinds = {*map(type, messages)}
            warn_of_roles(
                Line(findings, line),
                instructed=SystemMessage in kinds or DeveloperMessage in kinds,
                asked=UserMessage in kinds,
            )
        return True

    def countable(self) -> Countable:
        """What of it is counted as tokens."""
        return _countable(self.messages)


class FunctionCall(Plain, frozen=True):
    """What is called; ``arguments`` hold JSON."""

    name: Text
    arguments: str


class ToolCall(Plain, frozen=True):
    """A call of a tool."""

    id: Text
    type: Literal["function"]
    function: FunctionCall


class NamedMessage(Plain, frozen=True, tag_field="role"):
    """A message that may have a name."""

    content: Text
    name: str | None = None

    def texts(self) -> list[str]:
        """Its texts, but for the role."""
        return [self.content] if self.name is None else [self.content, self.name]


class NamedSystemMessage(NamedMessage, frozen=True, tag="system"):
    """A system message."""


class NamedDeveloperMessage(NamedMessage, frozen=True, tag="developer"):
    """A developer message."""


class NamedUserMessage(NamedMessage, frozen=True, tag="user"):
    """A user message."""


class ToolMessage(NamedMessage, frozen=True, kw_only=True, tag="tool"):
    """The answer to a call."""

    tool_call_id: str

    def texts(self) -> list[str]:
        """Its texts, but for the role."""
        return [*super().texts(), self.tool_call_id]


class CallingMessage(Plain, frozen=True, tag_field="role", tag="assistant"):
    """An assistant message that may call tools."""

    content: str | None = None
    name: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], msgspec.Meta(min_length=1)] | None = None

    def texts(self) -> list[str]:
        """Its texts, but for the role."""
        texts = [text for text in (self.content, self.name) if text is not None]
        for call in self.tool_calls or ():
            texts += (call.id, call.type, call.function.name, call.function.arguments)
        return texts


type AnyToolMessage = NamedSystemMessage | NamedDeveloperMessage | NamedUserMessage | ToolMessage | CallingMessage


class ToolFunction(Plain, frozen=True):
    """What a tool offers."""

    name: Annotated[str, msgspec.Meta(pattern=f"^(?:{TOOL_NAME})\\Z")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Plain, frozen=True):
    """A tool."""

    type: Literal["function"]
    function: ToolFunction


class ToolChat(PlainExample, frozen=True):
    """A conversation in which tools are called."""

    messages: Annotated[tuple[AnyToolMessage, ...], msgspec.Meta(min_length=1)]
    tools: Annotated[tuple[Tool, ...], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    parallel_tool_calls: bool | None = None

    def settle(self, findings: Findings, line: int) -> bool:
        """Report what is worth a warning; False where only the rules in full can judge the example."""
        learns = self._answers_every_call()
        if not learns or too_deep(self._tools_as_json()):
            return False
        kinds = {*map(type, self.messages)}
        warn_of_roles(
            Line(findings, line),
            instructed=NamedSystemMessage in kinds or NamedDeveloperMessage in kinds,
            asked=NamedUserMessage in kinds,
        )
        return True

    def __hash__(self) -> int:
        return hash((self.messages, self._tools_as_json(), self.parallel_tool_calls))

    def countable(self) -> Countable:
        """What of it is counted as tokens."""
        messages = self.messages
        names = sum(message.name is not None for message in messages)
        texts = [text for message in messages for text in message.texts()]
        return texts, PER_EXAMPLE + (PER_MESSAGE + 1) * len(messages) + PER_NAME * names

    def _tools_as_json(self) -> bytes:
        return msgspec.json.encode(self.tools, order="sorted")

    def _answers_every_call(self) -> bool:
        """Whether the calls are answered in their turn, and the last message is an assistant's to learn from."""
        waiting: set[str] = set()
        learns = False
        for message in self.messages:
            if isinstance(message, ToolMessage):
                if message.tool_call_id not in waiting:
                    return False
                waiting.remove(message.tool_call_id)
            elif waiting:
                return False
            elif isinstance(message, CallingMessage):
                if message.tool_calls:
                    if not all(is_json(call.function.arguments) for call in message.tool_calls):
                        return False
                    waiting = {call.id for call in message.tool_calls}
                elif not message.content:
                    return False
                learns = learns or message.weight != 0
        return learns and isinstance(self.messages[-1], CallingMessage)


class PlainInput(Plain, frozen=True):
    """What both outputs of a preference answer."""

    messages: Messages


class PlainPreference(PlainExample, frozen=True):
    """A better and a worse answer."""

    input: PlainInput
    preferred_output: Messages
    non_preferred_output: Messages

    def settle(self, findings: Findings, line: int) -> bool:
        """Report what is worth a warning; False where only the rules in full can judge the example."""
        better, worse = self.preferred_output, self.non_preferred_output
        if {*map(type, better), *map(type, worse)} != {AssistantMessage}:
            return False
        if better == worse:
            warn_of_identical_outputs(Line(findings, line))
        return True

    def countable(self) -> Countable:
        """What of it is counted as tokens."""
        return _countable(self.input.messages + self.preferred_output + self.non_preferred_output)


class PlainCompletion(PlainExample, frozen=True):
    """A prompt and its completion."""

    prompt: str
    completion: Text

    def settle(self, findings: Findings, line: int) -> bool:
        """Report what is worth a warning; nothing else can be wrong."""
        if not self.completion.startswith(" "):
            warn_of_leading_space(Line(findings, line))
        return True

    def countable(self) -> Countable:
        """What of it is counted as tokens."""
        return [self.prompt, self.completion], 0


def decoders_of(name: Format) -> tuple[msgspec.json.Decoder[PlainExample], ...]:
    """What decodes the plain examples of a format, to be tried in turn; each raises one of NOT_PLAIN at all others.

    A reinforcement example has no such type: any further key of it may hold any value.
    """
    return tuple(msgspec.json.Decoder(kind) for kind in _TYPES.get(name, ()))


_TYPES: dict[Format, tuple[type[PlainExample], ...]] = {
    "chat": (PlainChat, ToolChat),
    "preference": (PlainPreference,),
    "completion": (PlainCompletion,),
}


_content = attrgetter("content")


def _countable(messages: tuple[AnyMessage, ...]) -> Countable:
    # The name of every role is one token in every encoding.
    return list(map(_content, messages)), PER_EXAMPLE + (PER_MESSAGE + 1) * len(messages)
