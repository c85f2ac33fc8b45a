"""The interpreter that the soak and the crash tests run on, held to moto's: the same way, the same end."""

import json
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from local.functions import Invocation
from local.gateway import Gateway, scale_waits
from tests.world.cloud import integrated
from tests.world.machine import DEFINITION, Machine, TaskFailed
from tests.world.table import Table
from tests.world.timers import Clock, Timers

REGION, ACCOUNT = "us-east-1", "123456789012"
RUN = "f" * 32
INPUT = {"run_id": RUN, "bucket": "datasets", "key": "a.jsonl", "etag": "e1", "size": 10}
DIED = TaskFailed("Runtime.ExitError", "it died")
UNFORESEEN = TaskFailed("KeyError", "unforeseen")

UPLOADED, CREATED = {"run_id": RUN, "state": "waiting"}, {"run_id": RUN, "state": "training"}
SUCCEEDED = {"run_id": RUN, "state": "succeeded", "fine_tuned_model": "ft:m"}
REJECTED = {"run_id": RUN, "state": "rejected", "error": {"code": "too_few", "message": "too few"}}
NOTICE = {"kind": "delayed", "subject": "Delayed", "message": {"default": "{}", "email": "Delayed"}}


def wait(state, seconds=60, **more):
    return {"run_id": RUN, "state": state, "wait_seconds": seconds, **more}


def collected(state):
    return {
        "run": {"run_id": RUN, "state": state},
        "subject": f"It {state}",
        "cause": "as it was",
        "message": {"default": json.dumps({"state": state}), "email": state},
    }


@dataclass
class Path:
    """What the functions answer, call by call; ``item`` is what the ledger holds of the run before."""

    upload: list = field(default_factory=lambda: [UPLOADED])
    create_job: list = field(default_factory=lambda: [CREATED])
    poll_status: list = field(default_factory=lambda: [SUCCEEDED])
    collect: list = field(default_factory=lambda: [collected("succeeded")])
    item: dict = field(default_factory=dict)
    woken: bool = False


PATHS = {
    "success": Path(),
    "waits": Path(
        upload=[wait("uploading"), wait("uploading"), UPLOADED],
        create_job=[wait("waiting"), CREATED],
        poll_status=[wait("training"), wait("training", notice=NOTICE), SUCCEEDED],
    ),
    "called back before the wait": Path(
        poll_status=[wait("training", 36_000), SUCCEEDED], item={"called_back": {"BOOL": True}}
    ),
    "woken": Path(poll_status=[wait("training", 360_000), SUCCEEDED], woken=True),
    "deaths that are repeated": Path(
        upload=[DIED, DIED, DIED, DIED, UPLOADED],
        create_job=[TaskFailed("Lambda.TooManyRequestsException"), DIED, TaskFailed("Transient"), CREATED],
    ),
    "one death too many": Path(upload=[DIED] * 5, collect=[collected("failed")]),
    "an error that nobody foresaw": Path(create_job=[UNFORESEEN], collect=[collected("failed")]),
    "rejected": Path(upload=[REJECTED], collect=[collected("rejected")]),
    "a model without its results": Path(collect=[UNFORESEEN]),
    "a verdict without its results": Path(upload=[REJECTED], collect=[TaskFailed("Throttled"), UNFORESEEN]),
    "a failure without its results": Path(upload=[UNFORESEEN], collect=[UNFORESEEN]),
    "without its results, and final already": Path(
        collect=[UNFORESEEN], item={"finished_at": {"S": "then"}, "state": {"S": "failed"}}
    ),
}


@dataclass
class Seen:
    """What can be told from outside. Times are left out: the two do not run on one clock."""

    states: list
    status: str
    error: str | None
    cause: str | None
    messages: list
    item: dict


@pytest.fixture(scope="module")
def moto():
    with Gateway() as gateway:
        functions = Scripted()
        gateway.serve(functions, time_scale=3600)
        yield Moto(gateway.url, functions)
        scale_waits(1)


class Scripted:
    """Stands for Lambda: every function answers what its path says."""

    region, account = REGION, ACCOUNT

    def __init__(self):
        self.script = {}

    def function(self, name):
        return name

    def invoke(self, name, payload):
        answer = self.script[name.rpartition(":")[2]].popleft()
        if isinstance(answer, TaskFailed):
            told = {"errorType": answer.error, "errorMessage": answer.cause}
            return Invocation("id", json.dumps(told).encode(), "Unhandled", b"")
        return Invocation("id", json.dumps(answer).encode(), None, b"")


class Moto:
    def __init__(self, url, functions):
        self.functions = functions
        self.clients = {
            service: boto3.client(
                service, endpoint_url=url, region_name=REGION, aws_access_key_id="t", aws_secret_access_key="t"
            )
            for service in ("dynamodb", "sns", "sqs", "stepfunctions")
        }
        self.clients["dynamodb"].create_table(
            TableName="ledger",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        )
        topic = self.clients["sns"].create_topic(Name="topic")["TopicArn"]
        self.queue = self.clients["sqs"].create_queue(QueueName="queue")["QueueUrl"]
        arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:queue"
        raw = {"RawMessageDelivery": "true"}
        self.clients["sns"].subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=raw)
        text = DEFINITION.read_text().replace("${LedgerTable}", "ledger").replace("${FinalStatesTopicArn}", topic)
        for folder in ("upload", "create_job", "poll_status", "collect"):
            name = "".join(word.capitalize() for word in folder.split("_"))
            arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{folder}"
            text = text.replace(f"${{{name}FunctionArn}}", arn)
        self.machine = self.clients["stepfunctions"].create_state_machine(
            name="finetune",
            definition=json.dumps(yaml.safe_load(text)),
            roleArn=f"arn:aws:iam::{ACCOUNT}:role/machine",
        )["stateMachineArn"]

    def run(self, path, name):
        self.functions.script = scripted(path)
        dynamodb, machines = self.clients["dynamodb"], self.clients["stepfunctions"]
        dynamodb.put_item(TableName="ledger", Item={"id": {"S": f"run#{RUN}"}, **path.item})
        arn = machines.start_execution(stateMachineArn=self.machine, name=name, input=json.dumps(INPUT))["executionArn"]
        until = time.monotonic() + 30
        while (ended := machines.describe_execution(executionArn=arn))["status"] == "RUNNING":
            assert time.monotonic() < until
            token = self.item().get("wake_token")
            if path.woken and token:
                with suppress(ClientError):  # it was woken the last time round
                    machines.send_task_success(taskToken=token["S"], output="{}")
            time.sleep(0.02)
        history = machines.get_execution_history(executionArn=arn, maxResults=1000)["events"]
        entered = [event["stateEnteredEventDetails"]["name"] for event in history if event["type"].endswith("Entered")]
        messages = []
        while found := self.clients["sqs"].receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            for message in found:
                messages.append(json.loads(message["Body"]))
                self.clients["sqs"].delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return Seen(entered, ended["status"], ended.get("error"), ended.get("cause"), messages, self.item())

    def item(self):
        return self.clients["dynamodb"].get_item(TableName="ledger", Key={"id": {"S": f"run#{RUN}"}})["Item"]


def in_process(path, seed=0):
    """The same on our interpreter, as fast as it goes."""
    script, table, messages = scripted(path), Table(), []
    table.put_item(Item={"id": {"S": f"run#{RUN}"}, **path.item})
    timers = Timers(Clock())

    def call(resource, given, reply):
        if resource.startswith("arn:"):
            reply(
                integrated(resource, given, table=table, publish=lambda message: messages.append(json.loads(message)))
            )
        else:
            reply(script[resource].popleft())
        token = table.items[f"run#{RUN}"].get("wake_token")
        if path.woken and token:
            timers.after(1, lambda: machine.succeed_task(token["S"], {}))

    machine = Machine(call, timers, random.Random(seed))
    machine.start(RUN, INPUT)
    execution = machine.executions[RUN]
    while execution.status == "RUNNING":
        timers.clock.at = timers.next_due()
        timers.run_next(timers.clock.at)
    item = table.items[f"run#{RUN}"]
    return Seen(execution.states, execution.status, execution.error, execution.cause, messages, item)


def scripted(path):
    return {name: deque(getattr(path, name)) for name in ("upload", "create_job", "poll_status", "collect")}


def comparable(seen):
    times = ("created_at", "updated_at", "finished_at")
    for message in seen.messages:
        for name in times:
            message.pop(name, None)
    for name in (*times, "wake_token"):
        if name in seen.item:
            seen.item[name] = "some"
    return seen


@pytest.mark.parametrize("name", PATHS)
def test_it_goes_the_way_that_moto_goes(moto, name):
    theirs = comparable(moto.run(PATHS[name], name.replace(" ", "-").replace(",", "")))
    assert comparable(in_process(PATHS[name])) == theirs


def test_the_paths_together_enter_every_state():
    entered = {state for path in PATHS.values() for state in in_process(path).states}
    states = set(yaml.safe_load(DEFINITION.read_text())["States"])
    # Moto's DynamoDB and SNS do not fail on order; the soak's do.
    assert states - entered == {"Wait without a callback", "Not published"}


def test_what_it_does_not_know_it_refuses():
    definition = {"StartAt": "A", "States": {"A": {"Type": "Pass", "QueryLanguage": "JSONata", "Next": "A"}}}
    with pytest.raises(NotImplementedError, match="QueryLanguage"):
        Machine(lambda *_: None, Timers(Clock()), random.Random(0), definition)
