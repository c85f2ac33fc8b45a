"""EventBridge Scheduler: a schedule invokes its function at its rate, in scaled time."""

import json
import re
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from local.functions import Closed, Lambda

_RATE = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
_SECONDS = {"minute": 60, "hour": 3600, "day": 86_400}


@dataclass(frozen=True)
class Schedule:
    """A function and the seconds between two invocations of it."""

    function: str
    seconds: float


def seconds_of(expression: str) -> float:
    """The seconds of a rate expression; raises `NotImplementedError` for the other kinds."""
    rate = _RATE.fullmatch(expression)
    if not rate:
        raise NotImplementedError(f"the embedded stack knows rates, such as rate(1 hour), and not {expression}")
    return int(rate[1]) * _SECONDS[rate[2]]


class Scheduler:
    """Invokes the function of one schedule from the moment that it is made until it is closed.

    The first time is after one period, and an invocation that takes longer than a period delays the next.
    """

    def __init__(self, schedule: Schedule, functions: Lambda, time_scale: float):
        self._schedule = schedule
        self._functions = functions
        self._period = schedule.seconds / time_scale
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Invoke no more; an invocation under way ends with its function's process."""
        self._closing.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.wait(self._period):
            try:
                self._functions.invoke(self._schedule.function, json.dumps(self._event()).encode())
            except Closed:
                return

    def _event(self) -> dict[str, object]:
        # https://docs.aws.amazon.com/scheduler/latest/UserGuide/managing-targets-templated.html
        region, account = self._functions.region, self._functions.account
        return {
            "version": "0",
            "id": str(uuid.uuid4()),
            "detail-type": "Scheduled Event",
            "source": "aws.scheduler",
            "account": account,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": region,
            "resources": [f"arn:aws:scheduler:{region}:{account}:schedule/default/{self._schedule.function}"],
            "detail": "{}",
        }
