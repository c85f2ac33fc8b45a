"""The rules about a file, and what must not depend on how it arrives."""

import gzip
import hashlib
import json

import msgspec
import pytest
from tunedrop.dataset import DatasetCheck, combine
from tunedrop.dataset import check as check_together

from tests.unit.dataset.builders import (
    ASSISTANT,
    SYSTEM,
    USER,
    chat,
    check,
    errors,
    file_with,
    jsonl,
    numbered,
    warnings,
)

GOOD = jsonl(*(numbered("chat", number) for number in range(12)))


def test_a_good_file():
    report = check(GOOD)
    assert report.valid
    assert (report.format, report.examples, report.bytes) == ("chat", 12, len(GOOD))
    assert report.sha256 == hashlib.sha256(GOOD).hexdigest()


def test_the_json_has_the_published_keys():
    assert list(msgspec.json.decode(check(GOOD).to_json())) == [
        "valid",
        "format",
        "examples",
        "bytes",
        "error_count",
        "errors",
        "warning_count",
        "warnings",
        "tokens",
        "estimate",
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", [(None, "empty_file", None)]),
        (b"\n \t\r\n\n", [(None, "empty_file", None)]),
        (b"\xef\xbb\xbf", [(None, "empty_file", None)]),
        (gzip.compress(GOOD), [(None, "compressed", None)]),
        (b"PK\x03\x04" + GOOD, [(None, "compressed", None)]),
        (b"\x28\xb5\x2f\xfd" + GOOD, [(None, "compressed", None)]),
        (b"BZh9" + GOOD, [(None, "compressed", None)]),
        (b"\xfd7zXZ\x00" + GOOD, [(None, "compressed", None)]),
        (GOOD.decode().encode("utf-16"), [(1, "not_utf8", None)]),
        (jsonl(numbered("chat", 1)), [(None, "too_few_examples", None)]),
    ],
)
def test_a_file_that_is_none(data, expected):
    assert errors(check(data)) == expected


def test_the_compression_is_named():
    assert "gzip" in check(gzip.compress(GOOD)).errors[0].message


def test_a_byte_order_mark_is_warned_of_and_is_no_part_of_the_data():
    assert warnings(check(b"\xef\xbb\xbf" + GOOD)) == [(1, "byte_order_mark", None)]


def test_blank_lines_are_counted_in_one_warning():
    report = check(b"\n" + GOOD + b" \r\n\n")
    assert (report.examples, warnings(report)) == (12, [(1, "blank_line", None)])
    assert "3 blank lines" in report.warnings[0].message


def test_crlf_ends_a_line_and_the_last_needs_no_end():
    report = check(GOOD.replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert (report.valid, report.examples, report.warnings) == (True, 12, ())


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "invalid_json"),
        (b'{"messages": NaN}', "invalid_json"),
        (b'{"messages": Infinity}', "invalid_json"),
        (b'{"messages": [],}', "invalid_json"),
        (b"{} {}", "invalid_json"),
        (b'{"a": "\\ud800"}', "invalid_json"),
        (b'{"a": "\\udc00\\ud800"}', "invalid_json"),
        (b'{"a": 1e999}', "invalid_json"),
        (b'{"a": ' + b"1" * 5000 + b"}", "invalid_json"),
        (b"nul\x00", "invalid_json"),
        (b'{"a": "\xff"}', "not_utf8"),
        (b'{"a": "\xed\xa0\x80"}', "not_utf8"),
        (b'{"a": "\xc3', "not_utf8"),
        (b"[" * 129 + b"]" * 129, "nesting_too_deep"),
        (b'{"a":' * 100_000, "nesting_too_deep"),
        (b"[]", "data_type"),
        (b"null", "data_type"),
        (b'"text"', "data_type"),
    ],
)
def test_a_line_that_is_no_example(line, code):
    assert errors(check(file_with(line))) == [(3, code, None)]


def test_a_line_of_a_million_values_is_refused_before_it_fills_the_memory():
    bulk = b'{"messages": [' + b"[]," * 1_000_000 + b"[]]}"
    assert errors(check(file_with(bulk))) == [(3, "line_too_long", None)]
    table = chat(SYSTEM, USER, {"role": "assistant", "content": "[1],{2}," * 200_000})
    assert errors(check(file_with(table))) == []


def test_deep_is_not_too_deep():
    deep = chat(USER, item=json.loads("[" * 126 + "]" * 126))
    assert errors(check(file_with(deep, "reinforcement"))) == []
    brackets = chat(SYSTEM, USER, {"role": "assistant", "content": "[{" * 500 + '\\"['})
    assert errors(check(file_with(brackets))) == []


def test_of_duplicate_keys_the_last_counts():
    line = b'{"messages": 7, "messages": ' + json.dumps([SYSTEM, USER, ASSISTANT]).encode() + b"}"
    assert errors(check(file_with(line))) == []


def test_the_offset_in_the_file_of_a_bad_byte_is_named():
    data = file_with(b'{"a": "\xff"}')
    assert f"byte {data.index(0xFF) + 1} " in check(data).errors[0].message


def test_a_long_line_is_an_error_of_its_own():
    limit = 1000
    fits = b'{"a":"' + b"x" * (limit - 8) + b'"}'
    report = check(file_with(fits), max_line=limit)
    assert [e.code for e in report.errors] == ["missing_messages_list", "unrecognized_key"][::-1]
    report = check(file_with(fits + b" "), max_line=limit)
    assert errors(report) == [(3, "line_too_long", None)]
    assert report.examples == 12


def test_lists_are_bounded_and_counts_are_not():
    report = check(b"[1]\n" * 1000, max_findings=7)
    assert (len(report.errors), report.error_count) == (7, 1000)


MESSY = (
    b"\xef\xbb\xbf\n[1]\n"
    + GOOD
    + file_with(b'{"a": "\xff"}')
    + jsonl(chat(USER, ASSISTANT), b"x" * 300, chat(SYSTEM, USER | {"content": "mail ann@example.org"}, ASSISTANT))
    + b'{"messages": [] }'
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, len(MESSY)])
def test_where_chunks_end_changes_nothing(size):
    judge = DatasetCheck(max_line=250, max_findings=5)
    for start in range(0, len(MESSY), size):
        judge.feed(MESSY[start : start + size])
    assert judge.finish() == check(MESSY, max_line=250, max_findings=5)


def test_a_repeated_example_is_warned_of_whatever_its_spacing_and_key_order():
    twice = json.dumps(dict(reversed(numbered("chat", 3).items())), indent=None, separators=(",", ":")).encode()
    reordered = chat(*({"content": m["content"], "role": m["role"]} for m in numbered("chat", 3)["messages"]))
    report = check(GOOD + jsonl(twice, reordered, chat(SYSTEM, USER, ASSISTANT | {"weight": 1})) * 1)
    assert warnings(report) == [(13, "duplicate_example", None), (14, "duplicate_example", None)]
    assert "line 4" in report.warnings[0].message


def test_the_same_text_in_another_role_is_no_repetition():
    flipped = chat({"role": "developer", "content": SYSTEM["content"]}, USER, ASSISTANT)
    assert warnings(check(GOOD + jsonl(flipped, chat(SYSTEM, USER, ASSISTANT)))) == []


def test_repeats_are_found_beyond_what_memory_holds(monkeypatch):
    monkeypatch.setattr("tunedrop.dataset.fingerprints._IN_MEMORY", 4)
    training, validation = DatasetCheck(), DatasetCheck("validation")
    training.feed(GOOD + GOOD[: GOOD.index(b"\n") + 1])
    validation.feed(jsonl(b"", numbered("chat", 5)))
    report = combine(training, validation)
    assert warnings(report) == [
        (13, "duplicate_example", None),
        (1, "blank_line", None),
        (2, "leaked_example", None),
    ]


def test_an_example_of_the_training_file_in_the_validation_file_is_warned_of():
    report = check_together([GOOD], [jsonl(numbered("chat", 77), numbered("chat", 4))])
    assert [(w.file, w.line, w.code) for w in report.warnings] == [("validation", 2, "leaked_example")]
    assert report.examples == 12


def test_a_validation_file_obeys_the_rules_in_the_training_files_format():
    report = check_together([GOOD], [jsonl(numbered("completion", 1))])
    assert [(e.file, e.line, e.code) for e in report.errors] == [("validation", 1, "mixed_formats")]


def test_reinforcement_needs_a_validation_file():
    data = [jsonl(*(numbered("reinforcement", number) for number in range(10)))]
    assert [e.code for e in check_together(data).errors] == ["missing_validation_file"]
    assert check_together(data, [jsonl(numbered("reinforcement", 99))]).valid


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ann.lee@mail.example.org!", "an e-mail address"),
        ("key sk-proj-" + "aB3" * 12, "an OpenAI API key"),
        ("sk-ant-" + "aB3" * 12, "an Anthropic API key"),
        ("AKIAIOSFODNN7EXAMPLE", "an AWS access key"),
        ("see:ASIAIOSFODNN7EXAMPLE.", "an AWS access key"),
        ("ghp_" + "a1" * 18, "a GitHub token"),
        ("github_pat_" + "a1" * 11, "a fine-grained GitHub token"),
        ("glpat-" + "a-" * 10, "a GitLab token"),
        ("xoxb-" + "1-a" * 4, "a Slack token"),
        ("rk_test_" + "a1" * 8, "a Stripe key"),
        ("AIza" + "-_a1b" * 7, "a Google API key"),
        ("hf_" + "aB1" * 10, "a Hugging Face token"),
        ("eyJhbGciOiJ9.eyJzdWIiOiIx.abcdef-_", "a JSON web token"),
        ("first line\nsk-" + "a1" * 10, "an OpenAI API key"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII", "a private key"),
        ("pay 4111 1111 1111 1111 now", "a payment card number"),
        ("pay 5500-0000-0000-0004", "a payment card number"),
        ("call +44 20 7946 0958", "a telephone number"),
        ("call (415) 555-2671", "a telephone number"),
        ("call (415)555 2671", "a telephone number"),
        ("415-555-2671", "a telephone number"),
        ("415.555.2671, or", "a telephone number"),
        ("+442079460958", "a telephone number"),
        ("pay 378282246310005", "a payment card number"),
        ("日本4111111111111111語", "a payment card number"),
    ],
)
def test_sensitive_content_is_named_and_never_shown(text, kind):
    data = file_with(chat(SYSTEM, USER | {"content": text}, ASSISTANT))
    escaped = json.dumps(json.loads(data.splitlines()[2])).replace("+", "\\u002b").encode()
    for form in (data, escaped + b"\n" + GOOD, GOOD + escaped):
        report = check(form)
        found = [w for w in report.warnings if w.code == "sensitive_content"]
        assert len(found) == 1
        assert kind in found[0].message
        assert text not in report.to_json()
    refused = check(data, refuse_sensitive=True)
    assert errors(refused) == [(3, "sensitive_content", None)]
    assert check(data, scan=False).warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "on 2024-01-15 at 12:30:45.123456789",
        "3.14159265358979323846",
        "a@b",
        "@someone",
        "sk-learn",
        "version 1.2.3.4",
        "1234567",
        "id 123456789012345678901234567890",
        "task-oriented-and-so-on",
        "0.4111111111111111",
        "415-555-26711",
        "eyJhbGciOiJ9.eyJzdWIiOiIx",
        "-----BEGIN CERTIFICATE-----",
        "desk-aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ],
)
def test_what_only_resembles_sensitive_content_is_left_alone(text):
    assert warnings(check(file_with(chat(SYSTEM, USER | {"content": text}, ASSISTANT)))) == []
