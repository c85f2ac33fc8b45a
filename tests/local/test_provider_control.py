import base64
import concurrent.futures
import http.server
import json
import socket
import subprocess
import sys
import threading

import openai
import pytest
from openai.types.webhooks import FineTuningJobFailedWebhookEvent, FineTuningJobSucceededWebhookEvent

from tests.local.provider_support import KEY, Provider, chats, until

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def running():
    running = Provider.start()
    yield running
    running.stop()


@pytest.fixture
def provider(running):
    yield running
    running.order("DELETE", "/faults")


@pytest.fixture
def receiver():
    """Keep what arrives; answer as `receiver.answers` says, then 204."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            self.server.received.append((dict(self.headers), body))
            self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/callbacks/openai"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def jobs_created(provider):
    return provider.order("GET", "/ledger")["jobs_created"]


# Faults


def test_a_throttled_request_carries_its_headers_and_is_not_carried_out(provider):
    training_file, before = provider.upload().id, jobs_created(provider)
    body = {"error": {"message": "Slow down.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
    provider.fault("POST", JOBS, {"status": 429, "headers": {"retry-after": "3"}, "body": body}, times=2)
    for _ in range(2):
        with pytest.raises(openai.RateLimitError, match="Slow down") as refused:
            provider.job(training_file=training_file)
        assert refused.value.response.headers["retry-after"] == "3"
    assert jobs_created(provider) == before
    provider.job(training_file=training_file)
    assert jobs_created(provider) == before + 1


def test_a_fault_can_be_text_and_can_come_after_the_work(provider):
    training_file, before = provider.upload().id, jobs_created(provider)
    provider.fault("POST", JOBS, {"status": 502, "body": "upstream", "after": True})
    with pytest.raises(openai.InternalServerError) as failed:
        provider.job(training_file=training_file)
    assert failed.value.response.text == "upstream"
    assert jobs_created(provider) == before + 1


@pytest.mark.parametrize(("moment", "created"), [("before", 0), ("after", 1)])
def test_a_reset_comes_before_or_after_the_work(provider, moment, created):
    training_file, before = provider.upload().id, jobs_created(provider)
    provider.fault("POST", JOBS, {"reset": moment})
    with pytest.raises(openai.APIConnectionError):
        provider.job(training_file=training_file)
    assert jobs_created(provider) == before + created
    assert provider.order("GET", "/ledger")["requests"][-1]["status"] is None


def test_a_reset_is_a_real_one(provider):
    provider.fault("GET", "/v1/models", {"reset": "before"})
    host, port = provider.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_unreadable_answers(provider):
    training_file, before = provider.upload().id, jobs_created(provider)
    provider.fault("POST", JOBS, {"html": 200})
    assert isinstance(provider.job(training_file=training_file), str)
    assert jobs_created(provider) == before
    provider.fault("POST", JOBS, {"truncate": 40})
    with pytest.raises(json.JSONDecodeError):
        provider.job(training_file=training_file)
    assert jobs_created(provider) == before + 1
    provider.fault("POST", JOBS, {"truncate": 40, "whole_length": True})
    with pytest.raises(openai.APIConnectionError):
        provider.job(training_file=training_file)
    assert jobs_created(provider) == before + 2


@pytest.mark.parametrize("after", [False, True])
def test_a_hanging_creation_lands_although_the_client_has_gone(provider, after):
    training_file, before = provider.upload().id, jobs_created(provider)
    provider.fault("POST", JOBS, {"hang": 0.6, "after": after})
    with pytest.raises(openai.APITimeoutError):
        provider.client.with_options(timeout=0.2).fine_tuning.jobs.create(
            model="gpt-4o-mini", training_file=training_file
        )
    assert jobs_created(provider) == before + after
    until(lambda: jobs_created(provider), lambda created: created == before + 1)


def test_a_new_job_can_be_late_in_listings(provider):
    training_file = provider.upload().id
    provider.fault("POST", f"{JOBS}$", {"delay_listing": 1600, "reset": "after"})
    with pytest.raises(openai.APIConnectionError):
        provider.job(training_file=training_file)
    created = provider.order("GET", "/ledger")["jobs"][-1]["id"]
    assert created not in [job.id for job in provider.client.fine_tuning.jobs.list()]
    assert provider.client.fine_tuning.jobs.retrieve(created).id == created
    until(lambda: [job.id for job in provider.client.fine_tuning.jobs.list()], lambda listed: created in listed)


def test_a_new_file_can_be_late_in_listings(provider):
    provider.fault("POST", "/v1/files", {"delay_listing": 1600})
    file = provider.client.files.create(file=("late.jsonl", chats()), purpose="fine-tune")
    assert file.id not in [each.id for each in provider.client.files.list()]
    until(lambda: [each.id for each in provider.client.files.list()], lambda listed: file.id in listed)


def test_faults_are_counted_matched_listed_and_cleared(provider):
    provider.fault("GET", f"{JOBS}/*/events", {"status": 503}, times=None, after_skipping=1)
    job = provider.job()
    events = f"/fine_tuning/jobs/{job.id}/events"
    assert [provider.call("GET", events).status_code for _ in range(4)] == [200, 503, 503, 503]
    assert provider.call("GET", f"/fine_tuning/jobs/{job.id}").status_code == 200
    listed = provider.order("GET", "/faults")["faults"]
    assert [(fault["path"], fault["times"], fault["after_skipping"]) for fault in listed] == [
        (f"{JOBS}/*/events", None, 0)
    ]
    assert provider.order("DELETE", "/faults") == {"faults": []}
    assert provider.call("GET", events).status_code == 200


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"fault": {}},
        {"fault": {"headers": {"a": "b"}}},
        {"fault": {"status": "429"}},
        {"fault": {"reset": "during"}},
        {"fault": {"explode": True}},
        {"fault": {"delay_listing": 3}, "method": "GET"},
        {"fault": {"status": 500}, "times": 0},
    ],
)
def test_an_order_that_makes_no_sense_is_refused(provider, order):
    with pytest.raises(AssertionError, match="invalid_request_error"):
        provider.order("POST", "/faults", order)
    assert provider.order("GET", "/faults") == {"faults": []}


# Outcomes


def test_a_planned_failure_carries_its_error(provider):
    error = {"code": "insufficient_quota", "message": "No money.", "param": None}
    provider.order("POST", "/jobs/next", {"outcome": "failed", "error": error, "after_seconds": 10})
    planned, usual = provider.job(), provider.job()
    failed = provider.wait_for(planned.id, "failed")
    assert failed.error.to_dict() == error
    assert failed.finished_at - failed.created_at == pytest.approx(10, abs=1)
    provider.wait_for(usual.id, "succeeded")


def test_one_plan_can_hold_for_several_jobs(provider):
    provider.order("POST", "/jobs/next", {"outcome": "cancelled", "times": 2})
    made = [provider.job().id for _ in range(3)]
    ended = [provider.wait_for(job, "cancelled", "succeeded", "failed").status for job in made]
    assert ended == ["cancelled", "cancelled", "succeeded"]


def test_a_planned_length_is_kept(provider):
    provider.order("POST", "/jobs/next", {"outcome": "succeeded", "duration_seconds": 2000})
    job = provider.wait_for(provider.job().id, "succeeded")
    assert job.finished_at - job.created_at == pytest.approx(2050, abs=30)


def test_a_stuck_job_goes_on_for_ever_and_can_be_cancelled(provider):
    provider.order("POST", "/jobs/next", {"outcome": "stuck", "duration_seconds": 100})
    job = provider.job()
    running = provider.wait_for(job.id, "running")
    until(lambda: provider.order("GET", "")["now"], lambda now: now > running.estimated_finish + 100)
    assert provider.client.fine_tuning.jobs.retrieve(job.id).status == "running"
    assert provider.client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_a_planned_pause_waits_for_the_validation(provider):
    provider.order("POST", "/jobs/next", {"outcome": "paused", "after_seconds": 1})
    job = provider.wait_for(provider.job().id, "paused")
    messages = [event.message for event in provider.client.fine_tuning.jobs.list_events(job.id)]
    assert any("validated" in message for message in messages)


# The ledger


def test_the_ledger_remembers_everything_that_was_created():
    provider = Provider.start()
    file = provider.upload()
    provider.client.files.delete(file.id)
    training_file = provider.upload().id
    job = provider.client.fine_tuning.jobs.create(
        model="gpt-4o-mini",
        training_file=training_file,
        metadata={"run_id": "r1"},
        extra_headers={"Idempotency-Key": "once"},
    )
    ledger = provider.order("GET", "/ledger")
    assert ledger["jobs_created"] == 1
    assert (
        ledger["jobs"][0].items()
        >= {
            "id": job.id,
            "training_file": training_file,
            "metadata": {"run_id": "r1"},
            "idempotency_key": "once",
            "created_at": job.created_at,
        }.items()
    )
    assert [each["id"] for each in ledger["files"]] == [file.id, training_file]
    assert {each["filename"] for each in ledger["files"]} == {"data.jsonl"}
    assert ledger["requests"][-1] == {
        "method": "POST",
        "path": JOBS,
        "status": 200,
        "at": pytest.approx(job.created_at, abs=60),
    }
    provider.stop()


# Webhooks out


def test_the_end_of_a_job_is_announced_with_a_signature_until_it_is_taken(receiver):
    receiver.answers = [500, 302]
    provider = Provider.start("--callback-url", receiver.url, "--callback-secret", SECRET)
    job = provider.job()
    until(lambda: receiver.received, lambda received: len(received) == 3)
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    headers, body = receiver.received[-1]
    event = provider.client.webhooks.unwrap(body.decode(), headers, secret=SECRET)
    assert isinstance(event, FineTuningJobSucceededWebhookEvent)
    assert (event.data.id, event.object) == (job.id, "event")
    assert event.created_at == provider.client.fine_tuning.jobs.retrieve(job.id).finished_at
    provider.stop()


def test_the_address_can_be_given_later(provider, receiver):
    provider.order("PUT", "/callback", {"url": receiver.url, "secret": SECRET})
    job = provider.job(training_file=provider.upload(chats(3)).id)
    headers, body = until(lambda: receiver.received, bool)[0]
    event = provider.client.webhooks.unwrap(body.decode(), headers, secret=SECRET)
    assert isinstance(event, FineTuningJobFailedWebhookEvent)
    assert event.data.id == job.id
    provider.order("PUT", "/callback", {"url": None, "secret": None})


@pytest.mark.parametrize("secret", ["", "whsec_"])
def test_an_empty_secret_is_an_error_at_the_start(secret):
    options = ["--api-key", KEY, "--callback-url", "http://127.0.0.1:9/", "--callback-secret", secret]
    ended = subprocess.run(
        [sys.executable, "-m", "local.provider", *options], capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 2
    assert "secret" in ended.stderr


def test_no_more_jobs_than_allowed_however_many_ask_at_once(provider):
    training_file, before = provider.upload().id, jobs_created(provider)
    for job in provider.client.fine_tuning.jobs.list():
        if job.status not in ("succeeded", "failed", "cancelled"):
            provider.client.fine_tuning.jobs.cancel(job.id)
    provider.order("POST", "/jobs/next", {"outcome": "stuck", "times": 3})
    provider.order("PATCH", "/manners", {"active_jobs_limit": 3})
    ask = {"json": {"model": "gpt-4o-mini", "training_file": training_file}}
    with concurrent.futures.ThreadPoolExecutor(12) as askers:
        answers = list(askers.map(lambda _: provider.call("POST", "/fine_tuning/jobs", **ask).status_code, range(12)))
    provider.order("PATCH", "/manners", {"active_jobs_limit": None})
    assert sorted(answers) == [200] * 3 + [429] * 9
    assert jobs_created(provider) == before + 3
