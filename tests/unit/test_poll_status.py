import pytest
from msgspec.structs import replace
from tunedrop.errors import Cancelled, Denied, Rejected, Transient
from tunedrop.poll_status import LONGEST_PAUSE_SECONDS, QUEUED, UNDER_WAY, poll_status
from tunedrop.providers import PROFILES
from tunedrop.settings import PollSettings
from tunedrop.steps import Done, Wait, take

from tests.unit.fakes import Broken

MINUTE, HOUR, DAY = 60, 3600, 86_400
POLLS_ALONE, WITH_CALLBACKS = PollSettings(0), PollSettings(60)
# 5 of the task, 2 of the choice, 6 of the wait that a callback may end; a retry of the task has 3 more.
EVENTS_OF_A_TURN, EVENTS_OF_A_RETRY = 13, 3


@pytest.fixture
def run(run, provider, ledger):
    job = provider.create_job(model="m", training_file="file-1")
    return ledger.update(run.run_id, state="training", job_id=job.id)


def poll(run, provider, ledger, **job):
    provider.set_job(run.job_id, **job)
    return poll_status(run, POLLS_ALONE, provider=provider, ledger=ledger)


@pytest.mark.parametrize("status", UNDER_WAY)
def test_a_job_under_way_is_waited_for(run, provider, ledger, caplog, status):
    outcome = poll(run, provider, ledger, status=status)
    assert isinstance(outcome, Wait)
    assert outcome.state == "training"
    assert caplog.records == []


def test_a_job_that_succeeded_ends_the_run_with_its_model(run, provider, ledger):
    outcome = poll(run, provider, ledger, status="succeeded", fine_tuned_model="ft:x", trained_tokens=1200)
    assert outcome == Done("succeeded", "ft:x")
    assert (ledger.get(run.run_id).fine_tuned_model, ledger.get(run.run_id).trained_tokens) == ("ft:x", 1200)


@pytest.mark.parametrize("model", [None, ""])
def test_a_job_that_succeeded_without_naming_its_model_yet_is_waited_for(run, provider, ledger, caplog, model):
    assert isinstance(poll(run, provider, ledger, status="succeeded", fine_tuned_model=model), Wait)
    assert caplog.records == []


def test_a_job_that_was_cancelled_ends_the_run_and_says_where(run, provider, ledger):
    with pytest.raises(Cancelled) as caught:
        poll(run, provider, ledger, status="cancelled")
    assert (caught.value.state, caught.value.code) == ("cancelled", "job_cancelled")
    assert "at the fine-tuning service" in caught.value.message


def test_a_job_that_failed_ends_the_run_with_the_services_own_reason(run, provider, ledger):
    with pytest.raises(Denied) as caught:
        poll(run, provider, ledger, status="failed", error_code="invalid_training_file", error_message="Line 3.")
    assert (caught.value.state, caught.value.code, caught.value.message) == (
        "failed",
        "invalid_training_file",
        "Line 3.",
    )


def test_a_job_that_failed_without_a_reason_says_so(run, provider, ledger):
    with pytest.raises(Denied) as caught:
        poll(run, provider, ledger, status="failed", error_code="", error_message=None)
    assert caught.value.code == "job_failed"
    assert "no reason" in caught.value.message


@pytest.mark.parametrize("error", [Denied("insufficient_quota", "m"), Denied("http_404", "m"), Rejected("c", "m")])
@pytest.mark.parametrize("method", ["job", "cancel_job"])
def test_a_job_that_may_not_be_looked_at_is_waited_for_with_an_alarm(
    run, provider, ledger, clock, caplog, method, error
):
    ledger.hold(run.run_id, run.bucket, run.key)
    clock.advance(1)
    ledger.withdraw(run.bucket, run.key, clock.at)
    broken = Broken(provider, method, error)
    answer = take(lambda: poll_status(run, POLLS_ALONE, provider=broken, ledger=ledger), run, 168)
    assert (answer["state"], answer["wait_seconds"]) == ("training", 300)
    [record] = caplog.records
    assert (record.alarm, error.code in record.getMessage()) == ("unauthorised", True)
    assert provider.job(run.job_id).status not in ("cancelled", "failed")


def test_an_unknown_status_is_not_final_and_logs_one_alarm(run, provider, ledger, caplog):
    assert isinstance(poll(run, provider, ledger, status="hibernating"), Wait)
    [record] = caplog.records
    assert record.alarm == "unknown_status"
    assert "hibernating" in record.getMessage()


def test_a_state_that_cannot_be_read_says_nothing_about_the_job(run, provider, ledger):
    with pytest.raises(Transient):
        poll_status(run, POLLS_ALONE, provider=Broken(provider, "job", Transient("500")), ledger=ledger)
    assert ledger.get(run.run_id).state == "training"


# A dataset that was deleted meanwhile


@pytest.fixture
def withdrawn(run, ledger, clock):
    ledger.hold(run.run_id, run.bucket, run.key)
    ledger.withdraw(run.bucket, run.key, clock.at + 1)
    return run


@pytest.mark.parametrize("status", [*UNDER_WAY, "hibernating", "cancelled"])
def test_the_job_of_a_dataset_that_was_deleted_is_cancelled(withdrawn, provider, ledger, status):
    with pytest.raises(Cancelled, match="its dataset was deleted") as caught:
        poll(withdrawn, provider, ledger, status=status)
    assert (caught.value.state, caught.value.code) == ("cancelled", "dataset_deleted")
    assert provider.job(withdrawn.job_id).status == "cancelled"


def test_a_job_that_succeeded_before_its_dataset_was_deleted_is_a_success(withdrawn, provider, ledger):
    assert poll(withdrawn, provider, ledger, status="succeeded", fine_tuned_model="ft:x") == Done("succeeded", "ft:x")


def test_a_job_that_could_not_be_cancelled_is_cancelled_by_the_next_attempt(withdrawn, provider, ledger):
    with pytest.raises(Transient):
        poll(withdrawn, Broken(provider, "cancel_job", Transient("500")), ledger, status="running")
    with pytest.raises(Cancelled):
        poll(withdrawn, provider, ledger)


def test_a_service_that_takes_its_time_to_cancel_is_waited_for(withdrawn, provider, ledger, monkeypatch):
    monkeypatch.setattr(provider, "cancel_job", provider.job)
    assert isinstance(poll(withdrawn, provider, ledger, status="running"), Wait)


# Long in the queue


@pytest.mark.parametrize("status", QUEUED)
def test_a_job_long_in_the_queue_is_told_of_once_and_waited_for(run, provider, ledger, clock, status):
    told = []
    for _ in range(300):
        outcome = poll(run, provider, ledger, status=status)
        told.append((clock.at - provider.job(run.job_id).created_at, outcome.notice))
        clock.advance(outcome.seconds)
    [age] = [age for age, notice in told if notice]
    assert DAY < age <= DAY + 900


@pytest.mark.parametrize("status", ["running", "paused", "hibernating"])
def test_a_job_that_is_not_in_the_queue_is_not_told_of(run, provider, ledger, clock, status):
    clock.advance(3 * DAY)
    assert poll(run, provider, ledger, status=status).notice is None


def test_a_notice_that_was_lost_with_its_step_is_said_again_at_once_but_not_later(run, provider, ledger, clock):
    clock.advance(2 * DAY)
    notices = []
    for pause in (0, 120, 600):
        clock.advance(pause)
        notices.append(poll(run, provider, ledger, status="queued").notice)
    assert notices == ["delayed", "delayed", None]


def test_with_callbacks_too_a_job_long_in_the_queue_is_told_of(run, provider, ledger, clock):
    clock.advance(DAY + 1)
    provider.set_job(run.job_id, status="pending")
    assert poll_status(run, WITH_CALLBACKS, provider=provider, ledger=ledger) == Wait(HOUR, "training", "delayed")


# When to ask again


def polls_of(run, provider, ledger, clock, length, estimate=lambda age: None):
    """The pauses between the polls of a job that takes ``length`` seconds; ``estimate`` tells how long, at an age."""
    began, pauses = clock.at, []
    while (age := clock.at - began) < length:
        said = estimate(age)
        outcome = poll(run, provider, ledger, status="running", estimated_finish=said and int(began + said))
        pauses.append(take(lambda: outcome, run, 1000)["wait_seconds"])  # noqa: B023
        clock.advance(pauses[-1])
    return pauses


def test_without_an_estimate_polls_are_close_at_first_and_draw_apart(run, provider, ledger, clock):
    pauses = polls_of(run, provider, ledger, clock, 6 * HOUR)
    assert pauses[0] == 15
    assert pauses == sorted(pauses)
    assert pauses[-1] == 900
    assert len(pauses) <= 40


def test_with_an_honest_estimate_polls_are_fewer_and_close_at_the_end(run, provider, ledger, clock):
    pauses = polls_of(run, provider, ledger, clock, 6 * HOUR, lambda age: 6 * HOUR)
    assert len(pauses) < 40
    assert pauses[-1] <= 6 * HOUR / 100
    assert max(pauses) == 900


@pytest.mark.parametrize("length", [10 * MINUTE, HOUR, 6 * HOUR, DAY])
def test_an_honest_estimate_costs_no_more_than_a_hundredth_of_the_jobs_time(run, provider, ledger, clock, length):
    began = clock.at
    polls_of(run, provider, ledger, clock, length, lambda age: length)
    assert clock.at - began <= length + max(30, length / 100)


def test_past_its_estimate_polls_draw_apart_again(run, provider, ledger, clock):
    pauses = polls_of(run, provider, ledger, clock, 6 * HOUR, lambda age: HOUR)
    assert pauses[-1] == 900
    assert len(pauses) <= 60


WEEK = 7 * DAY


@pytest.mark.parametrize(
    "estimate",
    [
        lambda age: None,
        lambda age: WEEK,
        lambda age: HOUR,
        lambda age: age + 60,
        lambda age: age + 1,
        lambda age: max(age - 30, 1),
        lambda age: age * 1.1 + 60,
        lambda age: WEEK * 1000,
        lambda age: 1,
    ],
    ids=["none", "honest", "long past", "a minute on", "now", "just past", "a tenth more", "milliseconds", "the start"],
)
def test_a_weeks_job_stays_far_below_what_an_execution_can_hold(run, provider, ledger, clock, estimate):
    turns = len(polls_of(run, provider, ledger, clock, WEEK, estimate))
    # Every fourth poll has to be retried three times: still less than the 25,000 events of an execution.
    assert turns * EVENTS_OF_A_TURN + turns / 4 * 3 * EVENTS_OF_A_RETRY < 16_000


def test_a_clock_that_is_behind_the_services_polls_all_the_same(run, provider, ledger, clock):
    clock.advance(-500)
    assert poll(run, provider, ledger, status="queued").seconds == 15


def test_with_callbacks_the_next_poll_is_only_a_heartbeat(run, provider, ledger):
    provider.set_job(run.job_id, status="running")
    assert poll_status(run, WITH_CALLBACKS, provider=provider, ledger=ledger) == Wait(60 * MINUTE, "training")


def test_a_poll_forgets_the_callbacks_before_it_looks(run, provider, ledger):
    """One that comes while the poll looks is not forgotten: there will be another poll."""
    ledger.join(f"openai/{run.job_id}", run.run_id)

    class CalledBackMeanwhile:
        profile = provider.profile

        def job(self, job_id):
            ledger.call_back(f"openai/{job_id}")
            return provider.job(job_id)

    ledger.call_back(f"openai/{run.job_id}")
    provider.set_job(run.job_id, status="running")
    poll_status(run, WITH_CALLBACKS, provider=CalledBackMeanwhile(), ledger=ledger)
    assert not ledger.wait(run.run_id, "token")
    poll_status(run, WITH_CALLBACKS, provider=provider, ledger=ledger)
    assert ledger.wait(run.run_id, "token")


def test_a_service_that_does_not_call_back_is_polled_all_the_same(run, provider, ledger, clock):
    provider.profile = replace(PROFILES["azure"], calls_back=False)
    provider.set_job(run.job_id, status="pending")
    assert poll_status(run, WITH_CALLBACKS, provider=provider, ledger=ledger).seconds <= LONGEST_PAUSE_SECONDS


@pytest.mark.parametrize(("profile", "alarms"), [("azure", 0), ("openai", 1)])
def test_a_status_that_only_another_service_has_raises_the_alarm(run, provider, ledger, caplog, profile, alarms):
    provider.profile = PROFILES[profile]
    provider.set_job(run.job_id, status="pending")
    poll_status(run, WITH_CALLBACKS, provider=provider, ledger=ledger)
    assert [getattr(record, "alarm", None) for record in caplog.records] == ["unknown_status"] * alarms


def test_a_job_that_failed_for_a_known_reason_says_what_helps(run, provider, ledger):
    provider.set_job(run.job_id, status="failed", error_code="exceeded_quota", error_message="Insufficient funds.")
    with pytest.raises(Denied, match=r"Insufficient funds\. What helps: add credit") as caught:
        poll_status(run, WITH_CALLBACKS, provider=provider, ledger=ledger)
    assert caught.value.code == "insufficient_quota"
