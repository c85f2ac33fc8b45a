"""The edges of the functions: whatever they bring about passes through a client, and crosses its edge twice.

A crossing is named by the service, what is asked of it, and ``before`` or ``after``: before it nothing has happened,
after it the effect is there and its answer is not. Faults and deaths happen at crossings, so none can be forgotten when
the product asks something new; the product knows nothing of them.
"""

import random
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError, ReadTimeoutError
from tunedrop.errors import Throttled, Transient, Unauthorised, UnknownOutcome
from tunedrop.notify import NotDelivered

BEFORE, AFTER = "before", "after"

Call = Callable[[str, str, tuple[Any, ...], Mapping[str, Any]], Any]
"""Asks the far side: service, operation, arguments by place and by name."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Going to a service, or coming back from it."""

    service: str
    operation: str
    when: str

    def __str__(self) -> str:
        return f"{self.service}.{self.operation}:{self.when}"


Cross = Callable[[Crossing], None]


class Client:
    """Stands where an SDK's client does: each of its operations is asked of the far side."""

    def __init__(self, service: str, call: Call, cross: Cross, /, **always: Any) -> None:
        """``always`` are named arguments of every operation, or functions that make them."""
        self._service, self._call, self._cross, self._always = service, call, cross, always

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation.startswith("_"):
            raise AttributeError(operation)

        def ask(*arguments: Any, **named: Any) -> Any:
            always = {name: value() if callable(value) else value for name, value in self._always.items()}
            self._cross(Crossing(self._service, operation, BEFORE))
            answer = self._call(self._service, operation, arguments, {**always, **named})
            self._cross(Crossing(self._service, operation, AFTER))
            return answer

        return ask


CREATING = ("upload", "create_job", "begin_upload", "add_part", "complete_upload")


def failure(crossing: Crossing, chance: random.Random) -> Exception:
    """What a client raises when a service fails it there, as the SDK's documentation has it."""
    refused = crossing.when == BEFORE
    match crossing.service:
        case "provider":
            unknown = UnknownOutcome if crossing.operation in CREATING else Transient
            kinds: list[Exception] = [unknown("the fine-tuning service did not answer (APIConnectionError)")]
            if refused:
                kinds.append(Throttled("the fine-tuning service asks for a pause (429)", 30.0))
                kinds.append(Unauthorised("the fine-tuning service refused our API key (401)"))
            return chance.choice(kinds)
        case "receiver":
            return NotDelivered("answered 503")
    return chance.choice([*(_answers(crossing.service) if refused else ()), *_silences()])


def _answers(service: str) -> Iterable[ClientError]:
    codes = {
        "dynamodb": ("ProvisionedThroughputExceededException", "ThrottlingException", "InternalServerError"),
        "s3": ("SlowDown", "InternalError", "InvalidAccessKeyId"),
        "secretsmanager": ("InternalServiceError", "ThrottlingException"),
        "sns": ("InternalErrorException", "ThrottledException"),
        "sqs": ("ServiceUnavailable",),
        "stepfunctions": ("ThrottlingException", "ServiceUnavailable"),
    }
    for code in codes[service]:
        status = 403 if code.startswith("Invalid") else 503
        yield ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation")


def _silences() -> Iterable[BotoCoreError]:
    yield ReadTimeoutError(endpoint_url="https://service.example")
    yield ConnectionClosedError(endpoint_url="https://service.example")


class Faults:
    """Fails a share of all calls, half of those after they were accepted."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._chance = random.Random(seed)
        self.made = 0

    def __call__(self, crossing: Crossing) -> None:
        if self._chance.random() < self._share / 2:
            self.made += 1
            raise failure(crossing, self._chance)


_ADAPTERS = ("ledger", "bucket", "executions", "secret_store", "notify", "provider")


def asked_by() -> str:
    """The adapter's method that the crossing is part of, such as ``ledger.claim``; empty where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        package, _, module = frame.f_globals.get("__name__", "").rpartition(".")
        name = frame.f_code.co_name
        if package == "tunedrop" and module in _ADAPTERS and not name.startswith(("_", "<")):
            return f"{module}.{name}"
        frame = frame.f_back
    return ""
