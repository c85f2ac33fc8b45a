import json
import time

import boto3
import pytest

from local.functions import Invocation
from local.gateway import Gateway
from local.queues import EventSourceMapping, Poller, failures
from tests.local.small_functions import ACCOUNT, REGION, emulate, write_function

KEEP = """
    import json, os

    def handler(event, context):
        failed = []
        for record in event["Records"]:
            with open(os.environ["TRACE"], "a") as trace:
                trace.write(json.dumps(record) + "\\n")
            if record["body"] == "raise":
                raise LookupError("cannot")
            if record["body"] == "fail":
                failed.append({"itemIdentifier": record["messageId"]})
        return {"batchItemFailures": failed}
    """


@pytest.fixture
def stack(tmp_path):
    gateway = Gateway()
    function = write_function(tmp_path, KEEP, name="keep", environment={"TRACE": str(tmp_path / "trace")})
    with emulate(tmp_path, function, aws_endpoint=gateway.url) as functions, gateway.serve(functions):
        yield gateway, functions


@pytest.fixture
def sqs(stack):
    gateway, _ = stack
    return boto3.client(
        "sqs",
        endpoint_url=gateway.url,
        region_name=REGION,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


def make_queue(sqs, **attributes):
    name = f"q{time.monotonic_ns()}"
    return sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "1"} | attributes)["QueueUrl"]


def poll(stack, queue, **settings):
    gateway, functions = stack
    return Poller(EventSourceMapping(queue, "keep", **settings), functions, gateway.url)


def records(tmp_path):
    trace = tmp_path / "trace"
    return [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []


def eventually(condition, *, within=8):
    end = time.monotonic() + within
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def left(sqs, queue):
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    counts = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    return sum(int(counts[name]) for name in names)


def test_a_message_reaches_the_function_as_lambda_sends_it_and_is_deleted(stack, sqs, tmp_path):
    queue = make_queue(sqs)
    attributes = {
        "kind": {"DataType": "String", "StringValue": "final"},
        "raw": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    sent = sqs.send_message(QueueUrl=queue, MessageBody="hello", MessageAttributes=attributes)

    with poll(stack, queue):
        assert eventually(lambda: records(tmp_path) and left(sqs, queue) == 0)

    (record,) = records(tmp_path)
    assert (record["messageId"], record["body"], record["md5OfBody"]) == (
        sent["MessageId"],
        "hello",
        sent["MD5OfMessageBody"],
    )
    assert record["receiptHandle"]
    assert (record["eventSource"], record["awsRegion"]) == ("aws:sqs", REGION)
    assert record["eventSourceARN"] == f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue.rsplit('/', 1)[1]}"
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert record["attributes"]["SentTimestamp"].isdigit()
    assert record["messageAttributes"]["kind"]["stringValue"] == "final"
    assert record["messageAttributes"]["raw"]["binaryValue"] == "AP8="


def test_a_message_that_fails_comes_back_until_the_queue_moves_it_to_its_dead_letters(stack, sqs, tmp_path):
    dead = make_queue(sqs)
    target = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{dead.rsplit('/', 1)[1]}"
    policy = json.dumps({"deadLetterTargetArn": target, "maxReceiveCount": 2})
    queue = make_queue(sqs, RedrivePolicy=policy)
    sqs.send_message(QueueUrl=queue, MessageBody="raise")

    with poll(stack, queue):
        assert eventually(lambda: left(sqs, dead) == 1)

    assert left(sqs, queue) == 0
    assert [record["attributes"]["ApproximateReceiveCount"] for record in records(tmp_path)] == ["1", "2"]
    assert sqs.receive_message(QueueUrl=dead)["Messages"][0]["Body"] == "raise"


def test_of_a_batch_only_what_is_reported_comes_back(stack, sqs, tmp_path):
    queue = make_queue(sqs, VisibilityTimeout="60")
    bodies = ["a", "fail", "b"]
    sqs.send_message_batch(QueueUrl=queue, Entries=[{"Id": body, "MessageBody": body} for body in bodies])

    with poll(stack, queue, report_failures=True):
        assert eventually(lambda: len(records(tmp_path)) == 3 and left(sqs, queue) == 1)


def test_closing_is_prompt(stack, sqs):
    poller = poll(stack, make_queue(sqs))
    time.sleep(0.2)
    begun = time.monotonic()

    poller.close()

    assert time.monotonic() - begun < 2.5


@pytest.mark.parametrize(
    ("answer", "error", "partial", "failed"),
    [
        (None, None, True, set()),
        ({}, None, True, set()),
        ({"batchItemFailures": None}, None, True, set()),
        ({"batchItemFailures": []}, None, True, set()),
        ({"batchItemFailures": [{"itemIdentifier": "1"}]}, None, True, {"1"}),
        ({"batchItemFailures": [{"itemIdentifier": "1"}]}, None, False, set()),
        ({"batchItemFailures": [{"itemIdentifier": "3"}]}, None, True, {"1", "2"}),
        ({"batchItemFailures": [{"itemIdentifier": ""}]}, None, True, {"1", "2"}),
        ({"batchItemFailures": [{"id": "1"}]}, None, True, {"1", "2"}),
        ({"batchItemFailures": "1"}, None, True, {"1", "2"}),
        ({}, "Unhandled", True, {"1", "2"}),
    ],
)
def test_what_counts_as_failed(answer, error, partial, failed):
    invocation = Invocation("id", json.dumps(answer).encode(), error, b"")

    assert failures(invocation, ["1", "2"], partial=partial) == failed
