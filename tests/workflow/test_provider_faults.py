"""A fine-tuning service that misbehaves: every call of a run, every kind of answer, and never a second job."""

import json

import pytest

from tests.workflow.running import FILES, JOBS, until

NO_QUOTA = {
    "error": {"message": "You exceeded your current quota.", "type": "insufficient_quota", "code": "insufficient_quota"}
}
NO_MODEL = {
    "error": {"message": "The model does not exist.", "type": "invalid_request_error", "code": "model_not_found"}
}
SUCCEEDED = ("succeeded", None)

# What every call recovers from: the job is there, and there is one.
PASSING = {
    "401": {"status": 401},
    "409": {"status": 409},
    "429": {"status": 429},
    "429 with a wait": {"status": 429, "headers": {"retry-after": 20}},
    "500": {"status": 500},
    "500 after the work": {"status": 500, "after": True},
    "reset before": {"reset": "before"},
    "reset after": {"reset": "after"},
    "HTML": {"html": 200},
    "HTML after the work": {"html": 200, "after": True},
    "empty": {"truncate": 0},
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
def test_creations_that_go_wrong_are_made_good_and_paid_once(stack, key, dataset, fault):
    for path in (FILES, JOBS):
        stack.provider_fault("POST", f"{path}$", fault)
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == SUCCEEDED
    assert len(ended.jobs) == len(ended.files) == 1
    stack.assert_no_fault_left()


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_looks_that_go_wrong_are_repeated(stack, key, dataset, fault):
    # The model, files by name, the file's state, jobs by file, the job's state, its events.
    for path in ("/v1/models/*", f"{FILES}$", f"{FILES}/*", f"{JOBS}$", f"{JOBS}/*", f"{JOBS}/*/events"):
        stack.provider_fault("GET", path, fault)
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == SUCCEEDED
    assert len(ended.jobs) == len(ended.files) == 1
    assert len(ended.run["result_keys"]) == 5
    stack.assert_no_fault_left()


@pytest.mark.parametrize(
    ("fault", "state", "code"),
    [
        ("400", "rejected", "requests"),
        ("402", "failed", "requests"),
        ("403", "failed", "requests"),
        ("404", "failed", "requests"),
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
    again = stack.ended(stack.drop(key, stack.get(key)))
    assert again.state == "succeeded", "what was refused can be dropped again once it is mended"


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_job_that_may_not_be_looked_at_for_a_while_goes_on(stack, key, dataset, fault):
    stack.provider_fault("GET", f"{JOBS}/*", REFUSALS[fault], times=2)
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "succeeded", "it is paid for"
    assert [job["status"] for job in ended.jobs] == ["succeeded"]
    stack.assert_no_fault_left()


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
    kept = {name.rsplit("/", 1)[1] for name in ended.run["result_keys"]}
    assert kept == {"report.json", "job.json", "checkpoints.json"}


def test_a_limit_on_jobs_under_way_is_waited_out(stack, key, dataset):
    stack.provider("PATCH", "/manners", {"active_jobs_limit": 1})
    try:
        runs = [stack.drop(key.replace("data", f"data-{number}"), dataset()) for number in range(3)]
        assert {stack.ended(run_id).state for run_id in runs} == {"succeeded"}
    finally:
        stack.provider("PATCH", "/manners", {"active_jobs_limit": None})


@pytest.mark.parametrize("secret", ["tunedrop-ProviderSecret", "tunedrop-StorageSecret"])
def test_a_refused_key_is_waited_out_until_it_is_mended(stack, key, dataset, secret):
    manager = stack.aws("secretsmanager")
    good = manager.get_secret_value(SecretId=secret)["SecretString"]
    try:
        manager.put_secret_value(SecretId=secret, SecretString="of last year")
        stack.forget("UploadFunction")
        run_id = stack.drop(key, dataset())
        until(lambda: len(stack.waits(run_id, "Wait to upload")), lambda waits: waits >= 2)
    finally:
        manager.put_secret_value(SecretId=secret, SecretString=good)

    assert stack.ended(run_id).state == "succeeded"


def storage_keys(access_key_id):
    return json.dumps({"access_key_id": access_key_id, "secret_access_key": "of the functions alone"})


def test_rotated_keys_of_the_bucket_are_taken_up_and_refused_ones_waited_out(stack, key, dataset):
    manager, secret = stack.aws("secretsmanager"), "tunedrop-StorageSecret"
    good = manager.get_secret_value(SecretId=secret)["SecretString"]
    try:
        manager.put_secret_value(SecretId=secret, SecretString=storage_keys("first"))
        stack.accept_access_keys("first")
        stack.forget("UploadFunction")
        assert stack.ended(stack.drop(key.replace("data", "a"), dataset())).state == "succeeded"

        manager.put_secret_value(SecretId=secret, SecretString=storage_keys("second"))
        stack.accept_access_keys("second")  # the functions have the first one in their caches
        run_id = stack.drop(key.replace("data", "b"), dataset())
        assert stack.ended(run_id).state == "succeeded"
        assert stack.waits(run_id, "Wait to upload") == []

        stack.accept_access_keys()
        run_id = stack.drop(key, dataset())
        until(lambda: len(stack.waits(run_id, "Wait to upload")), lambda waits: waits >= 2)
        stack.accept_access_keys("second")
        ended = stack.ended(run_id)
        assert ended.state == "succeeded"
        assert len(ended.run["result_keys"]) == 5, "nothing was left out"
    finally:
        manager.put_secret_value(SecretId=secret, SecretString=good)
        stack.accept_access_keys()
        for function in ("UploadFunction", "CollectFunction"):
            stack.forget(function)


@pytest.mark.parametrize(
    ("status", "message", "state", "code", "helps"),
    [
        (
            403,
            "Creating fine-tuning jobs is no longer available to your organization.",
            "failed",
            "fine_tuning_closed",
            "azure",
        ),
        (400, "Model m is not available for fine-tuning.", "rejected", "model_not_tunable", "name another"),
        (400, "The model m has been deprecated.", "rejected", "model_retired", "newer"),
        (400, "Fine-tuning is not supported in this region.", "failed", "region_not_supported", "base URL"),
        (400, "Billing hard limit has been reached.", "failed", "billing_hard_limit_reached", "raise the limit"),
    ],
    ids=str,
)
def test_what_is_refused_for_good_ends_the_run_at_once_with_what_helps(
    stack, key, dataset, status, message, state, code, helps
):
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    stack.provider_fault("POST", f"{JOBS}$", {"status": status, "body": body}, times=1)
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == (state, code)
    assert helps in ended.message
    assert ended.jobs == [], "it was asked for once: the second time it would have been accepted"
