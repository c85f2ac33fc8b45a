"""What the steps of a run cannot see: the sweeper finds it, and each run comes to one end all the same."""

import json
import time

import pytest
import requests
from tunedrop.runs import CONFIG, WEIGHTS, adapter_key

from local.adapter import small_adapter
from tests.workflow.running import RunningStack, until


@pytest.fixture(scope="module")
def swept():
    """A stack of these tests alone: what others leave on purpose would be mended."""
    with RunningStack() as running:
        running.sweep()
        time.sleep(1.1)  # what is dropped from now on is younger than the first sweep, in a store that counts seconds
        yield running


@pytest.fixture
def stack(swept):
    yield swept
    swept.clear_faults()
    assert "failed" not in swept.sweep()


def stop(stack, run_id):
    arn = stack.execution(run_id)["executionArn"]
    stack.step_functions.stop_execution(executionArn=arn)
    until(lambda: stack.execution(run_id)["status"], lambda status: status == "ABORTED", 20)


def execution_over(stack, name):
    return until(lambda: stack.execution(name), lambda found: found["status"] != "RUNNING")


def test_a_dataset_whose_event_was_lost_is_trained_on_once(stack, key, dataset):
    stack.put_quietly(key.replace(".jsonl", ".job.json"), json.dumps({"force": True}).encode())
    etag = stack.put_quietly(key, dataset())
    run_id = stack.sweeps("lost_event")["run_id"]
    ended = stack.ended(run_id)
    assert (ended.state, ended.run["key"]) == ("succeeded", key)
    assert len(ended.jobs) == 1

    late = stack.ended(stack.start(key, etag))
    assert (late.state, late.code) == ("duplicate", "late_event")
    assert run_id in late.message
    assert late.jobs == late.files == []
    assert stack.sweep() == {}


@pytest.mark.parametrize("state", ["uploading", "training"])
def test_a_run_whose_execution_somebody_ended_comes_to_one_end(stack, key, dataset, state):
    if state == "uploading":
        stack.provider_fault("POST", "/v1/files", {"status": 429, "headers": {"retry-after": "3600"}})
    stack.next_job("succeeded", duration_seconds=3600)
    run_id = stack.drop(key, dataset())
    stack.reaches(run_id, state)
    stop(stack, run_id)

    assert stack.sweeps("stuck_run") == {"kind": "stuck_run", "alarm": False, "run_id": run_id, "execution": 2}
    assert execution_over(stack, f"{run_id}-2")["status"] == "SUCCEEDED"
    (told,) = until(lambda: stack.notifications(run_id), bool)
    jobs, files = stack.paid(run_id)
    assert told["message"]["type"] == "run.succeeded"
    assert stack.run(run_id)["state"] == "succeeded"
    assert len(jobs) == len(files) == 1
    assert stack.sweep() == {}


MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"


def finetunes(stack):
    return [found["name"] for found in stack.workers_ai("GET", "/ledger")["finetunes"]]


def test_an_adapter_whose_execution_somebody_ended_is_published_once(stack):
    wait = {"status": 429, "headers": {"retry-after": "3600"}}
    stack.workers_ai("POST", "/faults", {"method": "POST", "path": "*/finetune-assets", "fault": wait})
    for file, body in small_adapter(MISTRAL, seed=1).items():
        stack.put(adapter_key("stuck", file), body)
    run_id = stack.started(adapter_key("stuck", WEIGHTS))
    until(lambda: stack.states(run_id), lambda states: "Wait to publish" in states)
    stop(stack, run_id)

    assert stack.sweeps("stuck_run") == {"kind": "stuck_run", "alarm": False, "run_id": run_id, "execution": 2}
    execution = execution_over(stack, f"{run_id}-2")
    assert execution["status"] == "SUCCEEDED"
    assert execution["stateMachineArn"] == stack.address["adapter_state_machine"]
    (told,) = until(lambda: stack.notifications(run_id), bool)
    assert (told["message"]["type"], stack.run(run_id)["state"]) == ("run.succeeded", "succeeded")
    assert finetunes(stack).count("stuck") == 1
    assert stack.sweep() == {}


def test_an_adapter_whose_event_was_lost_is_published_once(stack):
    files, key = small_adapter(MISTRAL, seed=2), adapter_key("lost", WEIGHTS)
    stack.put_quietly(adapter_key("lost", CONFIG), files[CONFIG])
    etag = stack.put_quietly(key, files[WEIGHTS])
    run_id = stack.sweeps("lost_event")["run_id"]
    ended = stack.ended(run_id)
    assert (ended.state, ended.run["key"]) == ("succeeded", key)

    late = stack.ended(stack.start(key, etag))
    assert late.state == "duplicate"
    assert run_id in late.message
    assert finetunes(stack).count("lost") == 1
    assert stack.sweep() == {}


@pytest.mark.parametrize("function", ["UploadFunction", "CreateJobFunction"])
def test_an_end_that_is_told_again_is_the_same_and_does_nothing_else(stack, key, dataset, function):
    stack.crash(function, "error")
    run_id = stack.drop(key, dataset())
    ended = stack.ended(run_id)
    assert (ended.state, ended.code) == ("failed", "InjectedFault")

    again = f"{run_id}-2"
    machine, given = stack.address["state_machine"], ended.execution["input"]
    stack.step_functions.start_execution(stateMachineArn=machine, name=again, input=given)
    execution = execution_over(stack, again)
    assert (execution["status"], execution["error"]) == ("FAILED", "failed")
    assert "Publish final state" in stack.states(again)
    assert stack.run(run_id) == ended.run
    assert stack.paid(run_id) == ([], ended.files)
    stack.drained()
    assert len(stack.notifications(run_id)) == 1


def test_a_job_that_shows_after_its_runs_end_is_cancelled(stack, key, dataset):
    stack.crash("CreateJobFunction", "error")
    ended = stack.ended(stack.drop(key, dataset()))
    assert (ended.state, ended.jobs) == ("failed", [])
    stack.next_job("stuck")
    headers = {"authorization": f"Bearer {stack.address['provider_key']}"}
    body = {
        "model": ended.run["model"],
        "training_file": ended.run["file_id"],
        "metadata": {"run_id": ended.run["run_id"]},
    }
    job = requests.post(f"{stack.address['provider']}/fine_tuning/jobs", json=body, headers=headers, timeout=20).json()

    found = stack.sweeps("unwanted_job")
    assert (found["run_id"], found["job_id"]) == (ended.run["run_id"], job["id"])
    assert stack.provider_job(job["id"])["status"] == "cancelled"
    assert stack.sweep() == {}


def test_a_model_that_is_found_after_its_runs_end_is_told(stack, key, dataset):
    stack.crash("CreateJobFunction", "error")
    ended = stack.ended(stack.drop(key, dataset()))
    run_id = ended.run["run_id"]
    headers = {"authorization": f"Bearer {stack.address['provider_key']}"}
    body = {"model": ended.run["model"], "training_file": ended.run["file_id"], "metadata": {"run_id": run_id}}
    stack.next_job("succeeded", duration_seconds=1)
    job = requests.post(f"{stack.address['provider']}/fine_tuning/jobs", json=body, headers=headers, timeout=20).json()
    until(lambda: stack.provider_job(job["id"])["status"], lambda status: status == "succeeded", 20)

    model = stack.sweeps("model_found")["fine_tuned_model"]
    assert model == stack.provider_job(job["id"])["fine_tuned_model"]
    (notice,) = until(lambda: stack.notices(run_id), bool)
    assert (notice["id"], notice["message"]["type"]) == (f"msg_{run_id}_model_found", "run.model_found")
    assert notice["message"]["data"]["fine_tuned_model"] == model
    assert stack.run(run_id) == ended.run, "its end stands"
    assert stack.sweep() == {}
