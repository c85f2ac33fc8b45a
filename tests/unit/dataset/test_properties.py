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
    quick = check(lines, tokens=TOKENS)
    with monkeypatch.context() as patch:
        patch.setattr("tunedrop.dataset.judge.decoders_of", lambda name: ())
        assert quick == check(lines, tokens=TOKENS)


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
