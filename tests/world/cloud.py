"""What survives when a function dies: stores, state machine, topic, queue, fine-tuning service, whoever posts to us.

Everything happens on the timers of one thread. Functions are invoked through ``invoke``, and reach what is here through
:meth:`Cloud.call`, which is what lies behind an SDK's client.
"""

import base64
import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError
from tunedrop import signatures
from tunedrop.provider import ProviderJob
from tunedrop.runs import FINAL

from tests.world.edges import AFTER, BEFORE, Cross, Crossing
from tests.world.machine import Machine, Reply, TaskFailed
from tests.world.service import ENDED, Service
from tests.world.store import Store
from tests.world.table import Table
from tests.world.timers import Clock, Timers

BUCKET = "datasets"
CANARY_PROMPT = "What does the canary sing at dawn?"
CANARY_KEY = "sk-canary-0f2b7c"
CANARY_SECRET = "whsec_" + base64.b64encode(b"the secret of the canary").decode()
FORGER_SECRET = "whsec_" + base64.b64encode(b"somebody else's secret").decode()
CANARY_ACCESS = "canary-access-3d91"
CANARIES = (CANARY_PROMPT, CANARY_KEY, CANARY_SECRET, CANARY_ACCESS)
PUSHED_AGAIN_SECONDS = 60.0  # a sender's pause before it repeats what was not accepted
MOST_RECEPTIONS = 27  # template.yaml

Invoke = Callable[[str, Any, Reply], None]


class Cloud:
    """Everything but the functions. ``cross`` is told of what the state machine itself asks of other services."""

    def __init__(self, seed: int, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.chance = random.Random(seed)
        self.timers = Timers(self.clock)
        self.table = Table()
        self.store = Store(CANARY_ACCESS, self.clock.now)
        self.service = Service(self.timers, self.chance, CANARY_KEY)
        self.service.ended = self._call_back
        self.machine = Machine(self._carry_out, self.timers, self.chance)
        self.queue = _Queue(self)
        self.invoke: Invoke = _nobody
        self.cross: Cross = lambda crossing: None
        self.leaks: Counter[str] = Counter()
        self.accepted: dict[str, str] = {}  # keys of objects by the run that was promised for them
        self.told: dict[str, list[str]] = defaultdict(list)  # states published, by run
        self.received: dict[str, Counter[str]] = defaultdict(Counter)  # ids of notifications, by run and state
        self.callbacks = 1
        self.forgeries = 0
        self.calls = 0
        self.secrets = {
            "webhook": CANARY_SECRET,
            "storage": json.dumps({"access_key_id": CANARY_ACCESS, "secret_access_key": CANARY_SECRET}),
            "provider": CANARY_KEY,
            "callback": json.dumps({"openai": CANARY_SECRET}),
            "notification": json.dumps([{"url": "https://hooks.example/us", "secret": CANARY_SECRET}]),
        }
        self._services = {
            "dynamodb": self.table,
            "s3": self.store,
            "sqs": self.queue,
            "stepfunctions": _StepFunctions(self.machine),
            "secretsmanager": _Secrets(self.secrets),
            "receiver": _Receiver(self),
        }

    def call(self, service: str, operation: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """What lies behind a client's edge."""
        self.calls += 1
        if service == "provider":
            self.service.authenticate(named["key"])
            named = {name: value for name, value in named.items() if name != "key"}
            return getattr(self.service, operation)(*arguments, **named)
        if operation in ("put_item", "update_item"):
            self.listen("ledger", named)
        return getattr(self._services[service], operation)(*arguments, **named)

    def listen(self, where: str, said: Any) -> None:
        """Notes a canary in what is said there."""
        text = said if isinstance(said, str) else json.dumps(said, default=str)
        for canary in CANARIES:
            if canary in text:
                self.leaks[where] += 1

    # The bucket and its events

    def drop(self, key: str, body: bytes, times: int = 3, within: float = 60.0) -> None:
        """Puts an object, which is told of so many times, in no order."""
        etag = self.store.put(key, body)
        self.tell("PutObject", key, times, within, size=len(body), eTag=etag)

    def delete(self, key: str, times: int = 3, within: float = 60.0) -> None:
        self.store.objects.pop(key, None)
        self.tell("DeleteObject", key, times, within)

    def tell(self, action: str, key: str, times: int, within: float, **facts: Any) -> None:
        at = datetime.fromtimestamp(self.clock.now(), UTC).isoformat().replace("+00:00", "Z")
        message = {"account": "a", "action": action, "bucket": BUCKET, "object": {"key": key, **facts}, "eventTime": at}
        for _ in range(times):
            self.timers.after(self.chance.uniform(0, within), lambda: self.push("webhook", message))

    def push(self, function: str, message: Any, secret: str = CANARY_SECRET, times_left: int = 100) -> None:
        """Posts a message to a function until it takes it or refuses it for good."""
        body = json.dumps(message)
        signed = signatures.sign(secret, f"msg_{self.chance.getrandbits(64):x}", time.time(), body)
        request = {"headers": signed, "body": body, "requestContext": {"http": {"method": "POST"}}}

        def take(answer: Any) -> None:
            self.listen("answer", answer.cause if isinstance(answer, TaskFailed) else answer)
            status = 500 if isinstance(answer, TaskFailed) else answer["statusCode"]
            if status >= 500 and times_left:
                again = lambda: self.push(function, message, secret, times_left - 1)  # noqa: E731
                self.timers.after(PUSHED_AGAIN_SECONDS * self.chance.uniform(0.5, 1.5), again)
            if status == 202 and function == "webhook":
                taken = json.loads(answer["body"])["accepted"]
                self.accepted |= {accepted["run_id"]: accepted["key"] for accepted in taken}

        self.invoke(function, {**request, "pathParameters": {"provider": "openai"}}, take)

    def _call_back(self, job: ProviderJob) -> None:
        event = {"type": f"fine_tuning.job.{job.status}", "data": {"id": job.id}}
        for _ in range(self.callbacks):
            self.timers.after(self.chance.uniform(0, 30), lambda: self.push("callback", event))
        for _ in range(self.forgeries):
            self.timers.after(self.chance.uniform(0, 30), lambda: self.push("callback", event, secret=FORGER_SECRET))

    def rotate(self) -> None:
        """Puts new credentials for the bucket and the fine-tuning service in the place of those that hold."""
        self.service.key = self.secrets["provider"] = f"{CANARY_KEY}-{self.chance.getrandbits(32):x}"
        self.store.access_key = f"{CANARY_ACCESS}-{self.chance.getrandbits(32):x}"
        keys = {"access_key_id": self.store.access_key, "secret_access_key": CANARY_SECRET}
        self.secrets["storage"] = json.dumps(keys)

    # What the state machine asks

    def _carry_out(self, resource: str, given: Any, reply: Reply) -> None:
        self.listen("history", given)

        def take(answer: Any) -> None:
            self.listen("history", answer.cause if isinstance(answer, TaskFailed) else answer)
            reply(answer)

        if resource.startswith("arn:"):
            self.timers.after(0, lambda: take(self._ask(resource, given)))
        else:
            self.invoke(resource, given, take)

    def _ask(self, resource: str, given: Mapping[str, Any]) -> Any:
        service = "sns" if ":sns:" in resource else "dynamodb"
        operation = resource.rpartition(":")[2]
        try:
            self.cross(Crossing(service, operation, BEFORE))
            answer = integrated(resource, given, table=self.table, publish=self._publish)
            self.cross(Crossing(service, operation, AFTER))
        except ClientError as error:
            return failed(resource, error.response["Error"]["Code"])
        except Exception:  # noqa: BLE001 - whatever else a client raises is called one thing
            return failed(resource, "SdkClientException")
        return answer

    def _publish(self, message: str) -> None:
        self.listen("message", message)
        run = json.loads(message)
        if not run.get("notice"):
            self.told[run["run_id"]].append(run["state"])
        self.queue.send(message)

    # What must hold

    def is_quiet(self) -> bool:
        """Whether every execution has ended and every message was delivered."""
        return not self.queue.under_way and all(e.status != "RUNNING" for e in self.machine.executions.values())

    def problems(self) -> list[str]:
        """What does not hold of the runs that were promised, once all is quiet."""
        found = [f"{run_id}: nothing came of it" for run_id in self.accepted.keys() - self.machine.executions.keys()]
        for run_id, execution in self.machine.executions.items():
            item = self.table.items.get(f"run#{run_id}", {})
            state = item.get("state", {}).get("S")
            if execution.status == "RUNNING":
                found.append(f"{run_id}: still in {execution.states[-1]}")
            elif state not in FINAL:
                found.append(f"{run_id}: ended as {state}")
            elif set(self.told[run_id]) != {state}:
                found.append(f"{run_id}: ended as {state}, published as {self.told[run_id]}")
            elif {(f"msg_{run_id}", f"run.{state}")} != set(self.received[run_id]):
                found.append(f"{run_id}: ended as {state}, delivered as {dict(self.received[run_id])}")
        found += [f"{name}: paid {times} times" for name, times in self.service.paid().items() if times > 1]
        found += [f"{job.id}: left {job.status}" for job in self.service.jobs.values() if job.status not in ENDED]
        found += [f"{where}: a canary leaked" for where in self.leaks]
        return found


def integrated(resource: str, given: Mapping[str, Any], *, table: Table, publish: Callable[[str], None]) -> Any:
    """What a task answers that calls a service and no function, or the TaskFailed that it ends in."""
    if resource == "arn:aws:states:::sns:publish":
        publish(given["Message"]["default"])
        return {"MessageId": "1"}
    try:
        return table.update_item(**given)
    except ClientError as error:
        return failed(resource, error.response["Error"]["Code"])


def failed(resource: str, code: str) -> TaskFailed:
    """A service's refusal as Step Functions names it; each kind of integration spells DynamoDB in its own way."""
    prefix = "SNS" if ":sns:" in resource else "DynamoDb" if "aws-sdk" in resource else "DynamoDB"
    return TaskFailed(f"{prefix}.{code}" if code.endswith("Exception") else f"{prefix}.{code}Exception", code)


def _nobody(function: str, event: Any, reply: Reply) -> None:
    raise NotImplementedError("nobody carries functions out yet")


class _StepFunctions:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def start_execution(self, *, stateMachineArn: str, name: str, input: str) -> dict[str, Any]:
        if not self._machine.start(name, json.loads(input)):
            raise ClientError({"Error": {"Code": "ExecutionAlreadyExists"}}, "StartExecution")
        return {}

    def send_task_success(self, *, taskToken: str, output: str) -> dict[str, Any]:
        if not self._machine.succeed_task(taskToken, json.loads(output)):
            raise ClientError({"Error": {"Code": "TaskTimedOut"}}, "SendTaskSuccess")
        return {}


class _Secrets:
    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def get_secret_value(self, *, SecretId: str) -> dict[str, Any]:
        return {"SecretString": self._values[SecretId]}


class _Receiver:
    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def post(self, url: str, headers: Mapping[str, str], body: str) -> None:
        self._cloud.listen("notification", body)
        self._cloud.listen("notification", dict(headers))
        signatures.verify((CANARY_SECRET,), headers, body.encode())
        message = json.loads(body)
        if message["data"]["finished_at"]:
            self._cloud.received[message["data"]["run_id"]][headers["webhook-id"], message["type"]] += 1


@dataclass
class _Message:
    body: str
    handle: str
    receptions: int = 0
    visible_after: float = 360.0  # seconds, template.yaml


class _Queue:
    """The queue of notifications, and Lambda's polling of it."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._numbers = itertools.count()
        self.under_way: dict[str, _Message] = {}
        self.dead: list[str] = []

    def send(self, body: str) -> None:
        message = _Message(body, str(next(self._numbers)))
        self.under_way[message.handle] = message
        self._cloud.timers.after(0, lambda: self._deliver(message))

    def change_message_visibility(self, *, QueueUrl: str, ReceiptHandle: str, VisibilityTimeout: int) -> dict[str, Any]:
        if message := self.under_way.get(ReceiptHandle):
            message.visible_after = VisibilityTimeout
        return {}

    def _deliver(self, message: _Message) -> None:
        if message.receptions >= MOST_RECEPTIONS:
            self.dead.append(self.under_way.pop(message.handle).body)
            return
        message.receptions += 1
        message.visible_after = _Message.visible_after
        record = {
            "messageId": message.handle,
            "receiptHandle": message.handle,
            "body": message.body,
            "attributes": {"ApproximateReceiveCount": str(message.receptions)},
        }

        def take(answer: Any) -> None:
            if not isinstance(answer, TaskFailed) and not answer["batchItemFailures"]:
                del self.under_way[message.handle]
                return
            self._cloud.timers.after(message.visible_after, lambda: self._deliver(message))

        self._cloud.invoke("notify", {"Records": [record]}, take)
