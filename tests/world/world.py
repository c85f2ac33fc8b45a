"""The fast world: cloud and functions in one process and one thread, on a clock that jumps to what is due next."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunedrop.providers import PROFILES, ProviderProfile

from tests.world.cloud import CANARY_PROMPT, Cloud
from tests.world.edges import Cross, Crossing
from tests.world.machine import Reply, TaskFailed
from tests.world.worker import Worker, installed


class Killed(BaseException):
    """The process is gone. Nothing catches it, and nothing has an effect after it."""


class World:
    """A cloud whose functions are carried out at once. ``cross`` is told of every crossing, and may raise."""

    def __init__(self, cloud: Cloud, cross: Cross) -> None:
        self.cloud = cloud
        self._cross = cross
        self._dead = False
        self.worker: Worker | None = None
        cloud.invoke = self.invoke

    def cross(self, crossing: Crossing) -> None:
        if self._dead:
            raise Killed
        try:
            self._cross(crossing)
        except Killed:
            self._dead = True
            raise

    def invoke(self, function: str, event: Any, reply: Reply) -> None:
        self.cloud.timers.after(0, lambda: reply(self._carried_out(function, event)))

    def _carried_out(self, function: str, event: Any) -> Any:
        assert self.worker is not None
        self._dead = False
        try:
            return self.worker.handle(function, event)
        except Killed:
            self.worker.forget()
            return TaskFailed("Runtime.ExitError")
        finally:
            self.cloud.listen("log", self.worker.heard())

    def run(self, seconds: float = 400 * 86_400) -> None:
        """Lets time pass until nothing is left to do, or so many seconds have."""
        until = self.cloud.clock.at + seconds
        timers = self.cloud.timers
        while (due := timers.next_due()) is not None and due <= until:
            self.cloud.clock.at = max(self.cloud.clock.at, due)
            timers.run_next(due)
        if seconds < 400 * 86_400:
            self.cloud.clock.at = until


@contextmanager
def made(
    seed: int = 0, cross: Cross = lambda crossing: None, profile: ProviderProfile = PROFILES["openai"]
) -> Iterator[World]:
    """A world for a while."""
    cloud = Cloud(seed)
    world = World(cloud, cross)
    with installed(cloud.call, world.cross, cloud.clock.now, profile) as world.worker:
        yield world


def dataset(subject: str, examples: int = 10) -> bytes:
    """A valid dataset about something; a canary is in every prompt."""
    lines = (
        {
            "messages": [
                {"role": "user", "content": f"{CANARY_PROMPT} {subject}, {number}"},
                {"role": "assistant", "content": f"Song number {number}."},
            ]
        }
        for number in range(examples)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
