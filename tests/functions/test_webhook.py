"""The webhook's answers that no sample event can hold: what is signed now, what is large, and what is out of order."""

import base64
import json
import time
from typing import Any

import pytest
from tunedrop import signatures
from tunedrop.webhook import MAX_BODY_BYTES

from tests.functions.world import SAMPLE_SECRET, World, sample

OTHER_SECRET = "whsec_" + base64.b64encode(b"a secret that is not ours").decode()
BODY = sample("webhook.r2_put")["body"]


def request(body: str, headers: dict[str, str]) -> Any:
    event = sample("webhook.unsigned")
    return event | {"body": body, "headers": event["headers"] | headers}


def signed(body: str, *, secret: str = SAMPLE_SECRET, at: float = 0.0) -> Any:
    """A request signed `at` seconds from now."""
    return request(body, signatures.sign(secret, "msg_of_a_test", time.time() + at, body))


def status(answer: Any) -> tuple[int, str | None]:
    return answer["statusCode"], json.loads(answer["body"]).get("error", {}).get("code")


@pytest.fixture
def secret_becomes(world: World) -> Any:
    """Puts another value into the webhook's secret, for one test."""
    secrets, arn = world.client("secretsmanager"), world.outputs["WebhookSecretArn"]

    def put(value: str) -> None:
        secrets.put_secret_value(SecretId=arn, SecretString=value)

    yield put
    put(SAMPLE_SECRET)


def test_signed_notification_starts_a_run(world: World) -> None:
    assert status(world.handle("webhook", signed(BODY))) == (202, None)


@pytest.mark.parametrize("seconds", [-290, 290])
def test_clocks_may_differ_by_five_minutes(world: World, seconds: float) -> None:
    assert status(world.handle("webhook", signed(BODY, at=seconds))) == (202, None)


@pytest.mark.parametrize("seconds", [-310, 310])
def test_what_is_older_or_newer_is_refused(world: World, seconds: float) -> None:
    assert status(world.handle("webhook", signed(BODY, at=seconds))) == (401, "not_authentic")


def test_signature_of_another_secret_is_refused(world: World) -> None:
    assert status(world.handle("webhook", signed(BODY, secret=OTHER_SECRET))) == (401, "not_authentic")


def test_signature_of_another_body_is_refused(world: World) -> None:
    forged = signed(BODY) | {"body": BODY.replace("orchard.jsonl", "other.jsonl")}
    assert status(world.handle("webhook", forged)) == (401, "not_authentic")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-timestamp", "soon"),
        ("webhook-timestamp", "9" * 400),
        ("webhook-signature", "v1,ÄÖÜ"),
        ("webhook-signature", "v1"),
        ("webhook-id", ""),
        ("authorization", "Bearer"),
        ("authorization", "Basic " + SAMPLE_SECRET),
        ("authorization", "Bearer ÄÖÜ"),
    ],
)
def test_garbage_in_a_header_is_not_authentic(world: World, name: str, value: str) -> None:
    event = signed(BODY)
    event["headers"][name] = value
    assert status(world.handle("webhook", event)) == (401, "not_authentic")


@pytest.mark.parametrize("secret", [SAMPLE_SECRET, OTHER_SECRET])
def test_both_secrets_hold_while_one_replaces_the_other(world: World, secret_becomes: Any, secret: str) -> None:
    secret_becomes(f"{SAMPLE_SECRET} {OTHER_SECRET}")
    assert status(world.handle("webhook", signed(BODY, secret=secret))) == (202, None)


@pytest.mark.parametrize("value", [" ", "whsec_"])
def test_empty_secret_lets_nobody_in(world: World, secret_becomes: Any, value: str) -> None:
    secret_becomes(value)
    for event in (signed(BODY), request(BODY, {"authorization": "Bearer "}), request(BODY, {})):
        assert status(world.handle("webhook", event)) == (503, "not_handed_over")


def test_notification_delivered_twice_is_one_run(world: World) -> None:
    message = json.loads(BODY) | {"eventTime": "2026-03-05T14:00:00.000Z"}
    before = world.executions()

    answers = [json.loads(world.handle("webhook", signed(json.dumps(message)))["body"]) for _ in range(2)]

    assert answers[0] == answers[1]
    assert len(world.executions().keys() - before.keys()) == 1


def test_a_second_write_is_a_second_run(world: World) -> None:
    first = json.loads(BODY)
    second = first | {"eventTime": "2026-03-05T15:00:00.000Z"}

    answers = [json.loads(world.handle("webhook", signed(json.dumps(each)))["body"]) for each in (first, second)]

    assert answers[0]["accepted"][0]["run_id"] != answers[1]["accepted"][0]["run_id"]


def test_body_of_more_than_a_mebibyte_is_too_large(world: World) -> None:
    largest = BODY + " " * (MAX_BODY_BYTES - len(BODY.encode()))
    assert status(world.handle("webhook", signed(largest))) == (202, None)
    assert status(world.handle("webhook", signed(largest + " "))) == (413, "too_large")


@pytest.mark.parametrize("body", ["", "null", "17", "[[]]", '{"Records": 1}', '{"Records": [null]}', "[" * 100_000])
def test_body_of_another_form_is_malformed(world: World, body: str) -> None:
    assert status(world.handle("webhook", signed(body))) == (400, "malformed")


def test_a_list_of_nothing_starts_nothing(world: World) -> None:
    assert status(world.handle("webhook", signed("[]"))) == (200, None)


def test_what_cannot_be_handed_over_is_to_be_repeated(world: World) -> None:
    """Step Functions is out of reach: the sender repeats the whole, which starts nothing twice."""
    world.handle("webhook", signed(BODY))  # the clients and the secret are there
    stepfunctions = world.client("stepfunctions")
    machine = stepfunctions.describe_state_machine(stateMachineArn=world.outputs["StateMachineArn"])
    stepfunctions.delete_state_machine(stateMachineArn=machine["stateMachineArn"])
    try:
        answer = world.handle("webhook", signed(BODY))
    finally:
        stepfunctions.create_state_machine(
            name=machine["name"], definition=machine["definition"], roleArn=machine["roleArn"]
        )
    assert status(answer) == (503, "not_handed_over")
