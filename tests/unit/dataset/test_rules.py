"""Each rule of ``specs/data-rules.md`` with examples that it accepts and examples that it rejects."""

import base64

import pytest
from tunedrop.dataset import DataProfile
from tunedrop.providers import PROFILES

from tests.unit.dataset.builders import (
    ANSWER,
    ASSISTANT,
    CALL,
    CALLING,
    IMAGE,
    SYSTEM,
    TOOL,
    USER,
    chat,
    check,
    errors,
    file_with,
    jsonl,
    numbered,
    preference,
    warnings,
)

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
WIDE = {"type": "image_url", "image_url": {"url": PNG}}


def user(content):
    return {"role": "user", "content": content}


def function(**keys):
    return {"type": "function", "function": {"name": "find"} | keys}


ACCEPTED_CHAT = {
    "plain": chat(SYSTEM, USER, ASSISTANT),
    "a developer message stands for the system's": chat({"role": "developer", "content": "x"}, USER, ASSISTANT),
    "names": chat(SYSTEM, USER | {"name": "ann"}, ASSISTANT | {"name": "bot"}),
    "null counts as absent": chat(SYSTEM, USER | {"name": None, "further": None}, ASSISTANT, tools=None, more=None),
    "weights": chat(SYSTEM, USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"weight": 1}),
    "weight as a float": chat(SYSTEM, USER, ASSISTANT | {"weight": 1.0}),
    "a call and its answer": chat(SYSTEM, USER, CALLING, ANSWER, ASSISTANT),
    "a call at the end": chat(SYSTEM, USER, CALLING),
    "two calls, answered in any order": chat(
        SYSTEM,
        USER,
        {"role": "assistant", "tool_calls": [CALL, CALL | {"id": "c2"}]},
        ANSWER | {"tool_call_id": "c2"},
        ANSWER,
        ASSISTANT,
    ),
    "the same id in a later turn": chat(SYSTEM, USER, CALLING, ANSWER, CALLING, ANSWER, ASSISTANT),
    "a call with empty content": chat(SYSTEM, USER, CALLING | {"content": ""}),
    "a function call": chat(
        SYSTEM,
        USER,
        {"role": "assistant", "function_call": {"name": "find", "arguments": "{}"}},
        {"role": "function", "name": "find", "content": "found"},
        ASSISTANT,
    ),
    "a refusal": chat(SYSTEM, USER, {"role": "assistant", "refusal": "No."}),
    "text parts": chat(SYSTEM, user([{"type": "text", "text": "Hi"}]), ASSISTANT),
    "a refusal part": chat(SYSTEM, USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}),
    "images": chat(SYSTEM, user([IMAGE, WIDE] * 5), ASSISTANT),
    "detail": chat(SYSTEM, user([{"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]), ASSISTANT),
    "tools": chat(SYSTEM, USER, ASSISTANT, tools=[TOOL, function(strict=True)], parallel_tool_calls=False),
    "no tools": chat(SYSTEM, USER, ASSISTANT, tools=[], functions=[]),
    "functions": chat(SYSTEM, USER, ASSISTANT, functions=[{"name": "find", "description": "x"}]),
    "any language": chat(SYSTEM, user("日本語 🎉 \u0000 ‮"), ASSISTANT),
}

REJECTED_CHAT = {
    "no messages": ({"tools": []}, "missing_messages_list", "messages"),
    "messages null": ({"messages": None}, "missing_messages_list", "messages"),
    "messages empty": (chat(), "missing_messages_list", "messages"),
    "messages no list": ({"messages": {}}, "missing_messages_list", "messages"),
    "a message that is text": (chat(SYSTEM, "x", USER, ASSISTANT), "data_type", "messages[1]"),
    "a further key": (chat(SYSTEM, USER, ASSISTANT, note="x"), "unrecognized_key", "note"),
    "a key that is text": (chat(SYSTEM, USER, ASSISTANT, **{"my secret": 1}), "unrecognized_key", "*"),
    "an unknown role": (
        chat(SYSTEM, {"role": "bot", "content": "x"}, ASSISTANT),
        "unrecognized_role",
        "messages[1].role",
    ),
    "no role": (chat(SYSTEM, {"content": "x"}, ASSISTANT), "message_missing_key", "messages[1].role"),
    "no content": (chat(SYSTEM, {"role": "user"}, ASSISTANT), "message_missing_key", "messages[1].content"),
    "an assistant without anything": (
        chat(SYSTEM, USER, {"role": "assistant"}),
        "message_missing_key",
        "messages[2].content",
    ),
    "no tool_call_id": (
        chat(SYSTEM, USER, CALLING, ANSWER, {"role": "tool", "content": "x"}, ASSISTANT),
        "message_missing_key",
        "messages[4].tool_call_id",
    ),
    "a function message without name": (
        chat(SYSTEM, USER, {"role": "function", "content": "x"}, ASSISTANT),
        "message_missing_key",
        "messages[2].name",
    ),
    "a key of another role": (
        chat(SYSTEM, USER | {"refusal": "x"}, ASSISTANT),
        "message_unrecognized_key",
        "messages[1].refusal",
    ),
    "empty content": (chat(SYSTEM, user(""), ASSISTANT), "missing_content", "messages[1].content"),
    "no parts": (chat(SYSTEM, user([]), ASSISTANT), "missing_content", "messages[1].content"),
    "content that is a number": (chat(SYSTEM, user(7), ASSISTANT), "missing_content", "messages[1].content"),
    "no assistant": (chat(SYSTEM, USER), "example_missing_assistant_message", "messages[1]"),
    "the user speaks last": (chat(SYSTEM, ASSISTANT, USER), "example_missing_assistant_message", "messages[2]"),
    "weight 2": (chat(SYSTEM, USER, ASSISTANT | {"weight": 2}), "invalid_weight", "messages[2].weight"),
    "weight true": (chat(SYSTEM, USER, ASSISTANT | {"weight": True}), "invalid_weight", "messages[2].weight"),
    "weight of a user": (chat(SYSTEM, USER | {"weight": 1}, ASSISTANT), "invalid_weight", "messages[1].weight"),
    "weight 0 everywhere": (chat(SYSTEM, USER, ASSISTANT | {"weight": 0}), "invalid_weight", "messages"),
    "name is a number": (chat(SYSTEM, USER | {"name": 1}, ASSISTANT), "invalid_value", "messages[1].name"),
    "refusal is a number": (chat(SYSTEM, USER, ASSISTANT | {"refusal": 1}), "invalid_value", "messages[2].refusal"),
    "no calls": (
        chat(SYSTEM, USER, ASSISTANT | {"tool_calls": []}),
        "invalid_tool_call",
        "messages[2].tool_calls",
    ),
    "arguments that are no JSON": (
        chat(SYSTEM, USER, CALLING | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}]}),
        "invalid_tool_call",
        "messages[2].tool_calls[0].function.arguments",
    ),
    "arguments that are an object": (
        chat(SYSTEM, USER, CALLING | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]}),
        "invalid_tool_call",
        "messages[2].tool_calls[0].function.arguments",
    ),
    "arguments too deep": (
        chat(
            SYSTEM,
            USER,
            CALLING | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": "[" * 129 + "]" * 129}}]},
        ),
        "nesting_too_deep",
        "messages[2].tool_calls[0].function.arguments",
    ),
    "a call without type": (
        chat(SYSTEM, USER, CALLING | {"tool_calls": [{"id": "c1", "function": CALL["function"]}]}),
        "invalid_tool_call",
        "messages[2].tool_calls[0].type",
    ),
    "a call that is not answered": (
        chat(SYSTEM, USER, CALLING, ASSISTANT),
        "unanswered_tool_call",
        "messages[2].tool_calls[0]",
    ),
    "an answer to nothing": (
        chat(SYSTEM, USER, ANSWER, ASSISTANT),
        "unknown_tool_call_id",
        "messages[2].tool_call_id",
    ),
    "a call answered twice": (
        chat(SYSTEM, USER, CALLING, ANSWER, ANSWER, ASSISTANT),
        "unknown_tool_call_id",
        "messages[4].tool_call_id",
    ),
    "tools is an object": (chat(SYSTEM, USER, ASSISTANT, tools={}), "invalid_value", "tools"),
    "a tool without type": (
        chat(SYSTEM, USER, ASSISTANT, tools=[{"function": {"name": "f"}}]),
        "invalid_tool",
        "tools[0]",
    ),
    "a tool's name with a space": (
        chat(SYSTEM, USER, ASSISTANT, tools=[function(name="a b")]),
        "invalid_tool",
        "tools[0].function.name",
    ),
    "a tool's further key": (
        chat(SYSTEM, USER, ASSISTANT, tools=[function(code="x")]),
        "invalid_tool",
        "tools[0].function.code",
    ),
    "129 tools": (chat(SYSTEM, USER, ASSISTANT, tools=[TOOL] * 129), "invalid_tool", "tools"),
    "parallel is text": (
        chat(SYSTEM, USER, ASSISTANT, parallel_tool_calls="yes"),
        "invalid_value",
        "parallel_tool_calls",
    ),
    "audio": (
        chat(SYSTEM, user([{"type": "input_audio", "input_audio": {}}]), ASSISTANT),
        "invalid_part",
        "messages[1].content[0]",
    ),
    "an image of the assistant's": (
        chat(SYSTEM, USER, {"role": "assistant", "content": [IMAGE]}),
        "invalid_part",
        "messages[2].content[0]",
    ),
    "a part without text": (
        chat(SYSTEM, user([{"type": "text"}]), ASSISTANT),
        "invalid_part",
        "messages[1].content[0].text",
    ),
    "a GIF": (
        chat(SYSTEM, user([{"type": "image_url", "image_url": {"url": "data:image/gif;base64,AAAA"}}]), ASSISTANT),
        "invalid_image",
        "messages[1].content[0].image_url.url",
    ),
    "a file address": (
        chat(SYSTEM, user([{"type": "image_url", "image_url": {"url": "file:///a.png"}}]), ASSISTANT),
        "invalid_image",
        "messages[1].content[0].image_url.url",
    ),
    "an unknown detail": (
        chat(SYSTEM, user([{"type": "image_url", "image_url": {"url": PNG, "detail": "x"}}]), ASSISTANT),
        "invalid_image",
        "messages[1].content[0].image_url.detail",
    ),
    "eleven images": (chat(SYSTEM, user([IMAGE] * 11), ASSISTANT), "too_many_images", "messages"),
    "another format": ({"prompt": "x", "completion": " y"}, "mixed_formats", None),
}


@pytest.mark.parametrize("example", ACCEPTED_CHAT.values(), ids=ACCEPTED_CHAT)
def test_a_good_chat_example_is_accepted_without_a_word(example):
    report = check(file_with(example))
    assert (report.valid, errors(report), warnings(report)) == (True, [], [])


@pytest.mark.parametrize(("example", "code", "path"), REJECTED_CHAT.values(), ids=REJECTED_CHAT)
def test_a_bad_chat_example_is_rejected_at_its_place(example, code, path):
    report = check(file_with(example))
    assert errors(report) == [(3, code, path)]


def test_an_image_over_10_mib_is_rejected():
    url = "data:image/jpeg;base64," + base64.b64encode(bytes((10 << 20) + 1)).decode()
    report = check(file_with(chat(SYSTEM, user([{"type": "image_url", "image_url": {"url": url}}]), ASSISTANT)))
    assert errors(report) == [(3, "invalid_image", "messages[1].content[0].image_url.url")]


@pytest.mark.parametrize(
    ("example", "code"),
    [
        (chat(USER, ASSISTANT), "missing_system_message"),
        (chat(SYSTEM, ASSISTANT), "missing_user_message"),
        (chat(SYSTEM, CALLING), "missing_user_message"),
        (chat(USER, CALLING), "missing_system_message"),
    ],
)
def test_a_chat_without_instruction_or_question_is_warned_of(example, code):
    report = check(file_with(example))
    assert (report.valid, warnings(report)) == (True, [(3, code, "messages")])


REJECTED_ELSEWHERE = {
    "no input": ("preference", preference(input=None), "missing_input", "input"),
    "no messages": ("preference", preference(input={}), "missing_messages_list", "input.messages"),
    "no output": ("preference", preference(preferred_output=[]), "missing_output", "preferred_output"),
    "an output that is text": (
        "preference",
        preference(non_preferred_output="x"),
        "missing_output",
        "non_preferred_output",
    ),
    "a user in an output": (
        "preference",
        preference(preferred_output=[USER, ASSISTANT]),
        "unrecognized_role",
        "preferred_output[0].role",
    ),
    "only tools in an output": (
        "preference",
        preference(
            input={"messages": [USER, CALLING]}, preferred_output=[ANSWER], non_preferred_output=[ANSWER, ASSISTANT]
        ),
        "example_missing_assistant_message",
        "preferred_output",
    ),
    "an image": (
        "preference",
        preference(input={"messages": [user([IMAGE])]}),
        "invalid_part",
        "input.messages[0].content[0]",
    ),
    "a further key of a pair": ("preference", preference(note="x"), "unrecognized_key", "note"),
    "a further key of an input": (
        "preference",
        preference(input={"messages": [USER], "note": 1}),
        "unrecognized_key",
        "input.note",
    ),
    "a chat among pairs": ("preference", chat(USER, ASSISTANT), "mixed_formats", None),
    "a system message": ("reinforcement", chat(SYSTEM, USER, answer=1), "unrecognized_role", "messages[0].role"),
    "no messages for a grader": ("reinforcement", {"messages": [], "answer": 1}, "missing_messages_list", "messages"),
    "no prompt": ("completion", {"completion": " x"}, "missing_prompt", "prompt"),
    "no completion": ("completion", {"prompt": "x"}, "missing_completion", "completion"),
    "an empty completion": ("completion", {"prompt": "x", "completion": ""}, "missing_completion", "completion"),
    "a prompt that is a list": ("completion", {"prompt": [1], "completion": " x"}, "invalid_value", "prompt"),
    "a further key of a completion": (
        "completion",
        {"prompt": "x", "completion": " y", "id": 1},
        "unrecognized_key",
        "id",
    ),
}


@pytest.mark.parametrize(("kind", "example", "code", "path"), REJECTED_ELSEWHERE.values(), ids=REJECTED_ELSEWHERE)
def test_a_bad_example_of_another_format_is_rejected_at_its_place(kind, example, code, path):
    report = check(file_with(example, kind))
    assert (report.format, errors(report)) == (kind, [(3, code, path)])


@pytest.mark.parametrize(
    ("kind", "example", "expected"),
    [
        ("preference", preference(input={"messages": [USER], "tools": [TOOL]}), []),
        ("preference", preference(non_preferred_output=[ASSISTANT]), [(3, "identical_outputs", None)]),
        ("preference", preference(non_preferred_output=[ASSISTANT | {"name": None}]), []),
        ("reinforcement", chat(user([IMAGE]), reference={"any": ["thing"]}), []),
        ("reinforcement", chat(USER, ASSISTANT, x=1), [(3, "last_message_not_user", "messages[1]")]),
        ("completion", {"prompt": "", "completion": " y"}, []),
        ("completion", {"prompt": "x", "completion": "y"}, [(3, "missing_leading_space", "completion")]),
    ],
)
def test_a_good_example_of_another_format_is_accepted(kind, example, expected):
    report = check(file_with(example, kind))
    assert (report.format, errors(report), warnings(report)) == (kind, [], expected)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ({"prompt": "x", "completion": " y"}, "completion"),
        ({"prompt": "x", "completion": None}, "chat"),
        (preference(), "preference"),
        (preference(non_preferred_output=None), "preference"),
        ({"input": {}}, "chat"),
        (chat(SYSTEM, USER), "reinforcement"),
        (chat(SYSTEM, USER, ASSISTANT, answer=1), "reinforcement"),
        (chat(SYSTEM, USER, ASSISTANT, answer=None), "chat"),
        (chat(SYSTEM, USER, ASSISTANT, tools=[], parallel_tool_calls=True), "chat"),
    ],
)
def test_the_first_object_decides_the_format(first, expected):
    assert check(jsonl(b"", b"[1]", first, numbered("chat", 1))).format == expected


@pytest.mark.parametrize(
    ("method", "kind", "format_", "codes"),
    [
        ("supervised", "chat", "chat", []),
        ("supervised", "completion", "completion", []),
        ("dpo", "preference", "preference", []),
        ("reinforcement", "reinforcement", "reinforcement", []),
        ("supervised", "preference", "preference", ["wrong_method"]),
        ("dpo", "chat", "chat", ["wrong_method"]),
        ("reinforcement", "completion", "completion", ["wrong_method"]),
    ],
)
def test_the_method_fixes_the_format_or_does_not_fit(method, kind, format_, codes):
    report = check(file_with(numbered(kind, 99), kind), method=method)
    assert (report.format, [(e.code, e.file) for e in report.errors]) == (format_, [(code, "job") for code in codes])


def test_a_chat_passes_for_reinforcement_where_the_method_says_so():
    report = check(file_with(chat({"role": "developer", "content": "x"}, USER)), method="reinforcement")
    assert report.format == "reinforcement"
    assert {e.code for e in report.errors} == {"unrecognized_role"}  # the system messages of the other lines


def test_a_profile_says_what_a_provider_takes():
    examples = [chat(SYSTEM, user(f"q{number}"), answer=1) for number in range(99)]
    assert check(jsonl(*examples)).valid is False
    assert errors(check(jsonl(*examples), profile=PROFILES["bedrock"].data)) == [(None, "too_few_examples", None)]
    assert check(jsonl(*examples, chat(USER, answer=1)), profile=PROFILES["bedrock"].data).valid
    images = file_with(chat(SYSTEM, user([IMAGE]), ASSISTANT))
    assert errors(check(images, profile=DataProfile(images=False))) == [(3, "invalid_part", "messages[1].content[0]")]
    assert errors(check(images, profile=DataProfile(max_examples_with_images=0))) == [(None, "too_many_images", None)]


def test_no_message_holds_text_of_the_dataset():
    secret = "xyzzy plugh"
    broken = chat({"role": secret, secret: secret}, user([{"type": secret}]), secret, **{secret: secret})
    report = check(file_with(broken) + secret.encode() + b"\n")
    assert report.error_count >= 5
    assert secret not in report.to_json()
