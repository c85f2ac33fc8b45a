"""The fast path: examples of the ordinary kind, decoded straight into types.

What decodes here obeys every error rule: roles and keys are known, content is text and not empty. Whatever does not
(tool calls, parts, weights, or a mistake) raises and is judged by the rules in full. So nothing here decides that a
line is wrong; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from tunedrop.dataset.counting import PER_EXAMPLE, PER_MESSAGE, Countable
from tunedrop.dataset.formats import warn_of_identical_outputs, warn_of_leading_space, warn_of_roles
from tunedrop.dataset.report import Findings, Format
from tunedrop.dataset.values import Line

#: What a decoder raises at a line that is not plain.
NOT_PLAIN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

type Text = Annotated[str, msgspec.Meta(min_length=1)]


class Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Base of the typed values: they hold no cycles, hence need no garbage collection."""


class Message(Plain, frozen=True, tag_field="role"):
    """A message that is text."""

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
    """An example of a plain format; equal ones have the same hash in this process."""

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
        return Countable([self.prompt, self.completion])


def decoder_of(name: Format) -> Callable[[bytes], PlainExample] | None:
    """What decodes the plain examples of a format; raises one of NOT_PLAIN at all others.

    A reinforcement example has no such type: any further key of it may hold any value.
    """
    kind = _TYPES.get(name)
    return msgspec.json.Decoder(kind).decode if kind else None


_TYPES: dict[Format, type[PlainExample]] = {
    "chat": PlainChat,
    "preference": PlainPreference,
    "completion": PlainCompletion,
}


def _countable(messages: tuple[AnyMessage, ...]) -> Countable:
    # The name of every role is one token in every encoding.
    return Countable([message.content for message in messages], PER_EXAMPLE + (PER_MESSAGE + 1) * len(messages))
