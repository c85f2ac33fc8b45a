"""A running embedded stack as the workflow's tests use it: drop, watch, and prove what must hold of every run."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import boto3
import requests
from botocore.config import Config
from tunedrop import signatures
from tunedrop.bucket import s3_client
from tunedrop.events import parse
from tunedrop.ledger import DynamoLedger, UnknownRun
from tunedrop.runs import FINAL
from tunedrop.secret_store import KnownSecret

TIME_SCALE = 1500.0
ENDED_WITHIN = 60.0
LOOK_SECONDS = 0.03
NEVER = "rate(3650 days)"  # a test sweeps when it wants to
JOBS = "/v1/fine_tuning/jobs"
FILES = "/v1/files"
MACHINES = ("state_machine", "adapter_state_machine")


@dataclass(frozen=True)
class Ended:
    """A run that has come to its end, and all that it has left."""

    run: dict[str, Any]
    notification: dict[str, Any]
    execution: dict[str, Any]
    jobs: list[dict[str, Any]]
    files: list[dict[str, Any]]

    @property
    def state(self) -> str:
        return self.run["state"]

    @property
    def code(self) -> str | None:
        return self.run["error"] and self.run["error"]["code"]

    @property
    def message(self) -> str:
        return self.run["error"]["message"] if self.run["error"] else ""


class RunningStack:
    """`python -m local up` as a process, and clients for all of it."""

    takes_metadata = True
    """Whether its provider's jobs carry the run's id."""

    def __init__(self, *options: str, time_scale: float = TIME_SCALE) -> None:
        command = [sys.executable, "-m", "local", "up", "--json", "--time-scale", str(time_scale)]
        command += ["--set", f"SweepRate={NEVER}", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line, f"the stack did not start (exit status {self.process.wait()})"
        self.address = json.loads(line)
        self.bucket = self.address["bucket"]
        credentials = {name: self.address[name] for name in ("access_key_id", "secret_access_key")}
        self.s3 = s3_client(self.address["s3"], KnownSecret(json.dumps(credentials)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def aws(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.address["aws"],
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(retries={"total_max_attempts": 1}),
        )

    @cached_property
    def step_functions(self) -> Any:
        return self.aws("stepfunctions")

    @cached_property
    def ledger(self) -> DynamoLedger:
        return DynamoLedger(self.aws("dynamodb"), self.address["ledger"])

    # The bucket and the webhook

    def put(self, key: str, body: bytes) -> str:
        """Puts an object, as a user does; its eTag."""
        return self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"].strip('"')

    def get(self, key: str) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def put_quietly(self, key: str, body: bytes) -> str:
        """Puts an object past the bucket that tells of it; its eTag."""
        return self._quiet_s3.put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"].strip('"')

    def delete_quietly(self, key: str) -> None:
        self._quiet_s3.delete_object(Bucket=self.bucket, Key=key)

    @cached_property
    def _quiet_s3(self) -> Any:
        return self.aws("s3")

    def keys(self, prefix: str) -> set[str]:
        listed = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return {found["Key"] for found in listed.get("Contents", [])}

    def drop(self, key: str, body: bytes) -> str:
        """Puts a dataset; the id of the run that its event has started."""
        before = len(self.deliveries(key))
        self.put(key, body)
        return self.started(key, before)

    def started(self, key: str, before: int = 0) -> str:
        """The id of the run that the message about a key has started, after `before` other messages about it."""
        delivery = self.delivery(key, before)
        assert delivery["status"] == 202, delivery
        (accepted,) = delivery["answer"]["accepted"]
        assert accepted["key"] == key
        return accepted["run_id"]

    def deliveries(self, key: str) -> list[dict[str, Any]]:
        """The messages about a key that the webhook has answered or is being asked about."""
        return [found for found in self.control("deliveries") if found["message"]["object"]["key"] == key]

    def delivery(self, key: str, before: int = 0) -> dict[str, Any]:
        """The message about a key, after `before` others, once the webhook has answered it for good."""

        def answered(found: list[dict[str, Any]]) -> bool:
            return len(found) > before and (found[before]["status"] or 503) < 500

        return until(lambda: self.deliveries(key), answered, 20)[before]

    def event(self, key: str, etag: str, **changes: Any) -> dict[str, Any]:
        """A message of R2 about an object; each has a time, and so a run, of its own."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{uuid.uuid4().int % 10**9:09}Z"
        message = {
            "account": "an account",
            "action": "PutObject",
            "bucket": self.bucket,
            "object": {"key": key, "size": 1, "eTag": etag},
            "eventTime": at,
        }
        return message | changes

    def post(self, body: Any, *, headers: Mapping[str, Any] | None = None, secret: str = "") -> requests.Response:
        """Posts a notification: with these headers, or signed, by the stack's secret or another one."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        if headers is None:
            headers = self.signature(text, secret)
        return requests.post(
            self.address["webhook"], data=text, headers={"content-type": "application/json", **headers}, timeout=60
        )

    def signature(self, body: bytes, secret: str = "", at: float | None = None) -> dict[str, str]:
        secret = secret or self.address["webhook_secret"]
        return signatures.sign(secret, f"msg_{uuid.uuid4().hex}", at or time.time(), body.decode())

    def start(self, key: str, etag: str, **changes: Any) -> str:
        """Posts an event of its own about an object; the id of the run that it has started."""
        answer = self.post(self.event(key, etag, **changes))
        assert answer.status_code == 202, answer.text
        (accepted,) = answer.json()["accepted"]
        return accepted["run_id"]

    # The sweeper

    def sweep(self) -> dict[str, int]:
        """Sweeps; what was found, by kind."""
        answer = self.aws("lambda").invoke(FunctionName="ReconcileFunction", Payload=b"{}")
        swept = json.loads(answer["Payload"].read())
        assert "FunctionError" not in answer, swept
        return swept["counts"]

    def sweeps(self, kind: str) -> dict[str, Any]:
        """Sweeps until one thing of this kind is found, which is old enough by then; what is told of it."""
        until(self.sweep, lambda counts: counts.get(kind), 30)
        report = json.loads(self.get("results/_sweeps/latest.json"))
        (found,) = [found for found in report["found"] if found["kind"] == kind]
        return found

    # The stack's own controls

    def control(self, what: str, order: Mapping[str, Any] | None = None) -> Any:
        url = f"{self.address['control']}/{what}"
        if order is None:
            return requests.get(url, timeout=20).json()
        answer = requests.post(url, json=order, timeout=20)
        assert answer.status_code == 204, answer.text
        return None

    def crash(self, function: str, fault: str, **rest: Any) -> None:
        """Has the next invocation of a function (or `times` of them) fail."""
        self.control("faults", {"function": function, "fault": fault, **rest})

    def accept_access_keys(self, *further: str) -> None:
        """Has the bucket accept the user's access key, and these, and no other from now on."""
        self.control("access_keys", {"accepted": [self.address["access_key_id"], *further]})

    def forget(self, function: str) -> None:
        """Has a function run in new processes from now on, which have nothing cached."""
        self.control("restart", {"function": function})

    def drained(self) -> None:
        """Waits until no notification is on its way any more."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        until(lambda: self.notify_queue_attributes(), lambda found: not any(int(found[name]) for name in names), 20)

    def notify_queue_attributes(self, **changes: str) -> dict[str, str]:
        """The attributes of the queue of notifications, after these changes."""
        queues = self._sqs.list_queues()["QueueUrls"]
        (url,) = [url for url in queues if "NotifyQueue" in url]
        if changes:
            self._sqs.set_queue_attributes(QueueUrl=url, Attributes=changes)
        return self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]

    @cached_property
    def _sqs(self) -> Any:
        return self.aws("sqs")

    def provider(self, method: str, path: str, body: Any = None) -> Any:
        answer = requests.request(method, self.address["provider_control"] + path, json=body, timeout=20)
        assert answer.ok, answer.text
        return answer.json()

    def provider_fault(self, method: str, path: str, fault: Mapping[str, Any], **counts: Any) -> None:
        self.provider("POST", "/faults", {"method": method, "path": path, "fault": fault, **counts})

    def assert_no_fault_left(self) -> None:
        """Proves that every fault ordered has been met."""
        assert not self.provider("GET", "/faults")["faults"]

    def workers_ai(self, method: str, path: str, body: Any = None) -> Any:
        """Speaks to the control of the emulated Workers AI."""
        answer = requests.request(method, self.address["workers_ai_control"] + path, json=body, timeout=20)
        assert answer.ok, answer.text
        return answer.json()

    def clear_faults(self) -> None:
        """Leaves no fault over from one test to the next."""
        self.provider("DELETE", "/faults")
        self.workers_ai("DELETE", "/faults")

    def next_job(self, outcome: str, **plan: Any) -> None:
        self.provider("POST", "/jobs/next", {"outcome": outcome, **plan})

    def paid(self, run_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The jobs and the files that the fine-tuning service has ever taken for a run."""
        taken = self.provider("GET", "/ledger")
        files = [file for file in taken["files"] if file["filename"].startswith(run_id)]
        ids = {file["id"] for file in files}
        jobs = [job for job in taken["jobs"] if job["training_file"] in ids]
        assert all((job["metadata"] or {}).get("run_id") == (run_id if self.takes_metadata else None) for job in jobs)
        return jobs, files

    def provider_job(self, job_id: str, action: str = "") -> dict[str, Any]:
        """A job as the service tells it, after an `action` such as `resume` where one is given."""
        headers = {"authorization": f"Bearer {self.address['provider_key']}"}
        url = f"{self.address['provider']}/fine_tuning/jobs/{job_id}"
        if action:
            return requests.post(f"{url}/{action}", headers=headers, timeout=20).json()
        return requests.get(url, headers=headers, timeout=20).json()

    def refused(self) -> int:
        """How many requests the fine-tuning service has refused for their key."""
        return sum(request["status"] == 401 for request in self.provider("GET", "/ledger")["requests"])

    # Runs

    def run(self, run_id: str) -> dict[str, Any] | None:
        try:
            return self.ledger.get(run_id).document()
        except UnknownRun:
            return None

    def reaches(self, run_id: str, state: str) -> dict[str, Any]:
        """The run once it is in that state."""
        return until(lambda: self.run(run_id), lambda run: run is not None and run["state"] == state, ENDED_WITHIN)

    def notifications(self, run_id: str) -> list[dict[str, Any]]:
        """What was told of a run's end."""
        return [note for note in self.control("notifications") if note["id"] == f"msg_{run_id}"]

    def notices(self, run_id: str) -> list[dict[str, Any]]:
        """What was told of a run before its end."""
        return [note for note in self.control("notifications") if note["id"].startswith(f"msg_{run_id}_")]

    def execution(self, run_id: str) -> dict[str, Any]:
        """The run's execution, of whichever of the two machines."""
        first, second = (
            self.address[name].replace(":stateMachine:", ":execution:") + f":{run_id}" for name in MACHINES
        )
        try:
            return self.step_functions.describe_execution(executionArn=first)
        except self.step_functions.exceptions.ExecutionDoesNotExist:
            return self.step_functions.describe_execution(executionArn=second)

    def was_started(self, run_id: str) -> bool:
        try:
            self.execution(run_id)
        except self.step_functions.exceptions.ExecutionDoesNotExist:
            return False
        return True

    def history(self, run_id: str) -> list[dict[str, Any]]:
        pages = self.step_functions.get_paginator("get_execution_history")
        arn = self.execution(run_id)["executionArn"]
        return [event for page in pages.paginate(executionArn=arn) for event in page["events"]]

    def states(self, run_id: str) -> list[str]:
        """The names of the states that the run's execution has entered, in order."""
        entered = (event for event in self.history(run_id) if event["type"].endswith("StateEntered"))
        return [event["stateEnteredEventDetails"]["name"] for event in entered]

    def waits(self, run_id: str, state: str) -> list[int]:
        """The seconds that each stay in a waiting state was to take."""
        entered = (event.get("stateEnteredEventDetails", {}) for event in self.history(run_id))
        return [json.loads(found["input"])["answer"]["wait_seconds"] for found in entered if found.get("name") == state]

    def ended(self, run_id: str, *, within: float = ENDED_WITHIN) -> Ended:
        """Waits for a run's end, and proves what must hold of the end of every run."""
        execution = until(lambda: self.execution(run_id), lambda found: found["status"] != "RUNNING", within)
        (notification,) = until(lambda: self.notifications(run_id), bool, within)
        run, told = self.run(run_id), notification["message"]
        assert run is not None
        assert run["state"] in FINAL
        assert run["finished_at"]
        assert notification["id"] == f"msg_{run_id}"
        assert told["type"] == f"run.{run['state']}"
        assert (execution["name"], json.loads(execution["input"])["run_id"]) == (run_id, run_id)
        if run["state"] == "succeeded":
            assert execution["status"] == "SUCCEEDED"
            assert run["fine_tuned_model"]
        else:
            assert (execution["status"], execution["error"]) == ("FAILED", run["state"])
            _assert_readable(run)
        jobs, files = self.paid(run_id)
        assert len(jobs) <= 1, "the run was paid more than once"
        assert all(job["status"] in ("succeeded", "failed", "cancelled") for job in jobs), "a job was left running"
        assert run["job_id"] == (jobs[0]["id"] if jobs else None)
        assert set(run["result_keys"]) == self.keys(f"results/{run_id}/") | self.keys(f"adapters/{run_id}/")
        return Ended(run, notification, execution, jobs, files)

    def assert_settled(self) -> None:
        """Proves of everything that this stack has seen that it has come to one end, told once."""
        pages = self.step_functions.get_paginator("list_executions")
        listed = [page for name in MACHINES for page in pages.paginate(stateMachineArn=self.address[name])]
        executions = [execution for page in listed for execution in page["executions"]]
        names = [execution["name"] for execution in executions]
        assert len(names) == len(set(names)), "a run was executed more than once"
        assert not [execution["name"] for execution in executions if execution["status"] == "RUNNING"]
        notes = [note for note in self.control("notifications") if note["message"]["data"]["finished_at"]]
        told = sorted(note["message"]["data"]["run_id"] for note in notes)
        assert told == sorted(names), "a run was not told of exactly once"
        jobs = self.provider("GET", "/ledger")["jobs"]
        paid = [job["training_file"] for job in jobs]
        assert len(paid) == len(set(paid)), "a dataset was paid more than once"


@contextmanager
def settled_stack(*options: str, **named: Any) -> Iterator[RunningStack]:
    """A stack that must have brought everything to one end when it is left."""
    with RunningStack(*options, **named) as stack:
        yield stack
        stack.assert_settled()


def until[T](ask: Callable[[], T], right: Callable[[T], bool], seconds: float = ENDED_WITHIN) -> T:
    """Asks until the answer is right; looks seldom enough to leave the processor to what is looked at."""
    deadline = time.monotonic() + seconds
    while not right(answer := ask()):
        assert time.monotonic() < deadline, f"still {answer}"
        time.sleep(LOOK_SECONDS)
    return answer


def chat(subject: str, number: int = 0) -> dict[str, Any]:
    """One valid example of a dataset."""
    return {
        "messages": [
            {"role": "user", "content": f"What does {subject} say of plant number {number}?"},
            {"role": "assistant", "content": f"Give it {number} spoons on Mondays, fewer in winter."},
        ]
    }


def run_id_of(message: Mapping[str, Any]) -> str:
    """The id of the run that an event stands for."""
    (event,) = parse(json.dumps(message).encode())
    return event.run_request().run_id


def _assert_readable(run: Mapping[str, Any]) -> None:
    """A final state that is no success comes with a code, and a sentence for a person unless it was their own wish."""
    if run["state"] == "cancelled" and run["error"] is None:
        return
    assert run["error"]["code"]
    message = run["error"]["message"]
    assert len(message.split()) >= 4, message
    assert "Traceback" not in message
    assert "None" not in message
