import json
import time

import pytest
from tunedrop import clock as clock_module
from tunedrop import signatures, webhook
from tunedrop.deletion import Deletions
from tunedrop.errors import Transient, Unauthorised
from tunedrop.webhook import MAX_BODY_BYTES, take_notification

from tests.unit.fakes import Broken, FakeSecret
from tests.unit.test_events import r2_message
from tests.unit.test_signatures import OTHER, SECRET


class MemoryExecutions:
    def __init__(self):
        self.started = []

    def start(self, request):
        if request not in self.started:
            self.started.append(request)


@pytest.fixture
def executions():
    return MemoryExecutions()


def post(value, executions, *, secret=None, headers=None, **others):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    if headers is None:
        headers = signatures.sign(SECRET, "msg_1", time.time(), body.decode(errors="replace"))
    return take_notification(
        headers, body, bucket="datasets", secret=secret or FakeSecret(SECRET), executions=executions, **others
    )


def test_a_new_dataset_starts_a_run(executions):
    status, answer = post(r2_message("a.jsonl"), executions)
    [request] = executions.started
    assert (request.bucket, request.key, request.etag, request.size) == ("datasets", "a.jsonl", "e1", 10)
    assert status == 202
    assert answer == {"accepted": [{"key": "a.jsonl", "run_id": request.run_id}], "ignored": []}


def test_what_starts_nothing_is_answered_with_the_reason(executions):
    status, answer = post([r2_message("a.jsonl"), r2_message("a.job.json")], executions)
    assert status == 202
    assert [accepted["key"] for accepted in answer["accepted"]] == ["a.jsonl"]
    assert answer["ignored"] == [{"key": "a.job.json", "reason": "a job specification; it is read with its dataset"}]


def test_an_adapter_starts_a_run_of_its_own_kind(executions):
    adapters, weights = MemoryExecutions(), "adapters/mine/adapter_model.safetensors"
    status, answer = post([r2_message(weights), r2_message("a.jsonl")], executions, adapters=adapters)
    assert status == 202
    assert [accepted["key"] for accepted in answer["accepted"]] == [weights, "a.jsonl"]
    assert [[request.key for request in started.started] for started in (adapters, executions)] == [
        [weights],
        ["a.jsonl"],
    ]


def test_an_adapter_starts_nothing_where_there_is_no_account(executions):
    status, answer = post(r2_message("adapters/mine/adapter_model.safetensors"), executions)
    assert (status, answer["accepted"], executions.started) == (202, [], [])
    assert "WorkersAiAccountId" in answer["ignored"][0]["reason"]


def test_an_adapter_that_could_not_be_handed_over_comes_again(executions):
    broken = Broken(MemoryExecutions(), "start", Transient("away"))
    status, answer = post(r2_message("adapters/mine/adapter_model.safetensors"), executions, adapters=broken)
    assert (status, answer["error"]["code"]) == (503, "not_handed_over")


def test_a_notification_delivered_twice_is_answered_alike_and_starts_one_run(executions):
    assert post(r2_message(), executions) == post(r2_message(), executions)
    assert len(executions.started) == 1


def test_a_test_event_is_answered_200(executions):
    status, answer = post({"Event": "s3:TestEvent"}, executions)
    assert (status, answer) == (200, {"accepted": [], "ignored": []})


def test_a_store_that_cannot_sign_may_send_the_secret(executions):
    status, _ = post(r2_message(), executions, headers={"authorization": f"Bearer {SECRET}"})
    assert status == 202


@pytest.mark.parametrize("notification", [{}, [{}, {"Records": [None]}], {"Records": [{}]}])
def test_a_notification_of_which_nothing_is_understood_is_answered_400(executions, notification):
    status, answer = post(notification, executions)
    assert (status, answer["error"]["code"]) == (400, "malformed")
    assert answer["error"]["message"].startswith("$")
    assert executions.started == []


def test_a_malformed_event_is_told_by_its_number_and_takes_no_others_with_it(executions):
    status, answer = post([r2_message("a.jsonl"), {}, r2_message("b.jsonl"), r2_message("c.txt")], executions)
    assert status == 202
    assert [accepted["key"] for accepted in answer["accepted"]] == ["a.jsonl", "b.jsonl"]
    assert [ignored["key"] for ignored in answer["ignored"]] == ["c.txt"]
    [malformed] = answer["malformed"]
    assert malformed["event"] == 1
    assert malformed["reason"].startswith("$[1]: ")


def test_what_a_stacks_own_rules_leave_out_is_answered_with_the_reason(executions):
    rules = {"prefix": "train/", "suffix": ".train.jsonl"}
    _, answer = post([r2_message(f"{folder}/a.train.jsonl") for folder in ("train", "test")], executions, **rules)
    assert [accepted["key"] for accepted in answer["accepted"]] == ["train/a.train.jsonl"]
    assert answer["ignored"] == [{"key": "test/a.train.jsonl", "reason": "the key does not begin with train/"}]


@pytest.mark.parametrize("secret", [FakeSecret(OTHER), FakeSecret(f"{OTHER} {OTHER}")])
def test_a_notification_that_is_not_authentic_is_answered_401_and_starts_nothing(executions, secret):
    status, answer = post(r2_message(), executions, secret=secret)
    assert (status, answer["error"]["code"]) == (401, "not_authentic")
    assert executions.started == []


def test_a_body_that_is_no_text_is_answered_401_for_it_cannot_be_signed(executions):
    status, _ = post(b"\xff", executions)
    assert status == 401


def test_a_notification_of_1_mib_is_taken(executions):
    body = json.dumps(r2_message()).encode()
    status, _ = post(body + b" " * (MAX_BODY_BYTES - len(body)), executions)
    assert status == 202


def test_a_larger_notification_is_answered_413_before_anything_else(executions):
    status, answer = post(b" " * (MAX_BODY_BYTES + 1), executions, headers={})
    assert (status, answer["error"]["code"]) == (413, "too_large")


def test_a_notification_has_at_most_500_events(executions):
    assert post([r2_message("a.txt")] * webhook.MAX_EVENTS, executions)[0] == 202
    status, answer = post([r2_message(f"{number}.jsonl") for number in range(webhook.MAX_EVENTS + 1)], executions)
    assert (status, answer["error"]["code"]) == (413, "too_large")
    assert executions.started == []


def test_a_run_that_could_not_be_handed_over_is_answered_503(executions):
    broken = Broken(executions, "start", Transient("Step Functions answered 500"))
    status, answer = post(r2_message(), broken)
    assert (status, answer["error"]["code"]) == (503, "not_handed_over")


def test_a_run_that_could_not_be_handed_over_takes_no_others_with_it(executions):
    broken = Broken(executions, "start", Transient(""), times=1)
    status, _ = post([r2_message("a.jsonl"), r2_message("b.jsonl")], broken)
    assert status == 503
    assert [request.key for request in executions.started] == ["b.jsonl"]


def test_after_a_503_the_repeated_notification_starts_no_run_twice(executions):
    two = [r2_message("a.jsonl"), r2_message("b.jsonl")]
    post(two, Broken(executions, "start", Transient(""), skip=1))
    status, _ = post(two, executions)
    assert status == 202
    assert [request.key for request in executions.started] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("text", ["", "whsec_"])
def test_an_empty_secret_lets_nobody_in_and_is_no_fault_of_the_senders(executions, text):
    status, _ = post(r2_message(), executions, secret=FakeSecret(text))
    assert status == 503
    assert executions.started == []


@pytest.mark.parametrize("error", [Transient("x"), Unauthorised("x")])
def test_a_secret_that_cannot_be_read_is_answered_503(executions, error):
    status, _ = post(r2_message(), executions, secret=Broken(FakeSecret(SECRET), "value", error))
    assert status == 503


def test_the_answer_is_json(executions):
    for value in (r2_message(), {}, {"Event": "s3:TestEvent"}):
        json.dumps(post(value, executions)[1])
    assert webhook.MAX_BODY_BYTES == 1024 * 1024


# Deletions


class MemoryWaker:
    def __init__(self):
        self.woken = []

    def wake(self, token):
        self.woken.append(token)


@pytest.fixture
def trained_on(run, ledger, clock):
    """A run that trains on an object, and waits; the object is deleted an hour after it began."""
    ledger.hold(run.run_id, run.bucket, run.key)
    ledger.wait(run.run_id, "token")
    return run


def deletion(run, after=3600, **message):
    at = clock_module.timestamp(clock_module.seconds(run.created_at) + after)
    return r2_message(run.key, action="DeleteObject") | {"eventTime": at} | message


def test_a_deleted_dataset_cancels_its_run_at_once(trained_on, ledger, executions):
    waker = MemoryWaker()
    deletions = Deletions(ledger, waker)
    status, answer = post([deletion(trained_on), r2_message("b.jsonl")], executions, deletions=deletions)
    assert status == 202
    assert answer["cancelling"] == [{"key": trained_on.key, "run_id": trained_on.run_id}]
    assert [accepted["key"] for accepted in answer["accepted"]] == ["b.jsonl"]
    assert answer["ignored"] == []
    assert ledger.withdrawn(trained_on.run_id)
    assert waker.woken == ["token"]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        pytest.param(-1, {}, id="before the run began"),
        pytest.param(0, {}, id="as the run began"),
        pytest.param(60, {"bucket": "other"}, id="another bucket"),
        pytest.param(60, {"object": {"key": "other.jsonl"}}, id="another object"),
        pytest.param(60, {"eventTime": "yesterday"}, id="no time"),
        pytest.param(60, {"action": "SomethingNew"}, id="no deletion"),
    ],
)
def test_another_deletion_cancels_nothing(trained_on, ledger, executions, after, message):
    waker = MemoryWaker()
    _, answer = post(deletion(trained_on, after, **message), executions, deletions=Deletions(ledger, waker))
    assert (answer["accepted"], len(answer["ignored"])) == ([], 1)
    assert "cancelling" not in answer
    assert not ledger.withdrawn(trained_on.run_id)
    assert waker.woken == []


def test_the_deletion_of_a_dataset_that_was_trained_on_is_ignored(trained_on, ledger, executions):
    ledger.finish(trained_on.run_id, "succeeded", None)
    _, answer = post(deletion(trained_on), executions, deletions=Deletions(ledger, MemoryWaker()))
    assert answer["ignored"] == [{"key": trained_on.key, "reason": "no object was created"}]


def test_a_stack_that_ignores_deletions_does(trained_on, ledger, executions):
    _, answer = post(deletion(trained_on), executions)
    assert answer["ignored"] == [{"key": trained_on.key, "reason": "no object was created"}]
    assert not ledger.withdrawn(trained_on.run_id)


def test_a_deletion_that_could_not_be_noted_is_answered_503_and_cancels_when_it_is_repeated(
    trained_on, ledger, executions
):
    broken = Broken(ledger, "withdraw", Transient("DynamoDB answered 500"))
    assert post(deletion(trained_on), executions, deletions=Deletions(broken, MemoryWaker()))[0] == 503
    assert post(deletion(trained_on), executions, deletions=Deletions(ledger, MemoryWaker()))[0] == 202
    assert ledger.withdrawn(trained_on.run_id)


def test_a_run_that_could_not_be_woken_is_woken_when_the_deletion_is_repeated(trained_on, ledger, executions):
    waker = MemoryWaker()
    asleep = Broken(waker, "wake", Transient("Step Functions answered 500"))
    assert post(deletion(trained_on), executions, deletions=Deletions(ledger, asleep))[0] == 503
    assert post(deletion(trained_on), executions, deletions=Deletions(ledger, asleep))[0] == 202
    assert waker.woken == ["token"]
