"""Every final state of a run, on the real state machine with the real functions."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.local.provider_support import lines
from tests.workflow.running import RunningStack, chat, run_id_of, settled_stack, until

EXAMPLES = Path(__file__).parents[2] / "events/examples"


# Succeeded


def test_a_dataset_with_its_validation_set_and_specification_becomes_a_model(stack, key):
    folder = key.rsplit("/", 1)[0]
    for name in ("orchard.validation.jsonl", "orchard.job.json"):
        stack.put(f"{folder}/{name}", (EXAMPLES / name).read_bytes())
    run_id = stack.drop(f"{folder}/orchard.jsonl", (EXAMPLES / "orchard.jsonl").read_bytes())

    ended = stack.ended(run_id)

    assert ended.state == "succeeded"
    assert ended.run["error"] is None
    assert ended.run["examples"] == 66
    assert ended.run["model"] == "gpt-4.1-mini-2025-04-14"
    assert ended.run["method"] == "supervised"
    assert ":orchard-desk:" in ended.run["fine_tuned_model"]
    assert ended.run["trained_tokens"] > 0
    assert ended.notification["message"]["data"] == ended.run

    (job,) = ended.jobs
    assert job["metadata"] == {"team": "cider", "run_id": run_id}
    asked = stack.provider_job(job["id"])
    assert asked["seed"] == 7
    assert asked["hyperparameters"]["n_epochs"] == 3
    assert asked["validation_file"] == ended.run["validation_file_id"]
    assert [file["filename"] for file in ended.files] == [f"{run_id}.jsonl", f"{run_id}.validation.jsonl"]

    results = f"results/{run_id}"
    assert set(ended.run["result_keys"]) == {
        f"{results}/{name}" for name in ("report.json", "job.json", "events.jsonl", "metrics.csv", "checkpoints.json")
    }
    assert json.loads(stack.get(f"{results}/report.json"))["valid"] is True
    assert json.loads(stack.get(f"{results}/job.json"))["fine_tuned_model"] == ended.run["fine_tuned_model"]
    events = [json.loads(line) for line in stack.get(f"{results}/events.jsonl").splitlines()]
    assert events[0]["message"].startswith("Created fine-tuning job")
    assert events[-1]["message"] == "The job has successfully completed"
    header, *rows = stack.get(f"{results}/metrics.csv").decode().splitlines()
    assert header.startswith("step,train_loss")
    assert len(rows) > 100


def test_a_dataset_alone_becomes_a_model_too(stack, key, dataset):
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "succeeded"
    assert ended.run["validation_file_id"] is None
    assert len(ended.jobs) == len(ended.files) == 1


def test_the_bytes_that_are_trained_on_are_those_that_were_dropped(stack, key, dataset):
    body = dataset()
    ended = stack.ended(stack.drop(key, b"\xef\xbb\xbf" + body))

    assert ended.state == "succeeded"
    assert ended.files[0]["bytes"] == len(body)  # without the byte order mark


def test_an_adapter_and_the_answers_of_a_smoke_test_are_brought_home(stack, key, dataset):
    prompt = "What becomes of a pear in winter?"
    stack.put(key.replace(".jsonl", ".job.json"), json.dumps({"smoke_test": prompt}).encode())
    stack.provider("PATCH", "/manners", {"adapter_files": True})
    try:
        ended = stack.ended(stack.drop(key, dataset()))
    finally:
        stack.provider("PATCH", "/manners", {"adapter_files": False})

    assert ended.state == "succeeded"
    run_id = ended.run["run_id"]
    folder = f"results/{run_id}"
    assert set(ended.run["result_keys"]) > {f"{folder}/adapter_config.json", f"{folder}/adapter_model.safetensors"}
    weights = stack.get(f"{folder}/adapter_model.safetensors")
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    (last, *_) = json.loads(stack.get(f"results/{run_id}/checkpoints.json"))[::-1]
    assert header["__metadata__"]["step"] == str(last["step_number"])
    assert last["fine_tuned_model_checkpoint"] == ended.run["fine_tuned_model"]

    asked = json.loads(stack.get(f"results/{run_id}/report.json"))["smoke_test"]
    assert asked["prompt"] == prompt
    assert asked["tuned"]["model"] == ended.run["fine_tuned_model"]
    assert asked["base"]["model"] == ended.run["model"]
    assert all(asked[model]["answer"].endswith(prompt) for model in ("tuned", "base"))
    assert "pear" not in json.dumps(
        [ended.notification, stack.history(run_id), stack.ledger._item(run_id)], default=str
    )

    told = stack.delivery(f"{folder}/adapter_model.safetensors", 0)
    assert told["answer"]["accepted"] == [], "an adapter's arrival starts no run"


# Rejected


def test_a_broken_dataset_is_rejected_with_every_line_named(stack, key):
    run_id = stack.drop(key, (EXAMPLES / "broken.jsonl").read_bytes())

    ended = stack.ended(run_id)

    assert (ended.state, ended.code) == ("rejected", "invalid_json")
    assert ended.message.startswith("line 3")
    assert "9 more errors" in ended.message
    assert ended.run["result_keys"] == [f"results/{run_id}/report.json"]
    report = json.loads(stack.get(f"results/{run_id}/report.json"))
    found = [(finding["line"], finding["code"]) for finding in report["errors"]]
    assert found == [
        (3, "invalid_json"),
        (6, "data_type"),
        (7, "missing_messages_list"),
        (9, "unrecognized_role"),
        (11, "missing_content"),
        (14, "example_missing_assistant_message"),
        (16, "example_missing_assistant_message"),
        (18, "invalid_weight"),
        (21, "unanswered_tool_call"),
        (23, "invalid_tool_call"),
    ]
    assert not ended.files, "nothing of a broken dataset leaves the bucket"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"", "no example", id="empty"),
        pytest.param(b"Dear Sir or Madam,\nhere is my dataset.\n", "line 1", id="not JSONL"),
        pytest.param(b'{"messages": "\xff\xfe"}\n' * 12, "line 1", id="not UTF-8"),
        pytest.param(b"\x1f\x8b\x08\x00" + b"\x00" * 40, "gzip", id="compressed"),
    ],
)
def test_what_is_no_dataset_is_rejected(stack, key, body, says):
    ended = stack.ended(stack.drop(key, body))

    assert ended.state == "rejected"
    assert says in ended.message
    assert not ended.files


def test_nine_examples_are_too_few(stack, key, dataset):
    ended = stack.ended(stack.drop(key, dataset(9)))

    assert ended.state == "rejected"
    assert "9" in ended.message
    assert "10" in ended.message


def test_an_invalid_job_specification_is_rejected(stack, key, dataset):
    stack.put(key.replace(".jsonl", ".job.json"), b'{"modell": "gpt-4.1-mini-2025-04-14"}')
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "rejected"
    assert "modell" in ended.message
    assert not ended.files


def test_a_broken_validation_set_is_rejected(stack, key, dataset):
    stack.put(key.replace(".jsonl", ".validation.jsonl"), b"no JSON\n")
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "rejected"
    assert "validation" in ended.message
    assert not ended.files


def test_a_dataset_that_would_cost_too_much_is_not_trained_on(stack, key, dataset):
    stack.put(key.replace(".jsonl", ".job.json"), b'{"max_cost_usd": 0.000001}')
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code) == ("over_budget", "over_budget")
    assert "USD" in ended.message
    assert ended.run["estimated_cost_usd"] > 0
    assert not ended.files


# Failed, cancelled, timed out


def test_a_job_that_fails_ends_its_run_with_the_services_own_reason(stack, key, dataset):
    reason = {"code": "exceeded_quota", "message": "The training ran out of the account's hard limit."}
    stack.next_job("failed", error=reason)
    run_id = stack.drop(key, dataset())

    ended = stack.ended(run_id)

    assert (ended.state, ended.code, ended.message) == ("failed", reason["code"], reason["message"])
    assert ended.jobs[0]["status"] == "failed"
    assert f"results/{run_id}/events.jsonl" in ended.run["result_keys"]


def test_a_job_cancelled_at_the_service_ends_its_run(stack, key, dataset):
    stack.next_job("cancelled")
    ended = stack.ended(stack.drop(key, dataset()))

    assert ended.state == "cancelled"
    assert ended.jobs[0]["status"] == "cancelled"


def test_a_paused_job_is_waited_for(stack, key, dataset):
    stack.next_job("paused")
    run_id = stack.drop(key, dataset())
    job_id = stack.reaches(run_id, "training")["job_id"]
    until(lambda: stack.provider_job(job_id)["status"], lambda status: status == "paused")
    stack.provider_job(job_id, "resume")

    assert stack.ended(run_id).state == "succeeded"


@pytest.fixture(scope="module")
def attentive():
    """A stack that cancels the runs of deleted datasets, and whose day is four seconds long."""
    options = ("--set", "OnDeletion=cancel", "--set", "CallbackHeartbeatMinutes=0")
    with settled_stack(*options, time_scale=20_000) as attentive:
        yield attentive


def test_a_dataset_that_is_deleted_while_its_job_is_under_way_cancels_it(attentive, key, dataset):
    attentive.next_job("stuck")
    run_id = attentive.drop(key, dataset())
    attentive.reaches(run_id, "training")
    attentive.s3.delete_object(Bucket=attentive.bucket, Key=key)

    ended = attentive.ended(run_id)
    assert (ended.state, ended.code) == ("cancelled", "dataset_deleted")
    assert ended.jobs[0]["status"] == "cancelled", "nothing may be left running"
    told = attentive.delivery(key, 1)["answer"]
    assert told["cancelling"] == [{"key": key, "run_id": run_id}]


def test_what_is_put_again_after_its_deletion_is_trained_on_once_the_first_run_is_cancelled(attentive, key, dataset):
    body = dataset()
    attentive.next_job("stuck")
    first = attentive.drop(key, body)
    attentive.reaches(first, "training")
    attentive.s3.delete_object(Bucket=attentive.bucket, Key=key)
    second = attentive.start(key, attentive.put_quietly(key, body))

    assert attentive.ended(first).code == "dataset_deleted"
    ended = attentive.ended(second)
    assert (ended.state, len(ended.jobs)) == ("succeeded", 1)


def test_a_job_long_in_the_queue_is_told_of_once_and_waited_for(attentive, key, dataset):
    attentive.next_job("stuck", after_seconds=1)
    run_id = attentive.drop(key, dataset())
    (notice,) = until(lambda: attentive.notices(run_id), bool)
    polls = attentive.states(run_id).count("Poll status")
    until(lambda: attentive.states(run_id).count("Poll status"), lambda found: found > polls + 3)

    assert (notice["id"], notice["message"]["type"]) == (f"msg_{run_id}_delayed", "run.delayed")
    assert notice["message"]["data"]["state"] == "training"
    assert attentive.execution(run_id)["status"] == "RUNNING"
    attentive.provider_job(attentive.run(run_id)["job_id"], "cancel")
    assert attentive.ended(run_id).code == "job_cancelled"
    assert attentive.notices(run_id) == [notice]
    assert attentive.states(run_id).count("Publish notice") == 1


def test_a_dataset_that_is_deleted_is_trained_on_all_the_same_where_nobody_wants_it_otherwise(stack, key, dataset):
    run_id = stack.drop(key, dataset())
    stack.reaches(run_id, "training")
    stack.s3.delete_object(Bucket=stack.bucket, Key=key)

    assert stack.ended(run_id).state == "succeeded"


@pytest.fixture(scope="module")
def impatient():
    """A stack whose runs have an hour, which is two and a half seconds."""
    impatient = RunningStack("--set", "RunDeadlineHours=1")
    _start_every_function(impatient)
    yield impatient
    impatient.provider("DELETE", "/faults")
    impatient.assert_settled()
    impatient.close()


def _start_every_function(stack):
    """On a busy machine the functions need longer to start than a run has: then it ends, but they have started."""
    bodies = (lines(chat(f"warming up {attempt}") for _ in range(12)) for attempt in itertools.count())
    drops = (stack.drop(f"warming-up/{attempt}.jsonl", body) for attempt, body in enumerate(bodies))
    assert any(stack.ended(run_id).state == "succeeded" for run_id in itertools.islice(drops, 5))


def test_a_run_over_its_deadline_is_timed_out_and_its_job_cancelled(impatient, key, dataset):
    impatient.next_job("stuck")
    ended = impatient.ended(impatient.drop(key, dataset()))

    assert (ended.state, ended.code) == ("timed_out", "deadline")
    assert "1 h that it may take" in ended.message
    assert ended.jobs[0]["status"] == "cancelled", "nothing may be left running"


@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs"])
@pytest.mark.parametrize(
    "fault",
    [{"status": 401}, {"status": 503}],
    ids=["401", "503"],
)
def test_a_service_that_never_takes_it_does_not_keep_a_run_for_ever(impatient, key, dataset, path, fault):
    impatient.provider_fault("POST", path, fault, times=None)
    ended = impatient.ended(impatient.drop(key, dataset()))
    impatient.provider("DELETE", "/faults")

    assert (ended.state, ended.code) == ("timed_out", "deadline")
    assert not ended.jobs


# Gone, overwritten, again


def test_an_object_that_is_gone_by_the_time_it_is_read_is_missing(stack, key, dataset):
    etag = stack.put_quietly(key, dataset())
    stack.delete_quietly(key)
    ended = stack.ended(stack.start(key, etag))

    assert (ended.state, ended.code) == ("missing", "object_missing")
    assert key in ended.message
    assert not ended.files


def test_an_object_that_was_overwritten_is_superseded_and_the_newer_one_is_trained(stack, key, dataset):
    old = stack.put_quietly(key, dataset())
    new = stack.drop(key, dataset())
    superseded, trained = stack.ended(stack.start(key, old)), stack.ended(new)

    assert (superseded.state, superseded.code) == ("superseded", "object_changed")
    assert not superseded.files
    assert trained.state == "succeeded"


def test_the_same_notification_again_starts_nothing(stack, key, dataset):
    run_id = stack.drop(key, dataset())
    message = stack.delivery(key)["message"]

    while_under_way = stack.post(message)
    ended = stack.ended(run_id)
    after_the_end = stack.post(message)

    for answer in (while_under_way, after_the_end):
        assert answer.status_code == 202
        assert answer.json() == {"accepted": [{"key": key, "run_id": run_id}], "ignored": []}
    assert stack.ended(run_id).run == ended.run


def test_ten_deliveries_at_once_are_one_run_and_one_job(stack, key, dataset):
    message = stack.event(key, stack.put_quietly(key, dataset()))
    with ThreadPoolExecutor(10) as posts:
        answers = list(posts.map(stack.post, [message] * 10))

    run_id = run_id_of(message)
    assert [answer.status_code for answer in answers] == [202] * 10
    assert {answer.json()["accepted"][0]["run_id"] for answer in answers} == {run_id}
    ended = stack.ended(run_id)
    assert ended.state == "succeeded"
    assert len(ended.jobs) == len(ended.files) == 1
    assert stack.states(run_id).count("Upload dataset") == 1


def test_one_message_of_many_records_starts_a_run_for_each(stack, key, dataset):
    keys = [key.replace("data", f"data-{number}") for number in range(3)]
    messages = [stack.event(name, stack.put_quietly(name, dataset(9))) for name in keys]
    answer = stack.post(messages)

    assert [accepted["key"] for accepted in answer.json()["accepted"]] == keys
    assert {stack.ended(accepted["run_id"]).state for accepted in answer.json()["accepted"]} == {"rejected"}


def test_the_same_content_again_is_a_duplicate_that_names_the_first_run(stack, key, dataset):
    body = dataset()
    first = stack.drop(key, body)
    while_under_way = stack.ended(stack.drop(key.replace("data", "again"), body))
    assert stack.ended(first).state == "succeeded"
    after_success = stack.ended(stack.drop(key, body))

    for ended in (while_under_way, after_success):
        assert (ended.state, ended.code) == ("duplicate", "duplicate")
        assert first in ended.message
        assert '"force": true' in ended.message
        assert not ended.files


def test_two_equal_datasets_at_once_are_trained_once(stack, key, dataset):
    body = dataset()
    names = [key.replace("data", f"data-{number}") for number in range(4)]
    messages = [stack.event(name, stack.put_quietly(name, body)) for name in names]
    with ThreadPoolExecutor(4) as posts:
        assert all(answer.status_code == 202 for answer in posts.map(stack.post, messages))

    ended = [stack.ended(run_id_of(message)) for message in messages]
    assert sorted(end.state for end in ended) == ["duplicate"] * 3 + ["succeeded"]


def test_another_specification_is_another_run(stack, key, dataset):
    body = dataset()
    first = stack.ended(stack.drop(key, body))
    stack.put(key.replace(".jsonl", ".job.json"), b'{"suffix": "other"}')
    second = stack.ended(stack.drop(key, body))

    assert (first.state, second.state) == ("succeeded", "succeeded")
    assert ":other:" in second.run["fine_tuned_model"]


def test_what_failed_can_be_dropped_again(stack, key, dataset):
    body = dataset()
    stack.next_job("failed")
    failed = stack.ended(stack.drop(key, body))
    again = stack.ended(stack.drop(key, body))

    assert (failed.state, again.state) == ("failed", "succeeded")
    assert failed.run["run_id"] != again.run["run_id"]


def test_force_trains_again_and_once(stack, key, dataset):
    body = dataset()
    first = stack.ended(stack.drop(key, body))
    stack.put(key.replace(".jsonl", ".job.json"), b'{"force": true}')
    run_id = stack.drop(key, body)
    message = stack.deliveries(key)[1]["message"]
    stack.post(message)
    second = stack.ended(run_id)
    stack.post(message)

    assert (first.state, second.state) == ("succeeded", "succeeded")
    assert first.run["fine_tuned_model"] != second.run["fine_tuned_model"]
    again = stack.ended(run_id)
    assert (again.run, again.jobs, again.files) == (second.run, second.jobs, second.files), (
        "the same notification pays for nothing more"
    )


def test_shuffled_and_repeated_notifications_with_deletions_between_end_as_the_bucket_is(stack, key, dataset):
    bodies = [dataset(), dataset()]
    old, new = (stack.put_quietly(key, body) for body in bodies)
    messages = [stack.event(key, old), stack.event(key, ""), stack.event(key, new), stack.event(key, new)]
    messages[1] |= {"action": "DeleteObject", "object": {"key": key}}
    order = [messages[n] for n in (3, 1, 0, 2, 0, 3, 1, 2)]
    for message in order:
        assert stack.post(message).status_code == 202

    states = [stack.ended(run_id_of(messages[n])).state for n in (0, 2, 3)]
    assert states[0] == "superseded"
    assert sorted(states[1:]) == ["duplicate", "succeeded"]
