"""Canaries in a run through the real stack: everything that it can show is swept for them."""

import json
from pathlib import Path

import pytest

from tests.local.provider_support import lines
from tests.workflow.running import FILES, JOBS, chat

CANARY = "Pelican of the third basin"
ADDRESS = "path-of-the-pelican"


def secrets_of(stack):
    return [
        *(stack.address[name] for name in ("provider_key", "secret_access_key", "webhook_secret", "callback_secret")),
        stack.address["webhook_secret"].removeprefix("whsec_"),
        *("elican", "whisper_of"),
    ]


def shown(stack, run_ids):
    """Everything that the stack shows of itself, by its place."""
    for log in sorted(Path(stack.address["logs"]).glob("*.log")):
        yield log.name, log.read_text(errors="replace")
    for run_id in run_ids:
        told = [stack.execution(run_id), stack.history(run_id)]
        yield "execution", json.dumps(told, default=str, ensure_ascii=False)
    pages = stack.aws("dynamodb").get_paginator("scan").paginate(TableName=stack.address["ledger"])
    yield "ledger", json.dumps([page["Items"] for page in pages], default=str, ensure_ascii=False)
    yield "notifications", json.dumps(stack.control("notifications"), ensure_ascii=False)
    yield "deliveries", json.dumps(stack.control("deliveries"), ensure_ascii=False)


def assert_no_canary(stack, run_ids):
    places = list(shown(stack, run_ids))
    assert {"UploadFunction.log", "NotifyFunction.log", "execution", "ledger", "notifications"} <= {
        p for p, _ in places
    }
    for place, text in places:
        for secret in secrets_of(stack):
            at = text.find(secret)
            assert at < 0, f"{place}: {text[max(at - 200, 0) : at + 50]}"


@pytest.fixture
def told_elsewhere(stack):
    """Has a Slack channel told too, whose address is a secret and leads nowhere."""
    manager, secret = stack.aws("secretsmanager"), "tunedrop-NotificationSecret"
    good = manager.get_secret_value(SecretId=secret)["SecretString"]
    further = {"url": f"http://127.0.0.1:9/{ADDRESS}", "secret": json.loads(good)[0]["secret"]}
    manager.put_secret_value(SecretId=secret, SecretString=json.dumps([*json.loads(good), further]))
    stack.forget("NotifyFunction")
    yield
    manager.put_secret_value(SecretId=secret, SecretString=good)
    stack.forget("NotifyFunction")


def test_a_run_through_faults_shows_nothing_of_its_dataset_and_no_secret(stack, key, told_elsewhere):
    said = f"key {stack.address['provider_key']}, line 1 {CANARY}"
    echo = {"error": {"message": f'{{"key": "{stack.address["provider_key"]}", "line": "{CANARY}"}}', "code": said}}
    stack.put(key.replace(".jsonl", ".job.json"), json.dumps({"smoke_test": CANARY}).encode())
    stack.provider_fault("POST", f"{FILES}$", {"status": 500, "after": True, "body": {"error": {"message": said}}})
    stack.provider_fault("POST", "/v1/chat/completions", {"status": 400, "body": {"error": {"message": said}}}, times=9)
    for method, path in (("POST", f"{JOBS}$"), ("GET", f"{JOBS}/*"), ("GET", f"{JOBS}/*/events"), ("GET", f"{FILES}$")):
        for status in (401, 429, 500):
            stack.provider_fault(method, path, {"status": status, "body": echo}, times=1)
    done = stack.drop(key, lines(chat(CANARY, number) for number in range(12)))
    refused = stack.drop(key.replace("data", "refused"), lines(chat(CANARY, number) for number in range(9)))
    broken = {"messages": [{"role": "user", "content": [{"type": "text", "text": CANARY, "whisper_of": 1}]}]}
    rejected = stack.drop(key.replace("data", "broken"), lines([broken]))

    ended = [stack.ended(run_id) for run_id in (done, refused, rejected)]
    assert [end.state for end in ended] == ["succeeded", "rejected", "rejected"]
    assert CANARY in json.dumps(json.loads(stack.get(f"results/{done}/report.json"))), "the prompt was on its way"
    assert_no_canary(stack, [done, refused, rejected])


def test_what_a_failed_job_quotes_is_not_told(stack, key):
    stack.next_job("failed", error={"code": "invalid_file", "message": f'Line 3 reads {{"content": "{CANARY}"}}.'})
    run_id = stack.drop(key, lines(chat(CANARY, number) for number in range(20, 33)))
    assert stack.ended(run_id).message.startswith("Line 3 reads …")
    assert_no_canary(stack, [run_id])
