"""Rules for messages, in whatever format they are found."""

from __future__ import annotations

import binascii
import re
from collections.abc import Collection
from typing import Any

from tunedrop.dataset.tool_rules import Answers, check_function_call, check_tool_calls
from tunedrop.dataset.values import Line
from tunedrop.providers import DataProfile

_COMMON = frozenset({"role", "content", "name"})
_KEYS = {
    "system": _COMMON,
    "developer": _COMMON,
    "user": _COMMON,
    "assistant": _COMMON | {"weight", "refusal", "tool_calls", "function_call"},
    "tool": _COMMON | {"tool_call_id"},
    "function": _COMMON,
}
ROLES = frozenset(_KEYS)

#: Bytes of an image that comes inside the line as a data URL, decoded.
MAX_IMAGE_SIZE = 10 << 20
_DATA_URL = re.compile(r"data:image/(?:jpeg|jpg|png|webp);base64,", re.IGNORECASE)


class MessageRules:
    """The rules for the messages of one format at one provider."""

    def __init__(self, profile: DataProfile, images: bool) -> None:
        self._profile = profile
        self._images = images

    def check(self, line: Line, messages: list[Any], path: str, roles: Collection[str], answers: Answers) -> int:
        """Check every message of a list; answers the number of images in it."""
        images = 0
        for number, message in enumerate(messages):
            here = f"{path}[{number}]"
            if isinstance(message, dict):
                images += self._check_message(line, message, here, roles)
                answers.follow(message, here)
            else:
                line.error("data_type", here, "a message is an object with role and content")
        return images

    def _check_message(self, line: Line, message: dict[str, Any], path: str, roles: Collection[str]) -> int:
        role = message.get("role")
        if role is None:
            line.error("message_missing_key", f"{path}.role", f"add the role: {_either(roles)}")
            return 0
        if not isinstance(role, str) or role not in roles:
            line.error("unrecognized_role", f"{path}.role", f"the role here is {_either(roles)}")
            return 0
        weight = message.get("weight")
        if weight is not None and (role != "assistant" or isinstance(weight, bool) or weight not in (0, 1)):
            remedy = "a weight is the number 0 or 1" if role == "assistant" else "only assistant messages have a weight"
            line.error("invalid_weight", f"{path}.weight", remedy)
        line.only_keys("message_unrecognized_key", message, path, _KEYS[role] | {"weight"})
        if message.get("name") is not None and not isinstance(message["name"], str):
            line.error("invalid_value", f"{path}.name", "a name is text")
        if role == "assistant":
            self._check_assistant(line, message, path)
        elif role == "tool":
            _check_required_text(line, message, path, "tool_call_id", "a tool message names the call that it answers")
        elif role == "function":
            _check_required_text(line, message, path, "name", "a function message names its function")
        return self._check_content(line, message, path, role)

    def _check_assistant(self, line: Line, message: dict[str, Any], path: str) -> None:
        if message.get("refusal") is not None and not isinstance(message["refusal"], str):
            line.error("invalid_value", f"{path}.refusal", "a refusal is text")
        if message.get("tool_calls") is not None:
            check_tool_calls(line, message["tool_calls"], f"{path}.tool_calls")
        if message.get("function_call") is not None:
            check_function_call(line, message["function_call"], f"{path}.function_call")

    def _check_content(self, line: Line, message: dict[str, Any], path: str, role: str) -> int:
        content = message.get("content")
        optional = role == "assistant" and any(message.get(key) for key in ("tool_calls", "function_call", "refusal"))
        here = f"{path}.content"
        if content is None:
            if not optional:
                line.error("message_missing_key", here, "add the content")
        elif not isinstance(content, str | list):
            line.error("missing_content", here, "content is text or a list of parts")
        elif not content and not optional:
            line.error("missing_content", here, "the content is empty; fill it in or remove the message")
        elif isinstance(content, list):
            return sum(self._check_part(line, part, f"{here}[{i}]", role) for i, part in enumerate(content))
        return 0

    def _check_part(self, line: Line, part: Any, path: str, role: str) -> bool:
        """Check a part of a message's content; answers whether it is an image."""
        kind = part.get("type") if isinstance(part, dict) else None
        allowed = ["text"]
        if role == "user" and self._images:
            allowed.append("image_url")
        elif role == "assistant":
            allowed.append("refusal")
        if kind not in allowed:
            line.error("invalid_part", path, f"a part of this message is an object of type {_either(allowed)}")
            return False
        line.only_keys("invalid_part", part, path, ("type", kind))
        if kind == "image_url":
            _check_image(line, part.get("image_url"), f"{path}.image_url")
            return True
        if not isinstance(part.get(kind), str):
            line.error("invalid_part", f"{path}.{kind}", "it is text")
        return False

    def check_image_count(self, line: Line, images: int, path: str) -> None:
        """At most so many images in an example as the provider takes."""
        if images > self._profile.max_images:
            remedy = f"{images} images in one example; at most {self._profile.max_images} are accepted"
            line.error("too_many_images", path, remedy)


def find_messages(line: Line, holder: dict[str, Any], path: str) -> list[Any]:
    """The message list of ``holder``; empty, and reported, where there is none."""
    messages = holder.get("messages")
    if isinstance(messages, list) and messages:
        return messages
    line.error("missing_messages_list", path, "messages is a list of at least one message")
    return []


def has_role(messages: list[Any], *roles: str) -> bool:
    """Whether a message of one of these roles is among them."""
    return any(isinstance(message, dict) and message.get("role") in roles for message in messages)


def _check_required_text(line: Line, message: dict[str, Any], path: str, key: str, remedy: str) -> None:
    if message.get(key) is None:
        line.error("message_missing_key", f"{path}.{key}", remedy)
    elif not isinstance(message[key], str) and key != "name":  # the type of a name was looked at already
        line.error("invalid_value", f"{path}.{key}", remedy)


def _check_image(line: Line, image: Any, path: str) -> None:
    if not isinstance(image, dict):
        line.error("invalid_image", path, "it is an object with the url of the image")
        return
    line.only_keys("invalid_image", image, path, ("url", "detail"))
    if image.get("detail") not in (None, "auto", "low", "high"):
        line.error("invalid_image", f"{path}.detail", "detail is auto, low or high")
    url = image.get("url")
    if not isinstance(url, str):
        line.error("invalid_image", f"{path}.url", "the url is text")
    elif data := _DATA_URL.match(url):
        try:
            size = len(binascii.a2b_base64(url[data.end() :], strict_mode=True))
        except ValueError:
            line.error("invalid_image", f"{path}.url", "the data URL is not Base64")
            return
        if size > MAX_IMAGE_SIZE:
            line.error("invalid_image", f"{path}.url", f"{size} bytes; an image has at most {MAX_IMAGE_SIZE}")
    elif not url.lower().startswith(("http://", "https://")):
        line.error(
            "invalid_image",
            f"{path}.url",
            "an image is at an http or https address, or a data URL of JPEG, PNG or WEBP",
        )


def _either(names: Collection[str]) -> str:
    *rest, last = sorted(names)
    return f"{', '.join(rest)} or {last}" if rest else last
