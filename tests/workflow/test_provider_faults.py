"""A fine-tuning service that misbehaves: every call of a run, every kind of answer, and never a second job."""

import json

import pytest

from tests.local.provider_support import until
from tests.workflow.running import FILES, JOBS, RunningStack

NO_QUOTA = {
    "error": {"message": "You exceeded your current quota.", "type": "insufficient_quota", "code": "insufficient_quota"}
}
NO_MODEL = {
    "error": {"message": "The model does not exist.", "type": "invalid_request_error", "code": "model_not_found"}
}
SUCCEEDED = ("succeeded", None)
DENIED = ("failed", "provider_denied")
OUT_OF_QUOTA = ("failed", "insufficient_quota")

# What every call recovers from: the job is there, and there is one.
PASSING = {
    "401": {"status": 401},
    "408": {"status": 408},
    "409": {"status": 409},
    "429": {"status": 429},
    "429 with a wait": {"status": 429, "headers": {"retry-after": 20}},
    "429 with nonsense": {"status": 429, "headers": {"retry-after": "soon"}},
    "500": {"status": 500},
    "500 after the work": {"status": 500, "after": True},
    "504 after the work": {"html": 504, "after": True},
    "reset before": {"reset": "before"},
    "reset after": {"reset": "after"},
    "HTML": {"html": 200},
    "HTML after the work": {"html": 200, "after": True},
    "empty": {"truncate": 0},
    "cut": {"truncate": 40},
    "cut against its length": {"truncate": 40, "whole_length": True},
}
REFUSALS = {
    "400": {"status": 400},
    "402": {"status": 402},
    "403": {"status": 403},
    "404": {"status": 404},
    "quota": {"status": 429, "body": NO_QUOTA},
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("path", [FILES, JOBS])
def test_a_creation_that_goes_wrong_is_made_good_and_paid_once(stack, key, dataset, path, fault):
    stack.provider_fault("POST", f"{path}$", fault)
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == SUCCEEDED
    assert len(ended.jobs) == len(ended.files) == 1


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_look_at_the_job_that_goes_wrong_is_repeated(stack, key, dataset, fault):
    stack.provider_fault("GET", f"{JOBS}/*", fault)
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == SUCCEEDED


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_any_look_that_goes_wrong_is_repeated(stack, key, dataset, fault):
    for path in (f"{FILES}$", f"{FILES}/*", f"{JOBS}$", f"{JOBS}/*/events"):
        stack.provider_fault("GET", path, fault)
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == SUCCEEDED
    assert len(ended.run["result_keys"]) == 4


@pytest.mark.parametrize(
    ("fault", "state", "code"),
    [
        ("400", "rejected", "requests"),
        ("402", "failed", "provider_denied"),
        ("403", "failed", "provider_denied"),
        ("404", "failed", "provider_not_found"),
        ("quota", "failed", "insufficient_quota"),
    ],
)
@pytest.mark.parametrize("path", [FILES, JOBS])
def test_a_refused_creation_ends_the_run_and_costs_nothing(stack, key, dataset, path, fault, state, code):
    stack.provider_fault("POST", f"{path}$", REFUSALS[fault])
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == (state, code)
    assert "fine-tuning service" in ended.message
    assert not ended.jobs


@pytest.mark.parametrize("fault", ["400", "402", "403", "404", "quota"])
def test_a_job_that_may_not_be_looked_at_fails_the_run_and_is_cancelled(stack, key, dataset, fault):
    stack.next_job("succeeded", duration_seconds=600_000)
    stack.provider_fault("GET", f"{JOBS}/*", REFUSALS[fault])
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "failed", "what a dataset has passed is not its fault"
    assert [job["status"] for job in ended.jobs] == ["cancelled"]


def test_a_model_that_the_service_does_not_know_is_the_users_to_mend(stack, key, dataset):
    stack.provider_fault("POST", f"{JOBS}$", {"status": 404, "body": NO_MODEL})
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == ("rejected", "model_not_found")
    assert "name another" in ended.message


def test_a_model_that_cannot_be_trained_is_the_users_to_mend(stack, key, dataset):
    stack.put(key.replace(".jsonl", ".job.json"), b'{"model": "gpt-2"}')
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "rejected"
    assert "gpt-2" in ended.message
    assert not ended.jobs


def test_the_wait_that_the_service_asks_for_is_kept(stack, key, dataset):
    stack.provider_fault("POST", f"{JOBS}$", {"status": 429, "headers": {"retry-after": 120}})
    run_id = stack.drop(key, dataset())
    stack.ended(run_id)

    waits = stack.waits(run_id, "Wait to create")
    assert 120 in waits


@pytest.mark.parametrize("lag", [30, 300])
def test_a_job_whose_creation_was_not_answered_and_that_listings_do_not_show_yet_is_not_created_again(
    stack, key, dataset, lag
):
    stack.provider_fault("POST", f"{JOBS}$", {"reset": "after", "delay_listing": lag})
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "succeeded"
    assert len(ended.jobs) == 1


def test_a_file_whose_upload_was_not_answered_is_found_by_its_name(stack, key, dataset):
    stack.provider_fault("POST", f"{FILES}$", {"reset": "after"}, times=1)
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "succeeded"
    assert [file["filename"] for file in ended.files] == [f"{ended.run['run_id']}.jsonl"]


def test_a_service_that_is_away_for_a_while_loses_nothing(stack, key, dataset):
    run_id = stack.drop(key, dataset())
    stack.reaches(run_id, "training")
    stack.provider_fault("*", "/v1", {"status": 503}, times=5)

    assert stack.ended(run_id).state == "succeeded"


def test_results_that_cannot_be_fetched_do_not_make_a_success_a_failure(stack, key, dataset):
    for path in (f"{FILES}/*/content", f"{JOBS}/*/events"):
        stack.provider_fault("GET", path, {"status": 404}, times=None)
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "succeeded"
    assert {name.rsplit("/", 1)[1] for name in ended.run["result_keys"]} == {"report.json", "job.json"}


def test_a_limit_on_jobs_under_way_is_waited_out(stack, key, dataset):
    stack.provider("PATCH", "/manners", {"active_jobs_limit": 1})
    try:
        runs = [stack.drop(key.replace("data", f"data-{number}"), dataset()) for number in range(3)]
        assert {stack.ended(run_id).state for run_id in runs} == {"succeeded"}
    finally:
        stack.provider("PATCH", "/manners", {"active_jobs_limit": None})


def test_a_refused_key_is_waited_out_until_it_is_mended(key, dataset):
    stack = RunningStack()
    try:
        secrets = stack.aws("secretsmanager")
        secrets.put_secret_value(SecretId="tunedrop-ProviderSecret", SecretString="sk-of-last-year")
        run_id = stack.drop(key, dataset())
        until(lambda: stack.refused(), lambda refused: refused >= 2, 20)
        assert stack.run(run_id)["state"] == "uploading"

        secrets.put_secret_value(SecretId="tunedrop-ProviderSecret", SecretString=stack.address["provider_key"])
        assert stack.ended(run_id).state == "succeeded"

        secrets.put_secret_value(SecretId="tunedrop-StorageSecret", SecretString="no JSON")
        stack.forget("UploadFunction")
        run_id = stack.drop(key, dataset())
        until(lambda: len(stack.waits(run_id, "Wait to upload")), lambda waits: waits >= 2, 20)
        keys = {name: stack.address[name] for name in ("access_key_id", "secret_access_key")}
        secrets.put_secret_value(SecretId="tunedrop-StorageSecret", SecretString=json.dumps(keys))
        stack.forget("UploadFunction")
        assert stack.ended(run_id).state == "succeeded"
    finally:
        stack.close()
