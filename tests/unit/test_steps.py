import json

import pytest
from tunedrop.errors import (
    Cancelled,
    Denied,
    Duplicate,
    Missing,
    NotYet,
    OverBudget,
    Rejected,
    Superseded,
    Throttled,
    TimedOut,
    Transient,
    Unauthorised,
    UnknownOutcome,
)
from tunedrop.runs import Failure
from tunedrop.steps import Done, Wait, next_look_seconds, take

HOUR = 3600


def raising(error):
    def step():
        raise error

    return step


def test_a_step_that_is_done_goes_on(run):
    assert take(lambda: Done("waiting"), run, 168) == {"run_id": run.run_id, "state": "waiting"}


def test_a_model_is_answered_once_there_is_one(run):
    answer = take(lambda: Done("succeeded", "ft:x"), run, 168)
    assert answer == {"run_id": run.run_id, "state": "succeeded", "fine_tuned_model": "ft:x"}


@pytest.mark.parametrize(("seconds", "answered"), [(0, 1), (-3, 1), (0.2, 1), (1, 1), (1.2, 2), (899.999, 900)])
def test_a_wait_is_a_whole_number_of_at_least_one(run, seconds, answered):
    answer = take(lambda: Wait(seconds, "training"), run, 168)
    assert answer == {"run_id": run.run_id, "state": "training", "wait_seconds": answered}
    assert isinstance(answer["wait_seconds"], int)


def test_a_notice_is_answered_as_it_is_published(run):
    answer = take(lambda: Wait(900, "training", "delayed"), run, 168)
    notice = answer["notice"]
    assert (notice["kind"], notice["subject"]) == ("delayed", "Your job is still in the queue: orders.jsonl")
    assert json.loads(notice["message"]["default"]) == run.document() | {"notice": "delayed"}
    assert "more than a day" in notice["message"]["email"]


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        *((Rejected, "rejected"), (Denied, "failed"), (Superseded, "superseded"), (Missing, "missing")),
        *((Duplicate, "duplicate"), (OverBudget, "over_budget"), (TimedOut, "timed_out")),
        (Cancelled, "cancelled"),
    ],
)
def test_a_final_error_ends_the_run_in_its_state(run, kind, state):
    answer = take(raising(kind("code", "A sentence.")), run, 168)
    error = {"code": "code", "message": "A sentence."}
    assert answer == {"run_id": run.run_id, "state": state, "error": error}


def test_a_throttled_step_waits_as_long_as_it_was_asked_to(run):
    answer = take(raising(Throttled("x", 12.5)), run, 168)
    assert answer == {"run_id": run.run_id, "state": "received", "wait_seconds": 13}


@pytest.mark.parametrize(("turn", "wait"), [(12.2, 13), (3599.5, 3600), (5000, 3600), (86_400, 43_200)])
def test_a_step_sleeps_until_its_turn_or_half_way_to_it_when_that_is_far(run, clock, turn, wait):
    clock.advance(100 * HOUR)
    assert take(raising(NotYet("x", turn)), run, 168)["wait_seconds"] == wait


def test_refused_credentials_wait_for_the_operator_with_an_alarm_and_without_what_the_service_said(run, caplog):
    error = Unauthorised("refused")
    error.__cause__ = ValueError("sk-secret")
    answer = take(raising(error), run, 168)
    assert answer == {"run_id": run.run_id, "state": "received", "wait_seconds": 300}
    [record] = caplog.records
    assert (record.alarm, record.run_id) == ("unauthorised", run.run_id)
    assert "sk-secret" not in caplog.text


def test_an_unknown_outcome_is_looked_after_soon(run):
    assert take(raising(UnknownOutcome("x")), run, 168)["wait_seconds"] == 5


def test_what_passes_is_left_to_the_state_machine(run):
    with pytest.raises(Transient):
        take(raising(Transient("x")), run, 168)


def test_a_fault_of_ours_is_not_hidden(run):
    with pytest.raises(ZeroDivisionError):
        take(raising(ZeroDivisionError()), run, 168)


def test_a_run_past_its_deadline_is_timed_out_instead_of_stepping_on(run, clock):
    clock.advance(168 * HOUR + 1)
    answer = take(raising(AssertionError("stepped on")), run, 168)
    assert answer["state"] == "timed_out"
    assert answer["error"] == {"code": "deadline", "message": "the run did not end within the 168 h that it may take"}


def test_a_run_within_its_deadline_steps_on(run, clock):
    clock.advance(168 * HOUR - 1)
    assert take(lambda: Done("waiting"), run, 168)["state"] == "waiting"


def test_a_deadline_may_be_a_part_of_an_hour(run, clock):
    clock.advance(0.5 * HOUR + 1)
    assert "the 0.5 h" in take(lambda: Done("waiting"), run, 0.5)["error"]["message"]


# An execution holds 25,000 events; 9 for a turn of the loop: 5 of the task, 2 of the choice, 2 of the wait.


@pytest.mark.parametrize(
    "error", [Throttled("x", 1), Throttled("x", 30), UnknownOutcome("x"), Unauthorised("x")], ids=repr
)
def test_a_week_of_the_same_trouble_stays_far_below_what_an_execution_can_hold(run, clock, error):
    events = 0
    while "wait_seconds" in (answer := take(raising(error), run, 168)):
        clock.advance(answer["wait_seconds"])
        events += 9
    assert answer["state"] == "timed_out"
    assert events < 12_000


@pytest.mark.parametrize("age", [0, 60, HOUR, 24 * HOUR])
def test_a_pause_grows_no_further_than_a_quarter_of_an_hour(run, clock, age):
    clock.advance(age)
    assert take(raising(Throttled("x", 1)), run, 168)["wait_seconds"] <= 900


def test_a_longer_pause_that_was_asked_for_is_kept(run, clock):
    clock.advance(100 * HOUR)
    assert take(raising(Throttled("x", 3600)), run, 168)["wait_seconds"] == 3600


# Looking again


def test_looks_draw_apart_until_the_last_one(clock):
    since, looks = clock.at, []
    while (pause := next_look_seconds(since, 900)) is not None:
        looks.append(pause)
        clock.advance(pause)
    assert looks[0] == 5
    assert looks[:6] == sorted(looks[:6])
    assert max(looks) == 120
    assert 900 <= sum(looks) <= 901
    assert len(looks) < 15


def test_no_wait_outlasts_the_deadline(run, clock):
    """A job that runs on costs money, whatever the heartbeat is."""
    clock.advance(3500)
    assert take(lambda: Wait(36_000, "training"), run, 1)["wait_seconds"] == 101


@pytest.mark.parametrize("error", [None, Failure("c", "A sentence.")])
@pytest.mark.parametrize("model", [None, "ft:x"])
def test_a_run_that_has_ended_takes_no_step_and_tells_its_end(ledger, run, clock, error, model):
    ended = ledger.finish(run.run_id, "failed" if error else "succeeded", error, fine_tuned_model=model)
    clock.advance(365 * 24 * HOUR)
    expected = {"run_id": run.run_id, "state": ended.state}
    expected |= {"error": {"code": "c", "message": "A sentence."}} if error else {}
    expected |= {"fine_tuned_model": model} if model else {}
    assert take(raising(AssertionError("no step")), ended, 168) == expected
