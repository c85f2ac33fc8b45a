"""The forwarder in workerd, between the test and a webhook that is Tunedrop's own unless a test has it fail."""

import base64
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from tunedrop import webhook
from tunedrop.runs import RunRequest
from tunedrop.secret_store import KnownSecret
from werkzeug import Request, Response

from local.cloudflare import Workerd, forwarder
from local.gateway import Server

SECRET, OLD_SECRET = (
    "whsec_" + base64.b64encode(text).decode() for text in (b"a secret of the tests", b"the one before")
)
BUCKET = "datasets"
AT = "2026-03-05T09:30:01.284Z"
HERE = Path(__file__).parent
VARIANTS = {
    "forwarder": {},
    "hasty": {"TIMEOUT_SECONDS": 0.3},
    "rotating": {"WEBHOOK_SECRET": f" {OLD_SECRET}\n{SECRET} "},
    "without_prefix": {"WEBHOOK_SECRET": SECRET.removeprefix("whsec_")},
    "without_secret": {"WEBHOOK_SECRET": ""},
    "with_bad_secret": {"WEBHOOK_SECRET": "whsec_ä"},
    "without_webhook": {"WEBHOOK_URL": "http://127.0.0.1:9/"},
}
"""Forwarders that differ in their bindings; the queue calls the one that its consumers name."""


def event(key: str = "a.jsonl", action: str = "PutObject", **stored: Any) -> dict[str, Any]:
    """A message of R2."""
    account = "0123456789abcdef0123456789abcdef"
    found = {"key": key} | ({} if "Delet" in action else {"size": 10, "eTag": "e1"}) | stored
    return {"account": account, "action": action, "bucket": BUCKET, "object": found, "eventTime": AT}


_numbers = itertools.count()


def message(body: Any = None, *, attempts: int = 1, id: str = "") -> dict[str, Any]:  # noqa: A002
    return {"id": id or f"message-{next(_numbers)}", "attempts": attempts, "body": event() if body is None else body}


@dataclass
class Post:
    """What the webhook got."""

    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def records(self) -> list[dict[str, Any]]:
        return json.loads(self.body)["Records"]


class Executions:
    def __init__(self) -> None:
        self.started: list[RunRequest] = []

    def start(self, request: RunRequest) -> None:
        self.started.append(request)


class Webhook(Server):
    """Answers as it is told to, and otherwise as Tunedrop's webhook, which checks the signature and parses the body."""

    def __init__(self) -> None:
        super().__init__()
        self.clean()
        self.start(Request.application(self._respond))

    def clean(self) -> None:
        self.posts: list[Post] = []
        self.executions = Executions()
        self.script: list[Callable[[], Response]] = []
        self.always: Callable[[], Response] | None = None
        self.poison: tuple[bytes, int] | None = None

    def answer(self, *statuses: int, headers: Any = None, body: str = "because") -> None:
        """Answer the next requests with these."""
        self.script += [lambda status=status: Response(body, status, headers) for status in statuses]

    def _respond(self, request: Request) -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.posts.append(Post(headers, request.get_data(), time.monotonic()))
        if self.poison and self.poison[0] in self.posts[-1].body:
            return Response("broken", self.poison[1])
        told = self.script.pop(0) if self.script else self.always
        if told:
            return told()
        status, answer = webhook.take_notification(
            headers, self.posts[-1].body, bucket=BUCKET, secret=KnownSecret(SECRET), executions=self.executions
        )
        return Response(json.dumps(answer), status, content_type="application/json")

    @property
    def keys(self) -> list[str]:
        """Of the runs that were started."""
        return [request.key for request in self.executions.started]


@dataclass
class Outcome:
    """What became of a batch: seconds until each message comes again, and the messages that do not."""

    retried: dict[str, int] = field(default_factory=dict)
    acked: set[str] = field(default_factory=set)


class World:
    def __init__(self, webhook: Webhook, log: Path) -> None:
        self.webhook = webhook
        self._http = urllib3.PoolManager(retries=False, timeout=60)
        self._lock = threading.Lock()
        bindings = {"WEBHOOK_URL": webhook.url + "/events/r2", "WEBHOOK_SECRET": SECRET}
        variants = {name: forwarder(bindings | changes) for name, changes in VARIANTS.items()}
        queue = forwarder(bindings | {"FIRST_DELAY_SECONDS": 1, "RETRIES": 2}, maxBatchTimeout=0.1)
        self.dead_letter_queue = next(iter(queue["queueProducers"].values()))
        harness = {
            "name": "harness",
            "modules": True,
            "rootPath": str(HERE),
            "scriptPath": "harness.js",
            "compatibilityDate": queue["compatibilityDate"],
            "compatibilityFlags": ["service_binding_extra_handlers"],
            "serviceBindings": {name: name for name in variants},
            "queueProducers": {"EVENTS": next(iter(queue["queueConsumers"]))},
            "queueConsumers": {self.dead_letter_queue: {"maxBatchTimeout": 0, "maxBatchSize": 100}},
        }
        for name, variant in variants.items():
            variant |= {"name": name, "queueConsumers": {}}
        self.workerd = Workerd([harness, *variants.values(), queue], log)
        self._dead_before = 0

    def clean(self) -> None:
        self.webhook.clean()
        self._dead_before = len(self._ask("GET", "dead"))

    def deliver(self, *messages: dict[str, Any], to: str = "forwarder") -> Outcome:
        """Hands a batch to the forwarder, as the queue does."""
        result = self._ask("POST", to, list(messages))
        assert (result["outcome"], result["ackAll"], result["retryBatch"]["retry"]) == ("ok", False, False), result
        retried = {each["msgId"]: each["delaySeconds"] for each in result["retryMessages"]}
        outcome = Outcome(retried, set(result["explicitAcks"]))
        assert retried.keys() | outcome.acked == {each["id"] for each in messages}, "none is left to the default"
        assert not retried.keys() & outcome.acked
        return outcome

    def send(self, *bodies: Any) -> None:
        """Puts messages into the real queue."""
        self._ask("POST", "queue", list(bodies))

    def dead(self, count: int, within: float = 10) -> list[dict[str, Any]]:
        """The dead letters, once there are so many."""
        return until(lambda: self._ask("GET", "dead")[self._dead_before :], lambda found: len(found) >= count, within)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(
            method, f"{self.workerd.url}/{path}", body=None if body is None else json.dumps(body).encode()
        )
        assert answer.status == 200, answer.data
        return answer.json()


def until[Found](look: Callable[[], Found], enough: Callable[[Found], bool], within: float = 10) -> Found:
    end = time.monotonic() + within
    while not enough(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found
