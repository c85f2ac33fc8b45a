import json
import socket
import time

import boto3
import pytest
from botocore.exceptions import ClientError

from local.gateway import Gateway, scale_waits
from tests.local.small_functions import ACCOUNT, REGION, emulate, write_function

ECHO = """
    class Throttled(Exception): pass
    class Rejected(Exception): pass
    attempts = 0

    def handler(event, context):
        global attempts
        attempts += 1
        if event.get("fails", 0) >= attempts: raise Throttled("slow down")
        if "reject" in event: raise Rejected(event["reject"])
        if "append" in event: open(event["append"], "a").write("x")
        return {"attempts": attempts, "event": event}
    """


@pytest.fixture
def gateway():
    with Gateway() as gateway:
        yield gateway


@pytest.fixture
def functions(tmp_path, gateway):
    with emulate(tmp_path, write_function(tmp_path, ECHO), aws_endpoint=gateway.url) as functions:
        yield functions


@pytest.fixture
def stack(gateway, functions):
    yield gateway.serve(functions, time_scale=100)
    scale_waits(1)


def client(gateway, service):
    return boto3.client(
        service,
        endpoint_url=gateway.url,
        region_name=REGION,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


@pytest.mark.parametrize(
    "name",
    ["probe", "probe:live", f"{ACCOUNT}:function:probe", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:probe:live"],
)
def test_invoke_takes_every_form_of_name(stack, name):
    answer = client(stack, "lambda").invoke(FunctionName=name, Payload=b'{"a": 1}', LogType="Tail")

    assert json.load(answer["Payload"]) == {"attempts": 1, "event": {"a": 1}}
    assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
    assert "FunctionError" not in answer
    assert answer["LogResult"]


def test_invoke_without_a_payload_is_an_empty_event(stack):
    assert json.load(client(stack, "lambda").invoke(FunctionName="probe")["Payload"])["event"] == {}


def test_a_failure_of_the_function_is_no_failure_of_the_call(stack):
    answer = client(stack, "lambda").invoke(FunctionName="probe", Payload=b'{"reject": "no"}')

    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    assert json.load(answer["Payload"])["errorType"] == "Rejected"


@pytest.mark.parametrize(
    ("name", "payload", "code"),
    [
        ("nobody", b"{}", "ResourceNotFoundException"),
        ("probe", b"{", "InvalidRequestContentException"),
        ("probe", b'"%s"' % (b"x" * 6_291_456), "RequestTooLargeException"),
    ],
)
def test_what_lambda_refuses_is_refused_by_the_same_name(stack, name, payload, code):
    with pytest.raises(ClientError) as refusal:
        client(stack, "lambda").invoke(FunctionName=name, Payload=payload)

    assert refusal.value.response["Error"]["Code"] == code
    assert refusal.value.response["Error"]["Message"]


def test_an_event_invocation_is_accepted_at_once_and_runs_in_the_background(stack, tmp_path):
    trace = tmp_path / "trace"
    event = json.dumps({"append": str(trace)}).encode()

    answer = client(stack, "lambda").invoke(FunctionName="probe", InvocationType="Event", Payload=event)

    assert answer["StatusCode"] == 202
    end = time.monotonic() + 5
    while not trace.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert trace.read_text() == "x"


def test_everything_else_is_motos(stack):
    s3 = client(stack, "s3")
    s3.create_bucket(Bucket="drops", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="drops", Key="Ä b/c.jsonl", Body=b"{}\n", Metadata={"a_b": "c"})

    assert s3.get_object(Bucket="drops", Key="Ä b/c.jsonl")["Body"].read() == b"{}\n"


def start(gateway, states, event):
    machines = client(gateway, "stepfunctions")
    unique = f"m{time.monotonic_ns()}"
    machine = machines.create_state_machine(
        name=unique,
        definition=json.dumps({"StartAt": next(iter(states)), "States": states}),
        roleArn=f"arn:aws:iam::{ACCOUNT}:role/machine",
    )
    execution = machines.start_execution(
        stateMachineArn=machine["stateMachineArn"], name=unique, input=json.dumps(event)
    )
    return machines, execution["executionArn"]


def finished(machines, arn, *, within=15.0):
    end = time.monotonic() + within
    while (run := machines.describe_execution(executionArn=arn))["status"] == "RUNNING" and time.monotonic() < end:
        time.sleep(0.05)
    return run


def task(retry_seconds, **rest):
    return {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Parameters": {"FunctionName": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:probe", "Payload.$": "$"},
        "OutputPath": "$.Payload",
        "TimeoutSeconds": 10,
        "Retry": [
            {"ErrorEquals": ["Throttled"], "IntervalSeconds": retry_seconds, "MaxAttempts": 3, "BackoffRate": 1},
            {"ErrorEquals": ["Runtime.ExitError", "Sandbox.Timedout"], "IntervalSeconds": 1, "MaxAttempts": 2},
        ],
        "End": True,
        **rest,
    }


def test_a_state_machine_retries_by_name_and_waits_in_scaled_time(stack):
    states = {"Pause": {"Type": "Wait", "Seconds": 40, "Next": "Do"}, "Do": task(retry_seconds=40)}
    begun = time.monotonic()
    machines, arn = start(stack, states, {"fails": 2})

    run = finished(machines, arn)

    assert run["status"] == "SUCCEEDED"
    assert json.loads(run["output"])["attempts"] == 3
    assert 1.2 <= time.monotonic() - begun < 10


def test_an_error_that_is_not_listed_is_not_retried(stack):
    machines, arn = start(stack, {"Do": task(retry_seconds=1)}, {"reject": "ten examples are needed"})

    run = finished(machines, arn)

    assert (run["status"], run["error"]) == ("FAILED", "Rejected")
    assert json.loads(run["cause"])["errorMessage"] == "ten examples are needed"


def test_a_crash_and_a_timeout_are_retried_by_lambdas_names(stack, functions):
    functions.inject("probe", {"fault": "exit"})
    functions.inject("probe", {"fault": "timeout"})
    machines, arn = start(stack, {"Do": task(retry_seconds=1)}, {})

    run = finished(machines, arn)
    history = machines.get_execution_history(executionArn=arn)["events"]

    assert run["status"] == "SUCCEEDED"
    errors = [event["taskFailedEventDetails"]["error"] for event in history if event["type"] == "TaskFailed"]
    assert errors == ["Runtime.ExitError", "Sandbox.Timedout"]


@pytest.mark.parametrize(
    ("states", "event"),
    [
        ({"Pause": {"Type": "Wait", "Seconds": 86400, "End": True}}, {}),
        ({"Do": task(retry_seconds=86400)}, {"fails": 1}),
    ],
)
def test_a_stopped_execution_ends_its_pause_at_once_and_runs_nothing_more(stack, states, event):
    machines, arn = start(stack, states, event)
    end = time.monotonic() + 10
    while not paused(machines, arn) and time.monotonic() < end:
        time.sleep(0.05)
    events_before = len(machines.get_execution_history(executionArn=arn)["events"])

    machines.stop_execution(executionArn=arn, error="Cancelled", cause="by hand")
    run = finished(machines, arn, within=3)
    time.sleep(0.3)
    history = machines.get_execution_history(executionArn=arn)["events"]

    assert run["status"] == "ABORTED"
    assert [event["type"] for event in history[events_before:]] == ["ExecutionAborted"]


def paused(machines, arn):
    events = machines.get_execution_history(executionArn=arn)["events"]
    return any(event["type"] in ("WaitStateEntered", "TaskFailed") for event in events)


def test_the_interpreter_finds_the_gateway_where_localhost_is_ipv6_first(stack, monkeypatch):
    lookup = socket.getaddrinfo

    def ipv6_first(host, port, *rest, **options):
        answers = lookup(host, port, *rest, **options)
        if host != "localhost":
            return answers
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)), *answers]

    monkeypatch.setattr(socket, "getaddrinfo", ipv6_first)
    machines, arn = start(stack, {"Do": task(retry_seconds=1)}, {})

    assert finished(machines, arn)["status"] == "SUCCEEDED"
