import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tunedrop.runs import Failure, Run, RunRequest, results_key, run_id_of

REQUEST = RunRequest("r1", "datasets", "a.jsonl", "e1", 10)


def test_the_same_request_always_reads_the_same_as_input():
    assert REQUEST.to_input() == RunRequest(**json.loads(REQUEST.to_input())).to_input()


def test_a_request_is_read_from_an_input_that_the_execution_has_added_to():
    assert RunRequest.from_input(json.loads(REQUEST.to_input()) | {"answer": {"state": "waiting"}}) == REQUEST


def test_a_request_may_lack_its_size():
    given = json.loads(REQUEST.to_input())
    del given["size"]
    assert RunRequest.from_input(given).size is None


@settings(deadline=None)  # other work on the machine is no fault of the code
@given(st.lists(st.text(max_size=3), min_size=4, max_size=4), st.lists(st.text(max_size=3), min_size=4, max_size=4))
def test_ids_are_equal_for_equal_events_alone(one, other):
    assert (run_id_of(*one) == run_id_of(*other)) == (one == other)


def test_a_run_begins_as_received(clock):
    run = Run.of(REQUEST)
    assert (run.state, run.created_at, run.updated_at) == ("received", "2026-03-01T10:00:00.000Z", run.created_at)
    assert not run.is_final


def test_a_document_reads_back_as_the_same_run(clock):
    document = Run.of(REQUEST).document() | {
        "error": {"code": "c", "message": "m"},
        "result_keys": ["results/r1/report.json"],
        "finished_at": "2026-03-01T10:00:01.000Z",
    }
    run = Run.from_document(json.loads(json.dumps(document)))
    assert run.error == Failure("c", "m")
    assert run.is_final
    assert run.document() == document


def test_a_document_of_a_newer_version_is_read(clock):
    run = Run.of(REQUEST)
    assert Run.from_document(run.document() | {"news": 1}) == run


DOCUMENTED = """run_id state bucket key etag size provider model method examples tokens estimated_cost_usd file_id
validation_file_id job_id fine_tuned_model trained_tokens result_keys error created_at updated_at finished_at"""


@pytest.mark.parametrize("name", DOCUMENTED.split())
def test_a_document_holds_every_documented_name(clock, name):
    assert name in Run.of(REQUEST).document()


def test_results_are_kept_by_run():
    assert results_key("r1", "job.json") == "results/r1/job.json"
