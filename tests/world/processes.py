"""Workers as real processes, which real signals kill. The cloud lives on in the parent, which forks them."""

import copyreg
import gc
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from tunedrop.errors import Throttled
from tunedrop.preflight import make_ready

from tests.world.cloud import Cloud
from tests.world.edges import Cross
from tests.world.machine import Reply, TaskFailed
from tests.world.worker import ENVIRONMENT, installed, load

copyreg.pickle(Throttled, lambda error: (Throttled, (str(error), error.wait_seconds)))

CrossOf = Callable[[int], Cross]
"""What a worker of that number, counted over all, does at its crossings."""


@dataclass
class _Process:
    pid: int
    pipe: Connection
    job: "tuple[Reply, float] | None" = None
    """Who waits for the answer, and since when."""


@dataclass
class Pool:
    """So many worker processes for a cloud, and the loop that lets time pass.

    Time runs ``scale`` times as fast as on the wall; with an infinite scale it jumps to what is due next. It stands
    still while an invocation would otherwise seem to take longer than ``patience`` seconds: the functions' time-outs
    and the product's promises are about seconds that this machine may not have.
    """

    cloud: Cloud
    size: int
    cross_of: CrossOf
    scale: float = math.inf
    patience: float = 0.0
    deaths: int = 0
    stood_still: float = 0.0
    """Real seconds in which time stood still."""
    _processes: list[_Process] = field(default_factory=list)
    _waiting: "deque[tuple[str, Any, Reply, float]]" = field(default_factory=deque)
    _forked: int = 0
    _ticked: float = field(default_factory=time.monotonic)

    def __enter__(self) -> "Pool":
        load()
        make_ready(ENVIRONMENT["DEFAULT_MODEL"])
        gc.freeze()  # what is there now is shared with the workers
        self.cloud.invoke = self._invoke
        for _ in range(self.size):
            self._fork()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
            process.pipe.close()
        gc.unfreeze()

    def kill_one(self) -> None:
        """SIGKILLs a worker, whatever it is at; a busy one where there is one."""
        busy = [process for process in self._processes if process.job]
        os.kill(self.cloud.chance.choice(busy or self._processes).pid, signal.SIGKILL)

    def step(self) -> bool:
        """Does what is due and answers the workers, once; False where nothing is left to do."""
        timers = self.cloud.timers
        self._tick()
        while timers.run_next(self.cloud.clock.at):
            pass
        self._hand_out()
        busy = any(process.job for process in self._processes)
        due = timers.next_due()
        if not busy and due is None:
            return False
        if busy:
            pause = 0.002 if due is not None and math.isfinite(self.scale) else None
        else:
            pause = max(0.0, (due or 0.0) - self.cloud.clock.at) / self.scale
        by_pipe = {process.pipe: process for process in self._processes}
        for pipe in wait(list(by_pipe), pause):
            self._answer(by_pipe[pipe])  # type: ignore[index]  # what comes back is one of the pipes
        return True

    def _tick(self) -> None:
        clock, now = self.cloud.clock, time.monotonic()
        elapsed, self._ticked = now - self._ticked, now
        begun = [process.job[1] for process in self._processes if process.job] + [job[3] for job in self._waiting]
        latest = min(begun, default=math.inf) + self.patience
        if math.isinf(self.scale):
            due = self.cloud.timers.next_due()
            clock.at = max(clock.at, min(latest, due if due is not None else clock.at))
            return
        wanted = clock.at + elapsed * self.scale
        if wanted > latest:
            self.stood_still += min(elapsed, (wanted - latest) / self.scale)
        clock.at = max(clock.at, min(wanted, latest))

    def _invoke(self, function: str, event: Any, reply: Reply) -> None:
        self._waiting.append((function, event, reply, self.cloud.clock.at))

    def _hand_out(self) -> None:
        for process in self._processes:
            if self._waiting and process.job is None:
                function, event, reply, since = self._waiting.popleft()
                process.job = reply, since
                self._send(process, (self.cloud.clock.at, function, event))

    def _send(self, process: _Process, message: Any) -> None:
        with suppress(OSError):  # it was killed: its pipe tells
            process.pipe.send(message)

    def _answer(self, process: _Process) -> None:
        try:
            kind, *said = process.pipe.recv()
        except (EOFError, OSError):
            self._bury(process)
            return
        if kind == "ask":
            try:
                answer = True, self.cloud.call(*said)
            except Exception as error:  # noqa: BLE001 - it is raised on the other side
                answer = False, error
            self._send(process, (self.cloud.clock.at, *answer))
            return
        assert process.job is not None
        answer, log = said
        self.cloud.listen("log", log)
        (reply, _), process.job = process.job, None
        reply(answer)

    def _bury(self, process: _Process) -> None:
        self.deaths += 1
        self._processes.remove(process)
        process.pipe.close()
        os.waitpid(process.pid, 0)
        self._fork()
        if process.job:
            process.job[0](TaskFailed("Runtime.ExitError"))

    def _fork(self) -> None:
        ours, theirs = Pipe()
        self._forked += 1
        pid = os.fork()
        if not pid:
            ours.close()
            for other in self._processes:
                other.pipe.close()
            try:
                _work(theirs, self.cross_of(self._forked))
            finally:
                os._exit(1)
        theirs.close()
        self._processes.append(_Process(pid, ours))


def _work(pipe: Connection, cross: Cross) -> None:
    at = 0.0

    def receive() -> Any:
        nonlocal at
        at, *said = pipe.recv()
        return said

    def call(service: str, operation: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        pipe.send(("ask", service, operation, arguments, named))
        fine, answer = receive()
        if not fine:
            raise answer
        return answer

    with installed(call, cross, lambda: at) as worker:
        while True:
            answer = worker.handle(*receive())
            pipe.send(("done", answer, worker.heard()))
