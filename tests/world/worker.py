"""A process's worth of the product: its real handlers and adapters, over clients whose far side is the cloud."""

import io
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from tunedrop import secret_store
from tunedrop.bucket import _keys
from tunedrop.errors import Unauthorised
from tunedrop.providers import PROFILES, ProviderProfile
from tunedrop.secret_store import Secret, StoredSecret

from tests.unit.fakes import FakeContext
from tests.world.edges import Call, Client, Cross
from tests.world.machine import TaskFailed

FUNCTIONS = ("webhook", "upload", "create_job", "poll_status", "collect", "callback", "notify")
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "POWERTOOLS_SERVICE_NAME": "tunedrop",
    "LEDGER_TABLE": "ledger",
    "BUCKET_NAME": "datasets",
    "STORAGE_ENDPOINT": "https://bucket.example",
    "STORAGE_SECRET_ARN": "storage",
    "WEBHOOK_SECRET_ARN": "webhook",
    "STATE_MACHINE_ARN": "finetune",
    "ADAPTER_STATE_MACHINE_ARN": "adapter",
    "ON_DELETION": "ignore",
    "PROVIDER": "openai",
    "PROVIDER_SECRET_ARN": "provider",
    "DEFAULT_MODEL": "gpt-4.1-mini-2025-04-14",
    "MAX_COST_USD": "0",
    "RUN_DEADLINE_HOURS": "100000",
    "CALLBACK_SECRET_ARN": "callback",
    "CALLBACK_HEARTBEAT_MINUTES": "60",
    "NOTIFICATION_SECRET_ARN": "notification",
    "NOTIFY_QUEUE_URL": "queue",
}


class Services:
    """The registry of fine-tuning services: one, behind the same edge as everything else."""

    default = "openai"

    def __init__(self, profile: ProviderProfile, call: Call, cross: Cross) -> None:
        self._only = _Provider(profile, call, cross, StoredSecret("provider"))

    def of(self, name: str | None) -> Any:
        return self._only

    def configured(self) -> Any:
        return {"openai": self._only.profile}


class _Provider:
    """The adapter of the service in memory. A refused key is fetched once more, as the real one does."""

    at_home = True

    def __init__(self, profile: ProviderProfile, call: Call, cross: Cross, key: Secret) -> None:
        self.profile = profile
        self._key = key
        self._client = Client("provider", call, cross, key=key.value)

    def upload(self, name: str, chunks: Any, size: int) -> Any:
        return self._ask("upload", name, [b"".join(chunks)], size)

    def __getattr__(self, operation: str) -> Any:
        return lambda *arguments, **named: self._ask(operation, *arguments, **named)

    def _ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        try:
            return getattr(self._client, operation)(*arguments, **named)
        except Unauthorised:
            stale = self._key.value()
            if self._key.value(fresh=True) == stale:
                raise
        return getattr(self._client, operation)(*arguments, **named)


def load() -> dict[str, Any]:
    """The handlers' modules, by the functions' folders."""
    with patch.dict(os.environ, ENVIRONMENT):
        return {name: import_module(f"functions.{name}.handler") for name in FUNCTIONS}


class Worker:
    """Handles events. ``function`` is the name of the one that it is at."""

    function = ""

    def __init__(self) -> None:
        self._handlers = load()
        self._log = io.StringIO()
        for handler in logging.getLogger("tunedrop").handlers:
            handler.setStream(self._log)  # type: ignore[attr-defined]  # each is a StreamHandler

    def handle(self, function: str, event: Any) -> Any:
        """The function's answer, or the TaskFailed that Lambda makes of what it raises."""
        Worker.function = function  # there is one worker to a process
        try:
            answer = self._handlers[function].handler(event, FakeContext(function))
            return json.loads(json.dumps(answer))
        except Exception as error:  # noqa: BLE001 - as Lambda does
            self._log.write(traceback.format_exc())
            told = {"errorMessage": str(error), "errorType": type(error).__name__}
            return TaskFailed(type(error).__name__, json.dumps(told))

    def heard(self) -> str:
        """What it has logged since it was last asked."""
        text = self._log.getvalue()
        self._log.seek(0)
        self._log.truncate()
        return text

    def forget(self) -> None:
        """Loses all memory, as a process does that dies."""
        secret_store._client.cache_clear()
        for module in self._handlers.values():
            for made in vars(module).values():
                if hasattr(made, "cache_clear"):
                    made.cache_clear()


@contextmanager
def installed(
    call: Call, cross: Cross, now: Callable[[], float], profile: ProviderProfile = PROFILES["openai"]
) -> Iterator[Worker]:
    """A worker in this process: clients, clock and pauses are those of the world while it is there."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, ENVIRONMENT))
        worker = Worker()
        clients = lambda service, **_: Client(service, call, cross)  # noqa: E731
        stack.enter_context(patch("boto3.client", clients))
        stack.enter_context(patch("tunedrop.clock.time", SimpleNamespace(time=now)))
        stack.enter_context(
            patch(
                "tunedrop.bucket.s3_client",
                lambda endpoint, secret: Client("s3", call, cross, access_key=lambda: _keys(secret.value())[0]),
            )
        )
        stack.enter_context(patch("tunedrop.provider.connect", lambda environment: Services(profile, call, cross)))
        stack.enter_context(
            patch("functions.notify.handler.HttpSender", lambda *_, **__: Client("receiver", call, cross))
        )
        unhurried = SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic, time=time.time)
        for name, module in list(sys.modules.items()):
            if name.startswith("tunedrop.") and getattr(module, "time", None) is time:
                stack.enter_context(patch.object(module, "time", unhurried))
        worker.forget()
        stack.callback(worker.forget)
        yield worker
