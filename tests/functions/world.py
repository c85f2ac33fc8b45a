"""What surrounds a function in these tests: the real template's resources on an emulated AWS, a bucket, the emulated
fine-tuning service and a webhook receiver. The handlers and adapters are the real ones."""

import base64
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import urllib3
from botocore.client import BaseClient
from tunedrop import secret_store
from tunedrop.runs import Run, RunRequest
from tunedrop.sweep_ledger import DynamoSweepLedger

from local import deploy
from local.functions import Function
from local.gateway import Server
from local.provider.client import ProviderProcess
from local.receiver import Receiver
from local.workers_ai import WorkersAiService
from tests.unit.fakes import FakeContext

EVENTS = deploy.ROOT / "events"
EXAMPLES = EVENTS / "examples"
FUNCTIONS = sorted(handler.parent.name for handler in (deploy.ROOT / "functions").glob("*/handler.py"))

SAMPLE_SECRET = "whsec_" + base64.b64encode(b"sample secret of the sample events").decode()
PROVIDER_KEY = "sk-of-these-tests"
WORKERS_AI_ACCOUNT, WORKERS_AI_TOKEN = "0123456789abcdef", "a-token-of-these-tests"
TIME_SCALE = 2000.0  # of the fine-tuning service alone: the runs' own clock is the real one

Handler = Callable[[Mapping[str, Any]], Any]


def sample(name: str) -> Any:
    """A sample event, by its file's name without the ending."""
    return json.loads((EVENTS / f"{name}.json").read_text())


def resource(folder: str) -> str:
    """The logical id of a function's resource."""
    return "".join(word.capitalize() for word in folder.split("_")) + "Function"


@dataclass
class World:
    """Everything around the functions; `provider_control` scripts the fine-tuning service."""

    aws: str
    bucket: str
    functions: Mapping[str, Function]
    outputs: Mapping[str, str]
    provider: str
    provider_control: str
    receiver: Receiver
    workers_ai: WorkersAiService
    clients: dict[str, Any] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    handled: set[str] = field(default_factory=set)
    ahead: float = 0.0
    """Seconds by which the runs' clock is ahead of the real one."""
    calls: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The actions of IAM that each function has needed so far, by its folder."""

    def client(self, service: str) -> Any:
        if service not in self.clients:
            self.clients[service] = deploy.client(service, self.aws)
        return self.clients[service]

    def environment(self, folder: str) -> dict[str, str]:
        """What the function of this folder finds in its environment."""
        return {
            **self.functions[resource(folder)].environment,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": deploy.REGION,
            "AWS_REGION": deploy.REGION,
            "AWS_ENDPOINT_URL": self.aws,
        }

    def load(self, folder: str) -> Handler:
        """The function's handler, imported anew: it makes its parts from the environment that holds now."""
        path = deploy.ROOT / "functions" / folder / "handler.py"
        spec = importlib.util.spec_from_file_location(f"handler_of_{folder}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return lambda event: module.handler(event, FakeContext(resource(folder)))

    def handle(
        self, name: str, event: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> Any:
        """Has a sample event, or another in its place, handled by the function that it is named for.

        With an `environment` of its own the function is imported anew.
        """
        folder = name.partition(".")[0]
        with patch.dict(os.environ, self.environment(folder) | dict(environment or {}), clear=True):
            if environment or folder not in self.handlers:
                self.handlers[folder] = self.load(folder)
            clock = SimpleNamespace(time=lambda: time.time() + self.ahead)
            with (
                patch("tunedrop.clock.time", clock),
                patch.object(BaseClient, "_make_api_call", self._noting_calls(folder)),
            ):
                answer = self.handlers[folder](sample(name) if event is None else event)
        self.handled.add(name)
        return json.loads(json.dumps(answer))  # as Lambda would hand it on

    def _noting_calls(self, folder: str) -> Callable[..., Any]:
        make_api_call = BaseClient._make_api_call

        def noting(client: Any, operation: str, parameters: Any) -> Any:
            service = client.meta.service_model.signing_name
            if service != "s3":  # the bucket is no affair of IAM's: it has credentials of its own
                self.calls[folder].add(f"{service}:{operation}")
            return make_api_call(client, operation, parameters)

        return noting

    # the bucket

    def drop(self, example: str, key: str = "") -> None:
        body = (EXAMPLES / example).read_bytes()
        self.client("s3").put_object(Bucket=self.bucket, Key=key or example, Body=body)

    def stored_keys(self) -> set[str]:
        listed = self.client("s3").list_objects_v2(Bucket=self.bucket)
        return {found["Key"] for found in listed.get("Contents", [])}

    def stored(self, key: str) -> bytes:
        return bytes(self.client("s3").get_object(Bucket=self.bucket, Key=key)["Body"].read())

    # the ledger

    @property
    def ledger(self) -> DynamoSweepLedger:
        return DynamoSweepLedger(self.client("dynamodb"), self.outputs["LedgerTable"])

    def begin(self, event: Mapping[str, Any]) -> None:
        self.ledger.begin(Run.of(RunRequest.from_input(event)))

    def run(self, event: Mapping[str, Any]) -> Run:
        return self.ledger.get(event["run_id"])

    # Step Functions

    def executions(self, *machines: str) -> dict[str, Any]:
        """The inputs of all executions of these state machines, or of all, by name."""
        stepfunctions = self.client("stepfunctions")
        found = {}
        for machine in machines or ("StateMachineArn", "AdapterStateMachineArn"):
            listed = stepfunctions.list_executions(stateMachineArn=self.outputs[machine])["executions"]
            for execution in listed:
                described = stepfunctions.describe_execution(executionArn=execution["executionArn"])
                found[execution["name"]] = json.loads(described["input"])
        return found

    def abort(self, run_id: str, output: str = "StateMachineArn") -> None:
        """Starts a run's execution, as the webhook does, and ends it, as somebody in the console does."""
        machine, stepfunctions = self.outputs[output], self.client("stepfunctions")
        with suppress(stepfunctions.exceptions.ExecutionAlreadyExists):
            stepfunctions.start_execution(stateMachineArn=machine, name=run_id, input=json.dumps({"run_id": run_id}))
        arn = machine.replace(":stateMachine:", ":execution:")
        stepfunctions.stop_execution(executionArn=f"{arn}:{run_id}")

    # the queue of notifications

    def receive(self, body: str) -> str:
        """Puts a message into the queue and receives it; its receipt handle."""
        sqs, queue = self.client("sqs"), self.functions["NotifyFunction"].environment["NOTIFY_QUEUE_URL"]
        sqs.send_message(QueueUrl=queue, MessageBody=body)
        return str(sqs.receive_message(QueueUrl=queue, VisibilityTimeout=600)["Messages"][0]["ReceiptHandle"])

    def published(self) -> list[Any]:
        """Takes what was published out of the queue."""
        sqs, queue = self.client("sqs"), self.functions["NotifyFunction"].environment["NOTIFY_QUEUE_URL"]
        found = []
        while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
                found.append(json.loads(message["Body"]))
        return found

    # the fine-tuning service

    def order(self, method: str, path: str, body: Any = None) -> Any:
        """Speaks to the service's control interface."""
        return urllib3.request(method, self.provider_control + path, json=body).json()

    def fault(self, method: str, path: str, times: int = 1, **fault: Any) -> None:
        self.order("POST", "/faults", {"method": method, "path": path, "times": times, "fault": fault})

    def plan(self, outcome: str, **more: Any) -> None:
        """Decides what becomes of the next job."""
        self.order("POST", "/jobs/next", {"outcome": outcome, **more})

    def jobs_on(self, file_id: str | None) -> list[Any]:
        return [job for job in self.order("GET", "/ledger")["jobs"] if job["training_file"] == file_id]

    def files(self) -> list[Any]:
        """The files that the service holds."""
        headers = {"authorization": f"Bearer {PROVIDER_KEY}"}
        return list(urllib3.request("GET", f"{self.provider}/files", headers=headers).json()["data"])

    def forget(self, prefix: str) -> None:
        """Deletes the ledger's items whose ids begin with `prefix`."""
        table, dynamodb = self.outputs["LedgerTable"], self.client("dynamodb")
        for item in dynamodb.scan(TableName=table)["Items"]:
            if item["id"]["S"].startswith(prefix):
                dynamodb.delete_item(TableName=table, Key={"id": item["id"]})

    def clean(self) -> None:
        """Forgets what a test has left; executions stay, as their names do at AWS."""
        self.ahead = 0.0
        self.handlers.clear()
        secret_store._client.cache_clear()
        s3 = self.client("s3")
        for key in self.stored_keys():
            s3.delete_object(Bucket=self.bucket, Key=key)
        self.forget("")
        self.order("DELETE", "/faults")
        headers = {"authorization": f"Bearer {PROVIDER_KEY}"}
        for file in self.files():
            urllib3.request("DELETE", f"{self.provider}/files/{file['id']}", headers=headers)
        self.workers_ai.finetunes.clear()
        self.receiver.refuse(0)
        self.receiver.received.clear()


def made(parts: ExitStack) -> World:
    """A world; `parts` end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.functions.emulated_aws"], stdout=subprocess.PIPE, text=True, cwd=deploy.ROOT
    )
    parts.callback(_end, process)
    workers_ai = parts.enter_context(Server(0))
    workers_ai_service = WorkersAiService(WORKERS_AI_ACCOUNT, WORKERS_AI_TOKEN)
    workers_ai.start(workers_ai_service)
    provider = parts.enter_context(ProviderProcess(0, PROVIDER_KEY, TIME_SCALE, time.time()))
    receiver = parts.enter_context(Receiver(SAMPLE_SECRET))
    assert process.stdout is not None
    aws = process.stdout.readline().strip()
    deployment = deploy.deploy(
        aws,
        {
            "AllowLoopback": "true",
            "ProviderBaseUrl": provider.url,
            "StorageEndpoint": aws,
            "WorkersAiAccountId": WORKERS_AI_ACCOUNT,
            "WorkersAiBaseUrl": workers_ai.url,
        },
        {
            "CallbackSecret": json.dumps({"openai": SAMPLE_SECRET}),
            "NotificationSecret": json.dumps([{"url": receiver.url, "secret": SAMPLE_SECRET}]),
            "ProviderSecret": PROVIDER_KEY,
            "StorageSecret": json.dumps({"access_key_id": "testing", "secret_access_key": "testing"}),
            "WebhookSecret": SAMPLE_SECRET,
            "WorkersAiSecret": WORKERS_AI_TOKEN,
        },
    )
    bucket = deployment.parameters["BucketName"]
    deploy.client("s3", aws).create_bucket(Bucket=bucket)
    world = World(
        aws=aws,
        bucket=bucket,
        functions={function.name: function for function in deployment.functions},
        outputs=deployment.outputs,
        provider=provider.url,
        provider_control=provider.control,
        receiver=receiver,
        workers_ai=workers_ai_service,
    )
    world.order("PATCH", "/manners", {"processing_seconds": 0})
    return world


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()
    if process.stdout:
        process.stdout.close()
