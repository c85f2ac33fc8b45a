"""Functions that die, at every step of a run: repeated where that helps, told of once where it does not."""

import pytest

STEPS = ("UploadFunction", "CreateJobFunction", "PollStatusFunction", "CollectFunction")
DEATHS = {
    "exit": {"fault": "exit"},
    "timeout": {"fault": "timeout"},
    "killed": {"fault": "kill_after"},
    "transient": {"fault": "error", "error_type": "Transient"},
    "throttled": {"fault": "error", "error_type": "Lambda.TooManyRequestsException"},
}
CRASHES = {"fault": "error", "error_type": "Runtime.ExitError", "times": 5}  # one more than is repeated


@pytest.mark.parametrize("death", DEATHS)
def test_every_step_may_die_once_and_is_repeated(stack, key, dataset, death):
    for function in STEPS:
        stack.crash(function, **DEATHS[death])
    run_id = stack.drop(key, dataset())
    ended = stack.ended(run_id)

    assert ended.state == "succeeded"
    assert len(ended.jobs) == len(ended.files) == 1
    assert len(ended.run["result_keys"]) == 4
    failures = [event for event in stack.history(run_id) if event["type"] == "LambdaFunctionFailed"]
    assert len(failures) == len(STEPS)


@pytest.mark.parametrize("function", STEPS[:3])
@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        pytest.param({"fault": "error"}, "InjectedFault", "failed unexpectedly", id="unexpected"),
        pytest.param(CRASHES, "Runtime.ExitError", "crashed", id="crash"),
    ],
)
def test_a_step_that_fails_for_good_fails_the_run(stack, key, dataset, function, fault, code, says):
    if function == "PollStatusFunction":
        stack.next_job("succeeded", duration_seconds=600_000)
    stack.crash(function, **fault)
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == ("failed", code)
    assert says in ended.message
    assert "dropped again" in ended.message
    assert len(ended.jobs) == (function == "PollStatusFunction")
    assert all(job["status"] == "cancelled" for job in ended.jobs), "a job that nobody follows may not run on"


def test_a_job_that_has_succeeded_when_polling_fails_for_good_makes_the_run_a_success(stack, key, dataset):
    stack.next_job("succeeded", duration_seconds=1)
    stack.crash("PollStatusFunction", "exit")  # a new process takes longer to start than the job takes
    stack.crash("PollStatusFunction", **CRASHES)
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == ("succeeded", None)


def test_collecting_that_fails_for_good_leaves_a_success_a_success(stack, key, dataset):
    stack.crash("CollectFunction", "error")
    run_id = stack.drop(key, dataset())
    ended = stack.ended(run_id)

    assert (ended.state, ended.code) == ("succeeded", "results_not_collected")
    assert ended.run["fine_tuned_model"].startswith("ft:")
    assert ended.notification["message"]["data"]["fine_tuned_model"] == ended.run["fine_tuned_model"]
    assert "Tell of the model alone" in stack.states(run_id)


def test_collecting_that_fails_for_good_leaves_what_was_found_out(stack, key, dataset):
    stack.crash("CollectFunction", "error")
    run_id = stack.drop(key, dataset(9))
    ended = stack.ended(run_id)

    assert (ended.state, ended.code) == ("rejected", "too_few_examples")
    assert "Tell of the answer alone" in stack.states(run_id)


def test_collecting_that_fails_for_good_after_a_failure_fails_the_run(stack, key, dataset):
    stack.crash("CreateJobFunction", **CRASHES)
    stack.crash("CollectFunction", "error")
    run_id = stack.drop(key, dataset())
    ended = stack.ended(run_id)

    assert (ended.state, ended.code) == ("failed", "results_not_collected")
    assert "Tell of the failure alone" in stack.states(run_id)


def test_a_run_that_failed_before_it_was_written_down_is_written_down_at_the_end(stack, key, dataset):
    stack.crash("UploadFunction", "error")
    stack.crash("CollectFunction", "error")
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == ("failed", "results_not_collected")
    assert ended.run["key"] == key


def test_the_way_in_may_die_and_the_event_comes_again(stack, key, dataset):
    stack.crash("WebhookFunction", "kill_after")
    stack.crash("WebhookFunction", "exit")
    run_id = stack.drop(key, dataset())

    assert stack.delivery(key)["attempts"] == 3
    assert stack.ended(run_id).state == "succeeded"
