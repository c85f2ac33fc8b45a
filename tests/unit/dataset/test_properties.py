"""What holds for every file."""

import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tunedrop.dataset import DatasetCheck
from tunedrop.tokens import Tokenizer

from tests.unit.dataset.builders import check, file_with, jsonl, numbered
from tests.unit.dataset.grammar import EXAMPLES, mutations

KINDS = sorted(EXAMPLES)
TOKENS = Tokenizer("o200k_base")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(deadline=None)
def test_an_example_of_the_grammar_is_accepted(kind, data):
    report = check(file_with(data.draw(EXAMPLES[kind]), kind))
    assert (report.format, report.errors) == (kind, ())


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(deadline=None)
def test_a_mutated_example_is_rejected_on_its_line_or_is_still_valid(kind, data):
    report = check(file_with(data.draw(mutations(EXAMPLES[kind])), kind))
    assert {error.line for error in report.errors} <= {3}
    assert report.examples == 12


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fast_path_says_what_the_rules_in_full_say(kind, data, monkeypatch):
    examples = EXAMPLES[kind] | mutations(EXAMPLES[kind])
    lines = jsonl(numbered(kind, 1), *data.draw(st.lists(examples, max_size=4)))
    line_by_line, together = check(lines, tokens=TOKENS), check(lines, tokens=TOKENS, format=kind)
    with monkeypatch.context() as patch:
        patch.setattr("tunedrop.dataset.judge.decoders_of", lambda name: ())
        assert line_by_line == together == check(lines, tokens=TOKENS)


@given(
    examples=st.lists(EXAMPLES["chat"] | st.just(numbered("chat", 1)), min_size=1, max_size=6),
    line_ends=st.lists(st.integers(0, 1000), max_size=4),
    data=st.data(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_line_ends_may_stand_anywhere(examples, line_ends, data, monkeypatch):
    ends = data.draw(st.lists(st.sampled_from(["\n", "\n", "", " ", "\r\n", "\n\n"]), min_size=6, max_size=6))
    pieces = "".join(json.dumps(e) + end for e, end in zip(examples, ends, strict=False)).split(", ")
    for place in line_ends:
        pieces[place % len(pieces)] += "\n"
    lines = ", ".join(pieces).encode()
    together = check(lines, format="chat", tokens=TOKENS)
    with monkeypatch.context() as patch:
        patch.setattr("tunedrop.dataset.judge.decoders_of", lambda name: ())
        assert together == check(lines, format="chat", tokens=TOKENS)


@pytest.mark.parametrize(
    ("template", "wrong"),
    [
        ("A B\n\nA\n", [1]),  # as many examples as lines, yet not one on each
        ("A B\n\n", [1]),
        ("A\nA B\n\nA\n", [2]),
        ('A\n{"messages":\n[{"role": "user", "content": "a"}, M]} A\nA\n', [2, 3]),
        ('A\n{"messages": [{"role": "user", "content": "a"},\nM]}A\nA\n', [2, 3]),
        ('{"messages": [\n{"role": "user", "content": "a"}, M]}A\nA\n', [1, 2]),
    ],
)
def test_a_line_that_is_not_one_example_is_found(template, wrong):
    answer = json.dumps(numbered("chat", 1)["messages"][-1])
    text = template.replace("M", answer).replace("A", json.dumps(numbered("chat", 1)))
    report = check(text.replace("B", json.dumps(numbered("chat", 2))).encode(), file="validation", format="chat")
    assert [(error.line, error.code) for error in report.errors] == [(line, "invalid_json") for line in wrong]


@given(
    lines=st.lists(st.binary(max_size=30) | st.one_of(*EXAMPLES.values()).map(lambda e: json.dumps(e).encode())),
    cuts=st.lists(st.integers(0, 3000)),
)
@settings(deadline=None)
def test_chunks_may_end_anywhere(lines, cuts):
    data = b"\n".join(lines)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    judge = DatasetCheck(max_line=200)
    for start, end in pairwise(places):
        judge.feed(data[start:end])
    assert judge.finish() == check(data, max_line=200)


@given(
    first=st.lists(mutations(EXAMPLES["chat"]), max_size=4), second=st.lists(mutations(EXAMPLES["chat"]), max_size=4)
)
@settings(deadline=None)
def test_two_files_add_up(first, second):
    one, two, both = (
        check(jsonl(*examples), file="validation", format="chat", tokens=TOKENS)
        for examples in (first, second, first + second)
    )
    assert both.examples == one.examples + two.examples
    of_lines = [[e.code for e in report.errors if e.line] for report in (one, two, both)]
    assert of_lines[2] == of_lines[0] + of_lines[1]
    totals = [report.tokens.total if report.tokens else 0 for report in (one, two, both)]
    assert totals[2] == totals[0] + totals[1]
