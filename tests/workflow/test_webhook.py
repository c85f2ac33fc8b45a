"""The webhook over HTTP: who is let in, what is understood, and that keys arrive byte for byte."""

import base64
import json
import secrets
import time
from urllib.parse import quote, quote_plus

import pytest
import requests

from tests.workflow.running import run_id_of

WRONG_SECRET = "whsec_" + base64.b64encode(b"not the secret of this stack....").decode()
KEYS = [
    "a+b.jsonl",
    "100% sure.jsonl",
    "%2B%20%25.jsonl",
    "two  spaces and a tab\t.jsonl",
    "für Ümläute.jsonl",
    "u\u0308 is not ü.jsonl",
    "日本語/データ.jsonl",
    "emoji 🍎.jsonl",
    'it\'s "quoted".jsonl',
    "a&b=c;d#e?f.jsonl",
    "back\\slash.jsonl",
    "<tag>.jsonl",
    "~!@$^*()[]{}|,.jsonl",
    "/leading/slash.jsonl",
    "double//slash.jsonl",
    "dots/../and/./more.jsonl",
    "x" * 900 + ".jsonl",
    ".jsonl",
]


def assert_refused(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["message"]


def token(stack):
    return {"authorization": f"Bearer {stack.address['webhook_secret']}"}


# Who is let in


def test_what_is_not_authentic_is_refused_and_starts_nothing(stack, key):
    message = stack.event(key, "e" * 32)
    body = json.dumps(message).encode()
    good = stack.signature(body)
    refused = {
        "unsigned": {},
        "forged": stack.signature(body, WRONG_SECRET),
        "stale": stack.signature(body, at=time.time() - 301),
        "from the future": stack.signature(body, at=time.time() + 301),
        "of another body": stack.signature(body + b" "),
        "of another id": good | {"webhook-id": "msg_other"},
        "of another time": good | {"webhook-timestamp": str(int(good["webhook-timestamp"]) - 1)},
        "without an id": {name: value for name, value in good.items() if name != "webhook-id"},
        "no time": good | {"webhook-timestamp": "yesterday"},
        "no signature": good | {"webhook-signature": "v1,"},
        "garbage": good | {"webhook-signature": "v1,\u00ff\u00fe==, v1"},
        "another version": good | {"webhook-signature": good["webhook-signature"].replace("v1,", "v2,")},
        "wrong token": {"authorization": "Bearer nonsense"},
        "empty token": {"authorization": "Bearer "},
        "wrong scheme": {"authorization": f"Basic {stack.address['webhook_secret']}"},
    }
    for name, headers in refused.items():
        answer = stack.post(body, headers={k: v.encode("latin-1") for k, v in headers.items()})
        assert answer.status_code == 401, name
        assert_refused(answer, 401, "not_authentic")
    assert not stack.was_started(run_id_of(message))


def test_a_store_that_cannot_sign_sends_its_token(stack, key):
    message = stack.event(key, "e" * 32)
    answer = stack.post(message, headers=token(stack))

    assert answer.status_code == 202
    assert stack.ended(run_id_of(message)).state == "missing"


def test_a_replayed_request_is_the_same_run(stack, key):
    body = json.dumps(stack.event(key, "e" * 32)).encode()
    signed = stack.signature(body)
    first, second = stack.post(body, headers=signed), stack.post(body, headers=signed)

    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert stack.ended(first.json()["accepted"][0]["run_id"]).state == "missing"


def test_secrets_are_rotated_without_a_gap(stack, key):
    manager, name = stack.aws("secretsmanager"), "tunedrop-WebhookSecret"
    old, new = stack.address["webhook_secret"], "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    try:
        manager.put_secret_value(SecretId=name, SecretString=f"{new} {old}")
        stack.forget("WebhookFunction")
        for secret in (old, new):
            answer = stack.post(stack.event(key, "e" * 32), secret=secret)
            assert answer.status_code == 202
            stack.ended(answer.json()["accepted"][0]["run_id"])
        manager.put_secret_value(SecretId=name, SecretString=" ")
        stack.forget("WebhookFunction")
        answer = stack.post(stack.event(key, "e" * 32))
        assert_refused(answer, 503, "not_handed_over")
    finally:
        manager.put_secret_value(SecretId=name, SecretString=old)
        stack.forget("WebhookFunction")


# What is understood


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"null",
        b"42",
        b'"text"',
        b"{}",
        b'{"Records": {}}',
        b'{"Records": [{}]}',
        b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "datasets"}, "object": {}}}]}',
        b'{"action": "PutObject", "bucket": "datasets", "object": {"key": "a.jsonl"}, "eventTime": "now"}',
        b'{"action": "PutObject", "bucket": "datasets", "object": {"key": "", "eTag": "e"}, "eventTime": "now"}',
        b'{"action": "PutObject", "bucket": "datasets", "object": {"key": "\\ud800", "eTag": "e"}, "eventTime": "now"}',
        b'{"action": "PutObject", "bucket": 7, "object": {"key": "a", "eTag": "e"}, "eventTime": "now"}',
        b"[[]]",
        b"[" * 100_000,
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_what_is_no_notification_is_malformed(stack, body):
    headers = (
        stack.signature(body) if body.isascii() else {"authorization": f"Bearer {stack.address['webhook_secret']}"}
    )
    assert_refused(stack.post(body, headers=headers), 400, "malformed")


def test_a_record_that_is_malformed_takes_no_others_with_it(stack, key):
    message = stack.event(key, "e" * 32)
    answer = stack.post([{"Records": [{}]}, message])

    assert answer.status_code == 202
    assert [malformed["event"] for malformed in answer.json()["malformed"]] == [0]
    assert stack.ended(run_id_of(message)).state == "missing"


def test_more_than_a_mebibyte_is_too_large(stack):
    assert_refused(stack.post(b" " * (1 << 20) + b"[]"), 413, "too_large")


def test_a_mebibyte_is_not(stack):
    answer = stack.post(b"[]".ljust(1 << 20))
    assert (answer.status_code, answer.json()) == (200, {"accepted": [], "ignored": []})


def test_a_store_that_looks_whether_somebody_is_there_finds_somebody(stack):
    assert requests.head(stack.address["webhook"], timeout=20).status_code == 200


def test_the_test_event_of_s3_is_answered_and_starts_nothing(stack):
    event = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": stack.bucket}
    answer = stack.post(event)
    assert (answer.status_code, answer.json()) == (200, {"accepted": [], "ignored": []})


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_there_is_nothing_else_at_the_address(stack, method):
    assert requests.request(method, stack.address["webhook"], timeout=20).status_code == 404


def test_events_of_something_else_are_ignored_with_a_reason(stack, key):
    events = {
        "no object was created": {"action": "DeleteObject", "object": {"key": key}},
        "another bucket": {"bucket": "another"},
        "does not end in .jsonl": {"object": {"key": "photo.png", "eTag": "e"}},
        "a result": {"object": {"key": "results/0/data.jsonl", "eTag": "e"}},
        "a validation set": {"object": {"key": "data.validation.jsonl", "eTag": "e"}},
        "a job specification": {"object": {"key": "data.job.json", "eTag": "e"}},
    }
    unknown = {"action": "ObjectTagged"}, {"action": "LifecycleDeletion", "object": {"key": key}}
    messages = [stack.event(key, "e" * 32, **changes) for changes in (*events.values(), *unknown)]
    answer = stack.post(messages)

    assert answer.status_code == 202
    assert answer.json()["accepted"] == []
    ignored = answer.json()["ignored"]
    assert [event["key"] for event in ignored] == [message["object"]["key"] for message in messages]
    for reason, event in zip([*events, *["no object was created"] * 2], ignored, strict=True):
        assert reason in event["reason"]


def envelope(bucket, key, etag, **rest):
    stored = {"key": key, "size": 1, "eTag": etag, "sequencer": secrets.token_hex(8)}
    record = {"eventVersion": "2.1", "eventTime": "2026-11-21T08:00:00.000Z", "eventName": "ObjectCreated:Put"}
    return {"Records": [record | {"s3": {"bucket": {"name": bucket}, "object": stored}}]} | rest


@pytest.mark.parametrize("name", ["plain.jsonl", "a+b & 50% ü 日本.jsonl"])
def test_the_forms_of_s3_and_minio_start_the_run_of_their_object(stack, key, name):
    key = key.replace("data.jsonl", name)
    etag = stack.put_quietly(key, b"no dataset\n")
    s3 = envelope(stack.bucket, quote_plus(key, safe="/"), etag)
    minio = envelope(stack.bucket, quote(key, safe=""), etag, EventName="s3:ObjectCreated:Put", Key=f"datasets/{key}")
    minio["Records"][0]["eventName"] = "s3:ObjectCreated:Put"

    for message in (s3, minio):
        answer = stack.post(message)
        assert answer.status_code == 202, answer.text
        (accepted,) = answer.json()["accepted"]
        assert accepted["key"] == key
        ended = stack.ended(accepted["run_id"])
        assert (ended.state, ended.run["key"]) == ("rejected", key)


# Keys


@pytest.mark.parametrize("name", KEYS, ids=lambda name: ascii(name[:30]))
def test_a_key_goes_from_the_bucket_to_the_notification_byte_for_byte(stack, key, name):
    key = key.replace("data.jsonl", name) if name != ".jsonl" else name
    body = f"no dataset of {key[:30]}\n".encode()
    run_id = stack.drop(key, body)
    ended = stack.ended(run_id)

    assert ended.state == "rejected", "its object was found"
    assert ended.run["key"] == key
    assert ended.notification["message"]["data"]["key"] == key
    assert stack.get(key) == body
