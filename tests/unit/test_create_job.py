import itertools
from contextlib import suppress

import pytest
from msgspec.structs import replace
from tunedrop.create_job import LAST_LOOK_SECONDS, create_job
from tunedrop.errors import Cancelled, Denied, NotYet, Rejected, Throttled, Transient, Unauthorised, UnknownOutcome
from tunedrop.runs import Run, RunRequest
from tunedrop.steps import Done, Wait, take

from tests.unit.fakes import Broken, MemoryProvider

PARAMETERS = {"model": "gpt-4o-mini", "seed": 7}


@pytest.fixture
def run(run, provider, ledger):
    """A run whose file is uploaded, in a provider that has another run's job as well."""
    own, other = (provider.upload(f"{name}.jsonl", [b"{}\n"], 3) for name in (run.run_id, "other"))
    provider.create_job(model="gpt-4o-mini", training_file=other.id)
    provider.requests.clear()
    ledger.plan(run.run_id, {**PARAMETERS, "training_file": own.id})
    return ledger.update(run.run_id, state="waiting", file_id=own.id)


def jobs(provider, run):
    return [job for job in provider.jobs.values() if job.training_file == run.file_id]


def step(run, provider, ledger):
    """One turn of the state machine, which reads the run anew."""
    return create_job(ledger.get(run.run_id), provider=provider, ledger=ledger)


def drive(run, provider, ledger, clock, hours=2):
    """Turns as the state machine takes them, until the step is done; how long it took, in seconds."""
    began = clock.at
    while "wait_seconds" in (answer := take(lambda: step(run, provider, ledger), ledger.get(run.run_id), hours)):
        clock.advance(answer["wait_seconds"])
    assert answer["state"] == "training", answer
    return clock.at - began


def test_a_job_is_created_as_planned_and_recorded(run, provider, ledger):
    assert step(run, provider, ledger) == Done("training")
    assert provider.requests == [{**PARAMETERS, "training_file": run.file_id}]
    [job] = jobs(provider, run)
    assert (ledger.get(run.run_id).state, ledger.get(run.run_id).job_id) == ("training", job.id)


def test_a_job_that_is_recorded_is_not_created_again(run, provider, ledger):
    step(run, provider, ledger)
    assert step(run, provider, ledger) == Done("training")
    assert len(provider.requests) == 1


# A file that is not ready


@pytest.mark.parametrize("status", ["uploaded", "pending", "running"])
def test_a_file_in_processing_is_waited_for(run, provider, ledger, status):
    provider.set_file(run.file_id, status=status)
    assert step(run, provider, ledger) == Wait(5, "waiting")
    assert provider.requests == []


def test_a_file_that_is_never_called_processed_is_used_after_an_hour(run, provider, ledger, clock):
    provider.set_file(run.file_id, status="uploaded")
    assert 3600 <= drive(run, provider, ledger, clock) <= 3610


@pytest.mark.parametrize("status", ["processed", "something new"])
def test_a_file_of_any_other_status_is_used(run, provider, ledger, status):
    provider.set_file(run.file_id, status=status)
    assert step(run, provider, ledger) == Done("training")


@pytest.mark.parametrize("status", ["error", "failed"])
def test_a_file_that_could_not_be_processed_rejects_the_run(run, provider, ledger, status):
    provider.set_file(run.file_id, status=status)
    with pytest.raises(Rejected) as caught:
        step(run, provider, ledger)
    assert caught.value.code == "file_not_processed"


# Paying once


def test_a_job_whose_creation_was_not_recorded_is_adopted(run, provider, ledger):
    with pytest.raises(Transient):
        step(run, provider, Broken(ledger, "update", Transient("the ledger is away")))
    assert step(run, provider, ledger) == Done("training")
    [job] = jobs(provider, run)
    assert ledger.get(run.run_id).job_id == job.id
    assert len(provider.requests) == 1


@pytest.mark.parametrize("error", [UnknownOutcome("reset"), MemoryError()], ids=repr)
def test_a_job_whose_creation_was_not_answered_is_adopted(run, provider, ledger, error):
    with pytest.raises(type(error)):
        step(run, Broken(provider, "create_job", error, after=True), ledger)
    assert step(run, provider, ledger) == Done("training")
    assert len(jobs(provider, run)) == 1


@pytest.mark.parametrize("lag", [10, 300, LAST_LOOK_SECONDS - 1])
def test_a_job_that_is_listed_late_is_adopted_and_not_created_again(run, provider, ledger, clock, lag):
    provider.lag = lag
    broken = Broken(provider, "create_job", UnknownOutcome("time-out"), after=True)
    took = drive(run, broken, ledger, clock)
    [job] = jobs(provider, run)
    assert ledger.get(run.run_id).job_id == job.id
    assert lag <= took <= lag + 130


def test_a_creation_that_never_was_is_repeated_after_the_last_look_and_not_before(run, provider, ledger, clock):
    broken = Broken(provider, "create_job", UnknownOutcome("502"))
    took = drive(run, broken, ledger, clock)
    assert LAST_LOOK_SECONDS <= took <= LAST_LOOK_SECONDS + 10
    assert len(jobs(provider, run)) == 1


def test_an_attempt_that_died_before_it_called_is_treated_as_one_that_may_have_called(run, provider, ledger, clock):
    ledger.intend(run.run_id, "create_job")
    took = drive(run, provider, ledger, clock)
    assert LAST_LOOK_SECONDS <= took <= LAST_LOOK_SECONDS + 10


def test_while_one_attempt_creates_another_does_not(run, provider, ledger):
    class Meanwhile(MemoryProvider):
        def create_job(self, **parameters):
            assert isinstance(step(run, provider, ledger), Wait)
            return provider.create_job(**parameters)

    first = Meanwhile()
    first.file, first.jobs_on = provider.file, provider.jobs_on
    step(run, first, ledger)
    assert len(jobs(provider, run)) == 1


def test_after_a_second_unknown_outcome_the_last_look_is_as_far_away_again(run, provider, ledger, clock):
    broken = Broken(provider, "create_job", UnknownOutcome("502"), times=2)
    assert drive(run, broken, ledger, clock) >= 2 * LAST_LOOK_SECONDS
    assert len(jobs(provider, run)) == 1


@pytest.mark.parametrize(
    "error", [Rejected("c", "m"), Denied("c", "m"), Throttled("m", 5), Unauthorised("m")], ids=repr
)
def test_after_a_refusal_the_job_may_be_created_without_looking_for_it(run, provider, ledger, clock, error):
    with pytest.raises(type(error)):
        step(run, Broken(provider, "create_job", error), ledger)
    clock.advance(getattr(error, "wait_seconds", 0))
    assert step(run, provider, ledger) == Done("training")


def test_nothing_is_created_while_looking_fails(run, provider, ledger):
    with pytest.raises(Transient):
        step(run, Broken(provider, "jobs_on", Transient("500")), ledger)
    assert provider.requests == []


def test_nothing_is_created_while_the_intent_cannot_be_noted(run, provider, ledger):
    with pytest.raises(Transient):
        step(run, provider, Broken(ledger, "intend", Transient("away")))
    assert provider.requests == []


# Two found


def test_of_two_jobs_the_oldest_is_kept_the_other_cancelled_and_that_is_said(run, provider, ledger, clock, caplog):
    first = provider.create_job(model="m", training_file=run.file_id)
    clock.advance(1)
    second = provider.create_job(model="m", training_file=run.file_id)
    step(run, provider, ledger)
    assert ledger.get(run.run_id).job_id == first.id
    assert (provider.job(first.id).status, provider.job(second.id).status) == ("validating_files", "cancelled")
    assert second.id in caplog.text


def test_of_two_jobs_in_one_second_the_smaller_id_is_kept(run, provider, ledger):
    made = [provider.create_job(model="m", training_file=run.file_id) for _ in range(3)]
    step(run, provider, ledger)
    assert ledger.get(run.run_id).job_id == min(job.id for job in made)
    assert [provider.job(job.id).status for job in made].count("cancelled") == 2


def test_a_surplus_that_could_not_be_cancelled_is_cancelled_by_the_next_attempt(run, provider, ledger):
    made = [provider.create_job(model="m", training_file=run.file_id) for _ in range(2)]
    with pytest.raises(Transient):
        step(run, Broken(provider, "cancel_job", Transient("500")), ledger)
    step(run, provider, ledger)
    assert provider.job(made[1].id).status == "cancelled"


def test_another_runs_job_is_left_alone(run, provider, ledger):
    step(run, provider, ledger)
    others = [job for job in provider.jobs.values() if job.training_file != run.file_id]
    assert [job.status for job in others] == ["validating_files"]


# A dataset that was deleted meanwhile


@pytest.fixture
def withdrawn(run, ledger, clock):
    ledger.hold(run.run_id, run.bucket, run.key)
    ledger.withdraw(run.bucket, run.key, clock.at + 1)
    return run


def test_nothing_is_created_for_a_dataset_that_was_deleted(withdrawn, provider, ledger):
    with pytest.raises(Cancelled, match="its dataset was deleted") as caught:
        step(withdrawn, provider, ledger)
    assert caught.value.code == "dataset_deleted"
    assert jobs(provider, withdrawn) == []


def test_a_job_that_may_be_there_is_looked_for_before_the_run_ends(run, provider, ledger, clock):
    lost = Broken(provider, "create_job", UnknownOutcome("reset"), after=True)
    provider.lag = 60
    with pytest.raises(UnknownOutcome):
        step(run, lost, ledger)
    ledger.hold(run.run_id, run.bucket, run.key)
    ledger.withdraw(run.bucket, run.key, clock.at + 1)
    assert isinstance(step(run, provider, ledger), Wait)
    clock.advance(60)
    assert step(run, provider, ledger) == Done("training"), "the next step cancels it"


# Limits


def another(run, provider, ledger, number):
    """One more run like it, whose file is uploaded."""
    begun = ledger.begin(Run.of(RunRequest(f"{number:032}", "datasets", f"{number}.jsonl", "e", 1)))
    file = provider.upload(f"{begun.run_id}.jsonl", [b"{}\n"], 3)
    ledger.plan(begun.run_id, {**PARAMETERS, "training_file": file.id})
    return ledger.update(begun.run_id, state="waiting", file_id=file.id)


def test_the_eleventh_job_of_an_hour_waits_for_its_turn_and_is_created_then(run, provider, ledger, clock):
    for number in range(1, 11):
        assert step(another(run, provider, ledger, number), provider, ledger) == Done("training")
    answer = take(lambda: step(run, provider, ledger), run, 24)
    assert answer["state"] == "waiting"
    assert 3540 < answer["wait_seconds"] <= 3600
    assert jobs(provider, run) == []
    waited = drive(run, provider, ledger, clock, hours=24)
    assert 3600 < waited < 3600 * 1.03
    assert len(jobs(provider, run)) == 1


def test_a_run_that_is_asked_before_its_turn_asks_the_service_nothing(run, provider, ledger, clock):
    for number in range(1, 11):
        step(another(run, provider, ledger, number), provider, ledger)
    with pytest.raises(NotYet) as first:
        step(run, provider, ledger)
    clock.advance(first.value.wait_seconds / 2)
    with pytest.raises(NotYet) as second:
        step(run, None, ledger)
    assert second.value.wait_seconds == pytest.approx(first.value.wait_seconds / 2, abs=0.01)


def test_another_models_job_need_not_wait(run, provider, ledger):
    for number in range(1, 11):
        step(another(run, provider, ledger, number), provider, ledger)
    ledger.plan(run.run_id, {**PARAMETERS, "model": "gpt-4.1", "training_file": run.file_id})
    assert step(run, provider, ledger) == Done("training")


def test_a_run_whose_dataset_is_deleted_does_not_wait_for_its_turn(run, provider, ledger, clock):
    for number in range(1, 11):
        step(another(run, provider, ledger, number), provider, ledger)
    with pytest.raises(NotYet):
        step(run, provider, ledger)
    ledger.hold(run.run_id, run.bucket, run.key)
    ledger.withdraw(run.bucket, run.key, clock.at + 1)
    with pytest.raises(Cancelled):
        step(run, provider, ledger)


def test_a_job_that_was_created_unseen_before_a_crash_is_found_without_a_turn(run, provider, ledger, clock):
    with pytest.raises(UnknownOutcome):
        step(run, Broken(provider, "create_job", UnknownOutcome("reset"), after=True), ledger)
    for number in range(1, 11):
        with suppress(NotYet):
            step(another(run, provider, ledger, number), provider, ledger)
    assert step(run, provider, ledger) == Done("training")
    assert len(jobs(provider, run)) == 1


def test_as_many_jobs_as_the_service_takes_are_under_way_and_the_next_waits_ever_longer(run, provider, ledger, clock):
    provider.profile = replace(provider.profile, concurrent_jobs=1)
    first = another(run, provider, ledger, 1)
    assert step(first, provider, ledger) == Done("training")
    waits = []
    for _ in range(60):
        waits.append(step(run, provider, ledger).seconds)
        clock.advance(waits[-1])
    assert waits[0] == 15
    assert waits == sorted(waits)
    assert waits[-1] == 600
    ledger.finish(first.run_id, "succeeded", None)
    ledger.release(first.run_id)
    assert step(run, provider, ledger) == Done("training")


def test_a_run_whose_dataset_is_deleted_does_not_wait_for_a_place(run, provider, ledger, clock):
    provider.profile = replace(provider.profile, concurrent_jobs=1)
    step(another(run, provider, ledger, 1), provider, ledger)
    ledger.hold(run.run_id, run.bucket, run.key)
    ledger.withdraw(run.bucket, run.key, clock.at + 1)
    with pytest.raises(Cancelled):
        step(run, provider, ledger)


# Two attempts at the same time: whoever asked for the first has given up on it, and it goes on


class Preempted:
    """Hands every call on to ``whole``; before the one of that number, counted over all that share ``calls``, another
    attempt takes its whole way."""

    def __init__(self, whole, calls, number, other):
        self._whole, self._calls, self._number, self._other = whole, calls, number, other

    def __getattr__(self, name):
        found = getattr(self._whole, name)
        if not callable(found):
            return found

        def call(*arguments, **named):
            if next(self._calls) == self._number:
                with suppress(NotYet, UnknownOutcome, Throttled):
                    self._other()
            return found(*arguments, **named)

        return call


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("lost_before", [0, LAST_LOOK_SECONDS - 1, LAST_LOOK_SECONDS])
def test_an_attempt_that_another_one_overtakes_pays_nothing_twice(run, provider, ledger, clock, number, lost_before):
    if lost_before:
        ledger.intend(run.run_id, "create_job")
        clock.advance(lost_before)
    calls = itertools.count()
    slow = [Preempted(whole, calls, number, lambda: step(run, provider, ledger)) for whole in (provider, ledger)]
    with suppress(NotYet, UnknownOutcome):
        step(run, *slow)
    assert len(provider.requests) <= 1
