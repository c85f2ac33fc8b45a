import base64
import json
import time

import pytest
from tunedrop import signatures
from tunedrop.callback import take_callback
from tunedrop.errors import Transient
from tunedrop.runs import Run, RunRequest
from tunedrop.webhook import MAX_BODY_BYTES

from tests.unit.fakes import Broken, FakeSecret, MemoryLedger

OLD, NEW = ("whsec_" + base64.b64encode(text).decode() for text in (b"the secret so far", b"the secret to come"))
RUN = "0" * 32
JOB = "ftjob-1"


class Waker:
    def __init__(self):
        self.woken = []

    def wake(self, token):
        self.woken.append(token)


@pytest.fixture
def ledger():
    ledger = MemoryLedger()
    ledger.begin(Run.of(RunRequest(RUN, "datasets", "orders.jsonl", "e1", 10)))
    return ledger


@pytest.fixture
def waker():
    return Waker()


@pytest.fixture
def post(ledger, waker):
    def post(event, secret=NEW, provider="openai", at=None, secrets=None, to=None, with_waker=None):
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        text = body.decode("utf-8", "replace")
        headers = signatures.sign(secret, "evt_1", at or time.time(), text)
        known = FakeSecret(json.dumps({"openai": f"{OLD} {NEW}"}) if secrets is None else secrets)
        status, answer = take_callback(
            provider, headers, body, secrets=known, ledger=to or ledger, waker=with_waker or waker
        )
        return int(status), answer

    return post


def event(kind="fine_tuning.job.succeeded", job_id=JOB):
    return {"object": "event", "type": kind, "data": {"id": job_id}}


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_the_end_of_a_job_wakes_the_run_that_waits_for_it(post, ledger, waker, end):
    ledger.join(f"openai/{JOB}", RUN)
    ledger.wait(RUN, "token")
    assert post(event(f"fine_tuning.job.{end}")) == (202, {"accepted": JOB})
    assert waker.woken == ["token"]


def test_a_job_that_is_not_known_yet_is_remembered(post, ledger, waker):
    assert post(event()) == (202, {"accepted": JOB})
    ledger.join(f"openai/{JOB}", RUN)
    assert not ledger.wait(RUN, "token")
    assert waker.woken == []


def test_a_callback_that_comes_twice_is_harmless(post, ledger, waker):
    ledger.join(f"openai/{JOB}", RUN)
    ledger.wait(RUN, "token")
    assert [post(event())[0], post(event())[0]] == [202, 202]


def test_another_event_wakes_nobody(post, ledger, waker):
    ledger.join(f"openai/{JOB}", RUN)
    ledger.wait(RUN, "token")
    assert post(event("fine_tuning.job.paused")) == (200, {"ignored": "fine_tuning.job.paused"})
    assert waker.woken == []


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_each_of_two_secrets_signs(post, secret):
    assert post(event(), secret=secret)[0] == 202


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "whsec_" + base64.b64encode(b"somebody else's").decode()},
        {"provider": "nebius"},
        {"at": 1_000_000},
        {"secrets": "{}"},
        {"secrets": '{"openai": ""}'},
        {"secrets": '{"openai": null}'},
    ],
)
def test_what_is_not_authentic_is_refused(post, wrong):
    assert post(event(), **wrong)[0] == 401


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"type": 1}', b'{"type": "x", "data": 3}', b"[" * 100_000])
def test_what_is_no_callback_is_malformed(post, body):
    assert post(body)[0] == 400


def test_a_secret_that_is_no_json_is_the_operators_to_mend(post):
    status, answer = post(event(), secrets="whsec_oops")
    assert (status, answer["error"]["code"]) == (503, "not_noted")


def test_more_than_a_mebibyte_is_too_large(post):
    assert post(b" " * (MAX_BODY_BYTES + 1))[0] == 413


def test_what_could_not_be_noted_is_to_be_repeated(post, ledger):
    assert post(event(), to=Broken(ledger, "call_back", Transient("DynamoDB answered 500")))[0] == 503


def test_what_could_not_be_woken_is_to_be_repeated(post, ledger, waker):
    ledger.join(f"openai/{JOB}", RUN)
    ledger.wait(RUN, "token")
    assert post(event(), with_waker=Broken(waker, "wake", Transient("Step Functions answered 500")))[0] == 503
    assert post(event())[0] == 202
    assert waker.woken == ["token"]
