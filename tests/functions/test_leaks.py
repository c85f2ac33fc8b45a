"""Canaries in datasets, keys, secrets and addresses: whatever fails, none of them is told where it does not belong.

What is told of a function is its log, its answer or the error it raises (which become the execution's history), the
ledger, and what is published and delivered. Everything is swept after every call.
"""

import io
import itertools
import json
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from tests.functions.world import PROVIDER_KEY, SAMPLE_SECRET, World, sample

PROMPT = "Whisper to the pelican of the third basin"
STORAGE_KEY = "storage-key-of-the-pelican"
ADDRESS = "path-of-the-pelican"
CANARIES = ("pelican", PROVIDER_KEY, SAMPLE_SECRET.removeprefix("whsec_"))
CANARY = re.compile("|".join(map(re.escape, CANARIES)), re.IGNORECASE)


class Sink:
    """Everything that can be seen of the functions from outside."""

    def __init__(self, world: World, log: io.StringIO) -> None:
        self._world = world
        self._log = log
        self.calls = 0
        self.failed = 0

    def take(self, name: str, event: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Any:
        """Has a function handle an event, and sweeps what can be seen of it; what it answers, None where it raised."""
        answer, seen = None, ""
        try:
            with logged(self._log):
                answer = self._world.handle(name, event, environment)
        except Exception as error:  # noqa: BLE001 - as Lambda takes it
            self.failed += 1
            seen = "".join(traceback.format_exception(error)) + repr(error)
        self.calls += 1
        items = self._world.client("dynamodb").scan(TableName=self._world.outputs["LedgerTable"])["Items"]
        places = {
            "log": self._log.getvalue(),
            "answer": json.dumps(answer, ensure_ascii=False),
            "error": seen,
            "ledger": json.dumps(items, ensure_ascii=False, default=str),
            "notifications": json.dumps(self._world.receiver.received, ensure_ascii=False),
        }
        for place, text in places.items():
            found = CANARY.search(text)
            assert not found, f"{name}: {place}: …{text[max(found.start() - 300, 0) : found.end() + 100]}…"
        return answer


@contextmanager
def logged(log: io.StringIO) -> Iterator[None]:
    """Takes every log record there is, from the lowest level on, with its traceback, as the functions write it."""
    handler = logging.StreamHandler(log)
    handler.setFormatter(LambdaPowertoolsFormatter(serialize_stacktrace=True))
    loggers = [logging.getLogger(), logging.getLogger("tunedrop")]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)
            each.setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions' clock is the real one."""
    monkeypatch.setattr("tunedrop.create_job.LAST_LOOK_SECONDS", 0)
    monkeypatch.setattr("tunedrop.collect.PAUSE_SECONDS", 0)
    monkeypatch.setattr("tunedrop.smoke_test.PAUSE_SECONDS", 0)


@pytest.fixture
def sink(world: World) -> Sink:
    for name in ("boto3", "botocore", "httpcore2", "httpx2", "openai", "urllib3"):
        logging.getLogger(name).setLevel(logging.NOTSET)  # whether they are kept quiet is for the functions to see to
    return Sink(world, io.StringIO())


@pytest.fixture
def secrets(world: World) -> Iterator[Callable[[str, str, str], None]]:
    """Puts a secret, until the test is over."""
    manager, changed = world.client("secretsmanager"), {}

    def put(function: str, variable: str, text: str) -> None:
        arn = world.functions[function].environment[variable]
        changed.setdefault(arn, manager.get_secret_value(SecretId=arn)["SecretString"])
        manager.put_secret_value(SecretId=arn, SecretString=text)

    yield put
    for arn, text in changed.items():
        manager.put_secret_value(SecretId=arn, SecretString=text)


@pytest.fixture
def event(world: World, secrets: Callable[[str, str, str], None]) -> Mapping[str, Any]:
    """The event of a run whose dataset and smoke test hold the canary, as do the bucket's credentials."""
    storage = {"access_key_id": "id", "secret_access_key": STORAGE_KEY}
    secrets("UploadFunction", "STORAGE_SECRET_ARN", json.dumps(storage))
    put(world, "orchard.job.json", json.dumps({"smoke_test": PROMPT, "force": True}).encode())
    return dropped(world, dataset())


def dataset(*further: Any) -> bytes:
    examples = [
        {"messages": [{"role": "user", "content": f"{PROMPT}, time {n}"}, {"role": "assistant", "content": f"{n}"}]}
        for n in range(12)
    ]
    return b"".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in [*further, *examples]
    )


def put(world: World, key: str, body: bytes) -> str:
    return str(world.client("s3").put_object(Bucket=world.bucket, Key=key, Body=body)["ETag"]).strip('"')


def dropped(world: World, body: bytes) -> Mapping[str, Any]:
    event = sample("upload.first")
    return {**event, "etag": put(world, event["key"], body)}


# The fine-tuning service

ECHO = f'Bad request: {{"authorization": "Bearer {PROVIDER_KEY}", "body": "{PROMPT}"}}, key {PROVIDER_KEY}'
UNQUOTED = f"{ECHO}; line 1 reads {PROMPT}"
STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 415, 418, 422, 429, 500, 502, 503, 529)


def answers(said: str) -> list[dict[str, Any]]:
    """Every kind of answer, with these words in it."""
    return [
        *({"status": status, "body": {"error": {"message": said, "code": None, "type": "x"}}} for status in STATUSES),
        *({"status": status, "body": {"error": {"message": "Bad.", "code": said}}} for status in (400, 403, 429)),
        {"status": 422, "body": {"detail": said}},
        {"status": 400, "body": {"error": said}},
        {"status": 403, "body": said},
        {"status": 200, "body": said},
        {"status": 200, "body": {"id": said}},
        {"html": 200},
        {"reset": "before"},
        {"status": 200, "body": f"<html>{said}</html>", "after": True},
        {"reset": "after"},
        {"truncate": 30, "whole_length": True},
        {"truncate": 0},
    ]


def test_a_run_whose_every_call_fails_in_every_way_tells_nothing(
    world: World, sink: Sink, event: Mapping[str, Any]
) -> None:
    runs = (f"{number:032x}" for number in itertools.count())

    def fail(step: str, method: str, path: str, said: str) -> None:
        met = 0
        for answer in answers(said):
            world.fault(method, path, times=99, **answer)
            sink.take(step, {**event, "run_id": next(runs)} if step.startswith("upload") else event)
            (left,) = world.order("GET", "/faults")["faults"]
            met += left["times"] < 99
            world.order("DELETE", "/faults")
            world.forget("limit#")  # which a 429 closes for a while
        assert met >= len(answers(said)) - 3, "a step that has done its work meets no fault any more"

    fail("upload.first", "GET", "/v1/models/*", ECHO)
    fail("upload.first", "GET", "/v1/files$", ECHO)
    fail("upload.first", "POST", "/v1/files$", UNQUOTED)
    assert ends(sink, "upload.first", event, "waiting")
    fail("create_job.first", "GET", "/v1/files/*", ECHO)
    fail("create_job.first", "GET", "/v1/fine_tuning/jobs$", ECHO)
    world.plan("succeeded", duration_seconds=20)
    fail("create_job.first", "POST", "/v1/fine_tuning/jobs$", ECHO)
    assert ends(sink, "create_job.first", event, "training")
    fail("poll_status.first", "GET", "/v1/fine_tuning/jobs/*", ECHO)
    answer = ends(sink, "poll_status.first", event, "succeeded")
    for path in ("/v1/fine_tuning/jobs/*/events", "/v1/fine_tuning/jobs/*/checkpoints", "/v1/files/*/content"):
        world.fault("GET", path, times=1, status=400, body={"error": {"message": UNQUOTED.replace(PROMPT, "…")}})
    world.fault("POST", "/v1/chat/completions", times=9, status=400, body={"error": {"message": UNQUOTED}})
    published = sink.take("collect.after_success", {**event, "answer": answer})

    assert published["run"]["state"] == "succeeded"
    assert sink.failed > 20, "what is raised was looked at, too"
    report = json.loads(world.stored(f"results/{event['run_id']}/report.json"))
    assert PROMPT in report["smoke_test"]["tuned"]["error"], "the canary was on its way"


def ends(sink: Sink, step: str, event: Mapping[str, Any], state: str) -> Any:
    """What the step answers when it reaches the state at last."""
    deadline = time.monotonic() + 20
    while (answer := sink.take(step, event)) is None or answer["state"] != state:
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)
    return answer


@pytest.mark.parametrize(
    "message",
    [
        f'Line 3 is invalid: {{"messages": [{{"content": "{PROMPT}"}}]}}',
        f'Line 3 is invalid: {{"messages": [{{"content": "{PROMPT}',
        f'The example "{PROMPT}" was flagged.',
        f"The example '{PROMPT}' couldn't be read; it isn't valid.",
        f"The examples [{PROMPT!r}] were flagged.",
    ],
)
def test_a_job_that_fails_does_not_quote_its_dataset(
    world: World, sink: Sink, event: Mapping[str, Any], message: str
) -> None:
    assert ends(sink, "upload.first", event, "waiting")
    world.plan("failed", duration_seconds=1, error={"code": "invalid_training_file", "message": message})
    assert ends(sink, "create_job.first", event, "training")
    answer = ends(sink, "poll_status.first", event, "failed")
    published = sink.take("collect.after_failure", {**event, "answer": answer})
    assert published["run"]["error"]["message"].startswith(message[:11])


# AWS and the bucket


def echoing(service: str, operation: str, code: str, status: int) -> Any:
    """That operation fails with a text that quotes all that was sent."""
    make_api_call = BaseClient._make_api_call

    def call(client: Any, name: str, parameters: Any) -> Any:
        if (client.meta.service_model.signing_name, name) != (service, operation):
            return make_api_call(client, name, parameters)
        sent = f"{parameters}, signed with {STORAGE_KEY if service == 's3' else 'a role'}"
        told = {"Error": {"Code": code, "Message": sent}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(told, name)

    return patch.object(BaseClient, "_make_api_call", call)


CODES = [
    *(("AccessDenied", 403), ("AccessDeniedException", 400), ("InternalError", 500), ("InternalServerError", 500)),
    *(("ValidationException", 400), ("SignatureDoesNotMatch", 403), ("InvalidAccessKeyId", 403), ("SlowDown", 503)),
]


@pytest.mark.parametrize(
    ("service", "operation", "step"),
    [
        ("s3", "GetObject", "upload.first"),
        ("s3", "PutObject", "upload.first"),
        ("s3", "PutObject", "collect.after_success"),
        ("secretsmanager", "GetSecretValue", "upload.first"),
        ("secretsmanager", "GetSecretValue", "notify.final_state"),
        ("dynamodb", "PutItem", "upload.first"),
        ("dynamodb", "UpdateItem", "upload.first"),
        ("dynamodb", "GetItem", "create_job.first"),
        ("dynamodb", "UpdateItem", "poll_status.first"),
        ("dynamodb", "UpdateItem", "collect.after_success"),
        ("sqs", "ChangeMessageVisibility", "notify.again"),
    ],
)
def test_an_error_that_quotes_the_request_is_not_quoted(
    world: World, sink: Sink, event: Mapping[str, Any], service: str, operation: str, step: str
) -> None:
    if not step.startswith("upload"):
        ends(sink, "upload.first", event, "waiting")
    if step.startswith(("poll", "collect")):
        world.plan("succeeded", duration_seconds=1)
        ends(sink, "create_job.first", event, "training")
    if step.startswith("collect"):
        event = {**event, "answer": ends(sink, "poll_status.first", event, "succeeded")}
    if step.startswith("notify"):
        event = sample(step)
        event["Records"][0]["receiptHandle"] = world.receive(event["Records"][0]["body"])
        world.receiver.refuse(99)
    before = sink.calls
    for code, status in CODES:
        world.handlers.clear()  # with what they have cached
        with echoing(service, operation, code, status):
            sink.take(step, event)
    assert sink.calls == before + len(CODES)


# Notifications

DESTINATIONS = [
    {"url": f"https://hooks.slack.com/services/T0/B0/{ADDRESS}"},
    {"url": f"https://hooks.example.com/{ADDRESS}", "secret": SAMPLE_SECRET},
    {"url": f"https://user:{ADDRESS}@hooks.example.com/", "secret": SAMPLE_SECRET},
    {"url": f"http://hooks.example.com/{ADDRESS}", "secret": SAMPLE_SECRET},
    {"url": f"https://{ADDRESS}.example.com:99999/", "secret": SAMPLE_SECRET},
    {"url": f"https://hooks.example.com/{ADDRESS}", "secret": None},
]


@pytest.mark.parametrize("status", [302, 307, 400, 404, 500])
def test_a_destination_that_fails_is_not_told(
    world: World, sink: Sink, secrets: Callable[[str, str, str], None], status: int
) -> None:
    here = {"url": f"{world.receiver.url}/{ADDRESS}", "secret": SAMPLE_SECRET}
    gone = {"url": f"http://127.0.0.1:9/{ADDRESS}", "secret": SAMPLE_SECRET}
    secrets("NotifyFunction", "NOTIFICATION_SECRET_ARN", json.dumps([here, gone, *DESTINATIONS]))
    world.receiver.refuse(1, status)
    event = sample("notify.final_state")
    event["Records"][0]["receiptHandle"] = world.receive(event["Records"][0]["body"])
    with patch("tunedrop.posting.socket.getaddrinfo", resolving):
        answer = sink.take("notify.final_state", event)
    assert answer["batchItemFailures"]


def resolving(host: str, port: int, *_: Any, **__: Any) -> Any:
    """Every name is one of a private network: nothing leaves this machine."""
    address = host if host == "127.0.0.1" else "10.0.0.1"
    return [(2, 1, 6, "", (address, port))]


@pytest.mark.parametrize("text", [ADDRESS, f'[{{"url": "https://{ADDRESS}"', f'[{{"address": "https://{ADDRESS}"}}]'])
@pytest.mark.parametrize(
    ("function", "variable", "step"),
    [
        ("NotifyFunction", "NOTIFICATION_SECRET_ARN", "notify.final_state"),
        ("UploadFunction", "STORAGE_SECRET_ARN", "upload.first"),
        ("UploadFunction", "PROVIDER_SECRET_ARN", "upload.first"),
        ("WebhookFunction", "WEBHOOK_SECRET_ARN", "webhook.r2_put"),
        ("CallbackFunction", "CALLBACK_SECRET_ARN", "callback.succeeded"),
    ],
)
def test_a_secret_that_cannot_be_read_is_not_quoted(
    world: World,
    sink: Sink,
    event: Mapping[str, Any],
    secrets: Callable[[str, str, str], None],
    function: str,
    variable: str,
    step: str,
    text: str,
) -> None:
    secrets(function, variable, text)
    given = dict(event) if step.startswith("upload") else sample(step)
    if step.startswith("notify"):
        given["Records"][0]["receiptHandle"] = world.receive(given["Records"][0]["body"])
    sink.take(step, given)


# What is wrong with a dataset


def message(**more: Any) -> dict[str, Any]:
    return {"role": "user", "content": PROMPT, **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [*messages, {"role": "assistant", "content": PROMPT}], **more}


def call(**more: Any) -> dict[str, Any]:
    return {"id": "pelican", "type": "function", "function": {"name": "pelican", "arguments": "{}"}, **more}


BROKEN: dict[str, Any] = {
    "no JSON": f"{PROMPT}\n".encode(),
    "half JSON": f'{{"messages": "{PROMPT}\n'.encode(),
    "a bad escape": f'{{"messages": "{PROMPT} \\x"}}\n'.encode(),
    "a bad number": f'{{"pelican": 1e999, "messages": "{PROMPT}"}}\n'.encode(),
    "no UTF-8": PROMPT.encode() + b"\xff\n",
    "text": json.dumps([PROMPT]).encode() + b"\n",
    "a key": [chat(message()), chat(message(), pelican=1)],
    "a key of an input": {
        "input": {"messages": [message()], "pelican": 1},
        **{name: [{"role": "assistant", "content": "x"}] for name in ("preferred_output", "non_preferred_output")},
    },
    "a key of a message": chat(message(pelican=1)),
    "a role": chat({"role": "pelican", "content": "x"}),
    "a name": chat(message(name={"pelican": 1})),
    "a weight": chat(message(weight="pelican")),
    "a part": chat(message(content=[{"type": "pelican"}])),
    "a key of a part": chat(message(content=[{"type": "text", "text": PROMPT, "pelican": 1}])),
    "an image": chat(message(content=[{"type": "image_url", "image_url": {"url": "pelican:1"}}])),
    "a key of an image": chat(
        message(content=[{"type": "image_url", "image_url": {"url": "https://x", "pelican": 1}}])
    ),
    "a tool": chat(message(), tools=[{"type": "pelican"}]),
    "a key of a tool": chat(message(), tools=[{"type": "function", "function": {"name": "x", "pelican": 1}}]),
    "a tool's name": chat(message(), tools=[{"type": "function", "function": {"name": "a pelican"}}]),
    "a key of a call": chat({"role": "assistant", "tool_calls": [call(pelican=1)]}),
    "a key of a called function": chat(
        {"role": "assistant", "tool_calls": [call(function={"name": "x", "arguments": "{}", "pelican": 1})]}
    ),
    "a call's arguments": chat(
        {"role": "assistant", "tool_calls": [call(function={"name": "x", "arguments": PROMPT})]}
    ),
    "a call's id": chat({"role": "tool", "tool_call_id": "pelican", "content": PROMPT}),
    "an unanswered call": chat({"role": "assistant", "tool_calls": [call()]}, message()),
    "a function call": chat({"role": "assistant", "function_call": {"name": 1, "arguments": "{}", "pelican": 1}}),
    "a prompt": {"prompt": PROMPT, "completion": PROMPT, "pelican": PROMPT},
    "a nest": b"[" * 200 + f'"{PROMPT}"'.encode() + b"]" * 200 + b"\n",
}


@pytest.mark.parametrize("wrong", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_told_by_its_number_alone(world: World, sink: Sink, wrong: Any) -> None:
    event = dropped(world, dataset(*(wrong if isinstance(wrong, list) else [wrong])))
    answer = sink.take("upload.first", event)
    assert answer["state"] == "rejected"
    assert re.search(r"line \d+\b", answer["error"]["message"])
    published = sink.take("collect.after_rejection", {**event, "answer": answer})
    assert published["run"]["error"] == answer["error"]
    report = json.loads(world.stored(f"results/{event['run_id']}/report.json"))
    told = [(found["code"], found["message"]) for found in (*report["errors"], *report["warnings"])]
    assert not CANARY.search(json.dumps(told)), "the report names keys, in their paths, and nothing else"


@pytest.mark.parametrize(
    "specification",
    [
        {"the pelican's own words": 1},
        {"method": {"type": "supervised", "supervised": {"a pelican": 1}}},
        {"smoke_test": [PROMPT]},
        {"smoke_test": PROMPT * 9999},
        {"metadata": {"a pelican": 1}},
        {"suffix": PROMPT * 9},
        {"max_cost_usd": PROMPT},
        {"method": PROMPT},
        {"smoke_test": PROMPT, "max_cost_usd": 1e-9},
        {"smoke_test": PROMPT, "deploy": True},
        {"smoke_test": PROMPT, "provider": "nobody"},
    ],
    ids=lambda specification: " ".join(specification),
)
def test_what_is_wrong_with_a_specification_is_told_without_its_values(
    world: World, sink: Sink, event: Mapping[str, Any], specification: Any
) -> None:
    put(world, "orchard.job.json", json.dumps(specification).encode())
    answer = sink.take("upload.first", event)
    assert answer["state"] in ("rejected", "over_budget")


# The way in


@pytest.mark.parametrize("name", ["webhook.unsigned", "webhook.forged", "webhook.stale", "callback.unsigned"])
@pytest.mark.parametrize("field", ["body", "signature"])
def test_what_is_not_authentic_is_not_quoted(world: World, sink: Sink, name: str, field: str) -> None:
    event = sample(name)
    if field == "body":
        event["body"] = PROMPT
    else:
        event["headers"] |= {"webhook-signature": f"v1,{ADDRESS}", "authorization": f"Bearer {ADDRESS}"}
    assert sink.take(name, event)["statusCode"] == 401


# The sweep itself


def test_a_leak_is_found(world: World, sink: Sink, event: Mapping[str, Any]) -> None:
    """The sweep sees what is logged from anywhere, with its traceback, what is raised and what is kept."""

    def logging_it(*_: Any) -> Any:
        logging.getLogger("another").debug("it failed", exc_info=ValueError(PROMPT))

    def telling_it(*_: Any) -> Any:
        logging.getLogger("tunedrop").info("it failed", extra={"why": PROVIDER_KEY})

    def raising_it(*_: Any) -> Any:
        raise RuntimeError(PROMPT)

    def because_of_it(*_: Any) -> Any:
        raise RuntimeError from ValueError(PROMPT)

    def keeping_it(*_: Any) -> Any:
        world.begin({**event, "key": ADDRESS})

    for leak in (logging_it, telling_it, raising_it, because_of_it, keeping_it):
        with patch.object(world, "handle", leak), pytest.raises(AssertionError, match=r"upload\.first: "):
            Sink(world, io.StringIO()).take("upload.first", event)
