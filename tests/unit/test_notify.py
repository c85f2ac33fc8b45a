import json
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import yaml
from standardwebhooks.webhooks import Webhook
from tunedrop.errors import Transient, Unauthorised
from tunedrop.notify import (
    Destination,
    InvalidDestination,
    Notifier,
    destinations_of,
    notify,
    pause_seconds,
)
from tunedrop.posting import NotAllowed, NotDelivered
from tunedrop.runs import FINAL, Failure

from tests.unit.fakes import Broken, FakeSecret, MemoryLedger
from tests.unit.test_signatures import OTHER, SECRET

HOOK = Destination("https://example.org/hook/token-in-path", SECRET)
SECOND = Destination("https://example.com/hook", OTHER)
SLACK = Destination("https://hooks.slack.com/services/T0/B0/token", None)


class MemorySender:
    """Keeps what is posted; refuses what goes to the addresses in ``down``."""

    def __init__(self, *down):
        self.down = set(down)
        self.posted = []

    def post(self, url, headers, body):
        if url in self.down:
            raise NotDelivered("answered 500")
        self.posted.append((url, dict(headers), body))

    @property
    def urls(self):
        return [url for url, _, _ in self.posted]


@pytest.fixture
def final(run, ledger):
    return ledger.finish(run.run_id, "succeeded", None, fine_tuned_model="ft:x", model="gpt-4o-mini")


# Messages


def test_a_webhook_gets_the_run_document_signed(final, ledger):
    sender = MemorySender()
    assert notify(final, [HOOK], sender=sender, ledger=ledger)
    [(url, headers, body)] = sender.posted
    message = Webhook(SECRET).verify(body, headers)
    assert url == HOOK.url
    assert message.keys() == {"type", "timestamp", "data"}
    assert (message["type"], message["data"]) == ("run.succeeded", final.document())
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("state", FINAL)
def test_the_type_names_the_final_state(run, ledger, state):
    sender = MemorySender()
    notify(replace(run, state=state, finished_at=run.created_at), [HOOK], sender=sender, ledger=ledger)
    assert json.loads(sender.posted[0][2])["type"] == f"run.{state}"


def test_a_notice_is_a_message_of_its_own_under_an_id_of_its_own(run, ledger):
    sender = MemorySender()
    for _ in range(2):
        assert notify(run, [HOOK, SLACK], sender=sender, ledger=ledger, notice="delayed")
    assert sender.urls == [HOOK.url, SLACK.url], "each is told once"
    assert json.loads(sender.posted[0][2])["type"] == "run.delayed"
    assert "still in the queue" in sender.posted[1][2]

    final = ledger.finish(run.run_id, "succeeded", None)
    assert notify(final, [HOOK], sender=sender, ledger=ledger)
    ids = [headers["webhook-id"] for url, headers, _ in sender.posted if url == HOOK.url]
    assert ids == [f"msg_{run.run_id}_delayed", f"msg_{run.run_id}"]


def test_each_webhook_has_its_own_secret(final, ledger):
    sender = MemorySender()
    notify(final, [HOOK, SECOND], sender=sender, ledger=ledger)
    for (_, headers, body), secret in zip(sender.posted, (SECRET, OTHER), strict=True):
        Webhook(secret).verify(body, headers)


def test_a_messages_id_is_the_same_in_every_attempt(final):
    sender = MemorySender()
    for _ in range(2):
        notify(final, [HOOK], sender=sender, ledger=MemoryLedger())
    assert len({headers["webhook-id"] for _, headers, _ in sender.posted}) == 1


def test_another_runs_message_has_another_id(final, ledger):
    sender = MemorySender()
    for run in (final, replace(final, run_id="1" * 32)):
        notify(run, [HOOK], sender=sender, ledger=ledger)
    assert len({headers["webhook-id"] for _, headers, _ in sender.posted}) == 2


def test_slack_gets_text_and_no_signature(final, ledger):
    sender = MemorySender()
    notify(final, [SLACK], sender=sender, ledger=ledger)
    [(_, headers, body)] = sender.posted
    assert json.loads(body).keys() == {"text"}
    assert "Your model is ready." in json.loads(body)["text"]
    assert not any(name.startswith("webhook-") for name in headers)


def test_a_file_name_commands_nothing_in_slack(final, ledger):
    sender = MemorySender()
    notify(replace(final, key="<!channel> & <http://x|y>.jsonl"), [SLACK], sender=sender, ledger=ledger)
    assert "&lt;!channel&gt; &amp; &lt;http://x|y&gt;.jsonl" in json.loads(sender.posted[0][2])["text"]


@pytest.mark.parametrize("url", ["https://hooks.slack.com.example.org/x", "https://example.org/hooks.slack.com"])
def test_what_only_looks_like_slack_is_a_webhook(url):
    assert not Destination(url, SECRET).is_slack


# Delivery


def test_only_the_destinations_that_are_missing_are_tried_again(final, ledger):
    sender = MemorySender(SECOND.url)
    destinations = [HOOK, SECOND, SLACK]
    assert not notify(final, destinations, sender=sender, ledger=ledger)
    assert sender.urls == [HOOK.url, SLACK.url]
    sender.down.clear()
    assert notify(final, destinations, sender=sender, ledger=ledger)
    assert sender.urls == [HOOK.url, SLACK.url, SECOND.url]


def test_what_was_delivered_is_not_delivered_again(final, ledger):
    sender = MemorySender()
    for _ in range(2):
        assert notify(final, [HOOK], sender=sender, ledger=ledger)
    assert len(sender.posted) == 1


def test_a_destination_added_meanwhile_is_told(final, ledger):
    sender = MemorySender()
    notify(final, [HOOK], sender=sender, ledger=ledger)
    notify(final, [HOOK, SECOND], sender=sender, ledger=ledger)
    assert sender.urls == [HOOK.url, SECOND.url]


def test_without_destinations_there_is_nothing_to_do(final, ledger):
    assert notify(final, [], sender=MemorySender(), ledger=ledger)


def test_a_run_that_the_ledger_does_not_know_is_told_all_the_same(final):
    sender = MemorySender()
    assert notify(final, [HOOK, SLACK], sender=sender, ledger=MemoryLedger())
    assert len(sender.posted) == 2


def test_an_address_is_never_logged(final, ledger, caplog):
    caplog.set_level("DEBUG")
    notify(final, [HOOK, SLACK], sender=MemorySender(HOOK.url, SLACK.url), ledger=ledger)
    assert len(caplog.records) == 2
    for destination in (HOOK, SLACK):
        assert destination.mark in caplog.text
        assert "token" not in caplog.text
        assert "hooks.slack.com" not in caplog.text


# Destinations


def test_destinations_are_read_from_the_secret():
    text = json.dumps([{"url": HOOK.url, "secret": SECRET}, {"url": SLACK.url}])
    assert destinations_of(text) == ([HOOK, SLACK], [])
    assert destinations_of("[]") == ([], [])


@pytest.mark.parametrize(
    "text",
    ["", "{", "1", "null", '"x"', "{}x", '{"url": "x"}', "[1]", "[null]", '["x"]', "[{}]", '[{"secret": "x"}]', "[[]]"],
)
def test_a_secret_that_holds_no_destinations_says_what_it_should_be(text):
    with pytest.raises(InvalidDestination, match="should read"):
        destinations_of(text)


SECRET_PART = "token-in-address"


@pytest.mark.parametrize(
    "url",
    [
        *(
            f"http://{SECRET_PART}",
            f"ftp://{SECRET_PART}",
            SECRET_PART,
            "",
            f"//{SECRET_PART}",
            "https://",
            "https:///x",
        ),
        *(f"https://[{SECRET_PART}", f"https://{SECRET_PART}\u2100/x", f"https://{SECRET_PART}:port/", 1, None),
        f"https://{SECRET_PART}@example.org/",
        f"https://good:{SECRET_PART}@127.0.0.1/",
    ],
)
def test_an_address_that_is_not_https_is_refused_by_its_number_without_being_told(url):
    text = json.dumps([{"url": HOOK.url, "secret": SECRET}, {"url": url, "secret": SECRET}])
    found, (problem,) = destinations_of(text)
    assert found == [HOOK]
    assert problem.startswith("destination 2 ")
    assert SECRET_PART not in problem


def test_plain_http_is_taken_where_this_machine_may_be_told():
    text = json.dumps([{"url": "http://127.0.0.1:8000/", "secret": SECRET}])
    assert destinations_of(text, allow_loopback=True) == ([Destination("http://127.0.0.1:8000/", SECRET)], [])


@pytest.mark.parametrize("secret", [None, "", "whsec_", 1, [SECRET], {}])
def test_a_webhook_needs_a_secret(secret):
    found, problems = destinations_of(json.dumps([{"url": HOOK.url, "secret": secret}]))
    assert (found, len(problems)) == ([], 1)


# The queue


@pytest.fixture(scope="module")
def sqs(aws):
    return boto3.client("sqs")


@pytest.fixture
def queue(sqs):
    url = sqs.create_queue(QueueName="notify", Attributes={"VisibilityTimeout": "0"})["QueueUrl"]
    yield url
    sqs.delete_queue(QueueUrl=url)


@pytest.fixture
def taken(sqs, queue, final):
    """The final state as Lambda takes it from the queue."""
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(final.document()))
    [message] = sqs.receive_message(QueueUrl=queue, AttributeNames=["All"], VisibilityTimeout=360)["Messages"]
    return {"body": message["Body"], "receiptHandle": message["ReceiptHandle"], "attributes": message["Attributes"]}


class Visibility:
    """The queue's own client, which remembers the pauses it was asked for."""

    def __init__(self, sqs):
        self._sqs = sqs
        self.pauses = []

    def change_message_visibility(self, **order):
        self._sqs.change_message_visibility(**order)
        self.pauses.append(order["VisibilityTimeout"])


@pytest.fixture
def notifier(sqs, queue, ledger):
    def make(secret, sender):
        return Notifier(
            secret, allow_loopback=False, queue=Visibility(sqs), queue_url=queue, sender=sender, ledger=ledger
        )

    return make


KNOWN = json.dumps([{"url": HOOK.url, "secret": SECRET}])


def test_a_final_state_is_taken_from_the_queue(notifier, taken, final):
    sender = MemorySender()
    notifying = notifier(FakeSecret(KNOWN), sender)
    assert notifying.take(taken)
    assert json.loads(sender.posted[0][2])["data"] == final.document()
    assert notifying.queue.pauses == []


def test_what_was_not_accepted_comes_again_after_a_pause(notifier, taken):
    notifying = notifier(FakeSecret(KNOWN), MemorySender(HOOK.url))
    assert not notifying.take(taken)
    assert notifying.queue.pauses == [30]


def test_the_pause_grows_with_the_receptions(notifier, taken):
    notifying = notifier(FakeSecret(KNOWN), MemorySender(HOOK.url))
    taken["attributes"]["ApproximateReceiveCount"] = "4"
    notifying.take(taken)
    assert notifying.queue.pauses == [240]


@pytest.mark.parametrize("text", ["", "{", '[{"url": "http://token"}]', json.dumps([{"url": HOOK.url}])])
def test_destinations_that_cannot_be_used_alarm_and_are_read_anew_next_time(notifier, taken, text, caplog):
    sender, secret = MemorySender(), FakeSecret(text, KNOWN)
    notifying = notifier(secret, sender)
    assert not notifying.take(taken)
    assert [record.alarm for record in caplog.records] == ["notification"]
    assert "token" not in caplog.text
    secret.value(fresh=True)
    assert notifying.take(taken)
    assert sender.urls == [HOOK.url]


def test_a_destination_that_is_wrong_does_not_silence_the_others(notifier, taken, caplog):
    sender = MemorySender()
    wrong = json.dumps([{"url": HOOK.url, "secret": SECRET}, {"url": "https://hooks.example.com/without-secret"}])
    assert not notifier(FakeSecret(wrong), sender).take(taken)
    assert sender.urls == [HOOK.url]
    assert "destination 2" in caplog.text


def test_a_destination_that_nothing_may_be_sent_to_alarms(final, ledger, caplog):
    sender = Broken(MemorySender(), "post", NotAllowed("leads to a private or special address"))
    assert not notify(final, [HOOK, SECOND], sender=sender, ledger=ledger)
    assert [(record.alarm, "special" in record.message) for record in caplog.records] == [("notification", True)]
    assert sender.urls == [SECOND.url]


@pytest.mark.parametrize("error", [Transient("x"), Unauthorised("x")])
def test_a_secret_that_cannot_be_read_is_read_anew_next_time(notifier, taken, error):
    notifying = notifier(Broken(FakeSecret(KNOWN), "value", error), MemorySender())
    assert not notifying.take(taken)
    assert notifying.take(taken)


def test_what_the_state_machine_tells_alone_is_told(notifier, taken, final):
    alone = {
        name: value
        for name, value in final.document().items()
        if name in ("run_id", "bucket", "key", "etag", "created_at", "updated_at", "finished_at")
    }
    error = Failure("results_not_collected", "The run failed.")
    taken["body"] = json.dumps(alone | {"state": "failed", "error": {"code": error.code, "message": error.message}})
    sender = MemorySender()
    assert notifier(FakeSecret(KNOWN), sender).take(taken)
    assert json.loads(sender.posted[0][2])["data"]["error"]["code"] == "results_not_collected"


class _Loader(yaml.SafeLoader):
    """Reads template.yaml; what its short forms say is of no interest here."""


_Loader.add_multi_constructor("!", lambda *_: None)


def queue_of_the_template():
    template = Path(__file__).parents[2] / "template.yaml"
    return yaml.load(template.read_text(), _Loader)["Resources"]["NotifyQueue"]["Properties"]


def test_the_pauses_spread_the_receptions_that_the_queue_allows_over_three_days():
    receptions = queue_of_the_template()["RedrivePolicy"]["maxReceiveCount"]
    days = sum(pause_seconds(count) for count in range(1, receptions)) / 86_400
    assert 3 <= days < 3.2


def test_the_queue_keeps_a_message_until_its_last_attempt():
    properties = queue_of_the_template()
    receptions = properties["RedrivePolicy"]["maxReceiveCount"]
    assert properties["MessageRetentionPeriod"] > sum(pause_seconds(count) for count in range(1, receptions + 1))


def test_no_pause_is_longer_than_sqs_can_wait():
    assert max(pause_seconds(count) for count in range(1, 1000)) <= 12 * 3600
