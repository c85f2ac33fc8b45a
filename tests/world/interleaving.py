"""Many invocations at the same time, in one thread's time: each runs to its next edge, and then somebody else may go.

An invocation is a thread that only ever runs while it is let; so a schedule drawn from a seed is the same each time.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from samtranslator.yaml_helper import yaml_parse

from local.deploy import TEMPLATE
from tests.world.cloud import Cloud
from tests.world.edges import Cross, Crossing
from tests.world.machine import Reply, TaskFailed
from tests.world.worker import Worker
from tests.world.world import Killed

MOST_TURNS = 300_000


@cache
def timeouts() -> dict[str, float]:
    """Seconds after which Lambda ends a function, by its folder."""
    functions = {
        name: resource["Properties"]
        for name, resource in yaml_parse(TEMPLATE.read_text())["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    return {facts["CodeUri"].rpartition("/")[2]: facts["Timeout"] for facts in functions.values()}


@dataclass(eq=False)
class Invocation:
    """A function at work. ``reply`` is void once it was used: who asked has an answer then, or has given up."""

    function: str
    carry_out: Callable[[], Any]
    reply: "Reply | None"
    until: float
    answer: Any = None
    over: bool = False
    dead: bool = False
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def resume(self) -> None:
        """Lets it run to its next edge, or to its end."""
        self._go.release()
        self._back.acquire()

    def pause(self) -> None:
        """Of the invocation itself, at an edge."""
        if not self.dead:
            self._back.release()
            self._go.acquire()
        if self.dead:
            raise Killed

    def _run(self) -> None:
        self._go.acquire()
        _here.invocation = self
        try:
            self.answer = self.carry_out()
        except Killed:
            self.answer = TaskFailed("Runtime.ExitError")
        self.over = True
        self._back.release()


_here = threading.local()


class Interleaved:
    """A cloud whose functions run at the same time, turn by turn."""

    def __init__(self, cloud: Cloud, faults: Cross) -> None:
        self.cloud = cloud
        self.faults = faults
        self.worker: Worker | None = None
        self.under_way: list[Invocation] = []
        cloud.invoke = self._invoke
        cloud.cross = lambda crossing: self.faults(crossing)

    def cross(self, crossing: Crossing) -> None:
        """At every edge: others may go, then something may fail."""
        invocation = getattr(_here, "invocation", None)
        if invocation is not None:
            invocation.pause()
        self.faults(crossing)

    def go(self, turns: int, chance: random.Random, deaths: float = 0.0) -> None:
        """Lets somebody take a turn, so many times; while nobody can, time passes.

        At such a share of the turns somebody is killed in place of going on, and at as many an answer is lost.
        """
        for _ in range(turns):
            if self.under_way and chance.random() < 0.97:
                one, fate = chance.choice(self.under_way), chance.random()
                if fate < deaths:
                    self.kill(one)
                elif fate < 2 * deaths:
                    self.lose_answer(one)
                else:
                    self._resume(one)
            elif not self._pass_time():
                return

    def settle(self) -> None:
        """Goes on until nothing is left to do."""
        for _ in range(MOST_TURNS):
            if self.under_way:
                self._resume(self.under_way[0])
            elif not self._pass_time():
                return
        raise AssertionError("it does not come to an end")

    def jump(self, seconds: float) -> None:
        """The clock jumps: what we are to do in between is late. The service goes on meanwhile, as it always does."""
        self._reach(self.cloud.clock.at + seconds)

    def kill(self, invocation: Invocation, error: str = "Runtime.ExitError") -> None:
        """Ends it where it stands, with all that it knows."""
        invocation.dead = True
        while not invocation.over:
            invocation.resume()
        invocation.answer = TaskFailed(error)
        assert self.worker is not None
        self.worker.forget()
        self._take_leave(invocation)

    def lose_answer(self, invocation: Invocation) -> None:
        """Whoever asked gives up, and the function goes on all the same."""
        if invocation.reply:
            reply, invocation.reply = invocation.reply, None
            reply(TaskFailed("Lambda.SdkClientException"))

    def _invoke(self, function: str, event: Any, reply: Reply) -> None:
        assert self.worker is not None
        worker = self.worker
        until = self.cloud.clock.at + timeouts()[function]
        self.under_way.append(Invocation(function, lambda: worker.handle(function, event), reply, until))

    def _resume(self, invocation: Invocation) -> None:
        invocation.resume()
        if invocation.over:
            self._take_leave(invocation)

    def _take_leave(self, invocation: Invocation) -> None:
        assert self.worker is not None
        self.cloud.listen("log", self.worker.heard())
        self.under_way.remove(invocation)
        if invocation.reply:
            invocation.reply(invocation.answer)

    def _pass_time(self) -> bool:
        due = self.cloud.timers.next_due()
        if due is None:
            return False
        self._reach(due)
        self.cloud.timers.run_next(self.cloud.clock.at)
        return True

    def _reach(self, at: float) -> None:
        """Sets the clock, and ends the functions whose time is over by then, each in its time."""
        for invocation in sorted(self.under_way, key=lambda one: one.until):
            if invocation.until <= at:
                self.cloud.timers.run_punctual(invocation.until)
                self.cloud.clock.at = max(self.cloud.clock.at, invocation.until)
                self.kill(invocation, "Sandbox.Timedout")
        self.cloud.timers.run_punctual(at)
        self.cloud.clock.at = max(self.cloud.clock.at, at)
