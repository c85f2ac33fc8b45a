"""A fine-tuning service in memory, whose jobs run by the clock and whose own books say what was paid."""

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunedrop.errors import Throttled, Unauthorised, UnknownOutcome
from tunedrop.provider import ProviderFile, ProviderJob

from tests.unit.fakes import MemoryProvider
from tests.world.timers import Timers

CREATIONS, UPLOADS = "creations", "uploads"
LONGEST_FILE_LAG = 100.0  # seconds; what has become of an upload is looked for 120 s long
LONGEST_LANDING, LONGEST_JOB_LAG = 400.0, 400.0  # together below the 900 s of a job
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Limit:
    """So many within any ``seconds``, counted by the service itself as the calls arrive."""

    most: int
    seconds: float
    taken: deque[float] = field(default_factory=deque)
    refused: int = 0

    def take(self, at: float) -> None:
        while self.taken and self.taken[0] <= at - self.seconds:
            self.taken.popleft()
        if len(self.taken) >= self.most:
            self.refused += 1
            raise Throttled("the fine-tuning service asks for a pause (429)", self.taken[0] + self.seconds - at)
        self.taken.append(at)


class Service(MemoryProvider):
    """The double that passes the contract of the real adapter, with keys, limits and a will of its own.

    ``ended`` is told of the end of every job. ``odd`` is the share of creations that go in an odd way: listings show
    what was created only later, or a job comes into being after its caller has given up; both within what the product
    allows for.
    """

    def __init__(self, timers: Timers, chance: random.Random, key: str, training_seconds: float = 600.0) -> None:
        super().__init__()
        self.odd = 0.0
        self.key = key
        self.training_seconds = training_seconds
        self.limits: dict[str, Limit] = {}
        self.ended: Callable[[ProviderJob], None] = lambda job: None
        self.outcomes: deque[str] = deque()
        self.creations: list[tuple[float, str]] = []  # asked for when, and which job: what was paid
        self.ended_at: dict[str, float] = {}
        self._timers = timers
        self._chance = chance
        self._by_file: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        self._listed_from: dict[str, float] = {}

    def paid(self) -> Counter[str]:
        """How many jobs were ever created, by the name of the file that they train on."""
        return Counter(self._files[self.jobs[job_id].training_file].name for _, job_id in self.creations)

    def authenticate(self, key: str) -> None:
        if key != self.key:
            raise Unauthorised("the fine-tuning service refused our API key (401)")

    def files_named(self, name: str) -> list[ProviderFile]:
        found = (self._files[i] for i in self._by_name.get(name, ()) if i in self._files and self._is_listed(i))
        return sorted(found, key=lambda file: (file.created_at, file.id))

    def upload(self, name: str, chunks: Any, size: int) -> ProviderFile:
        self._take(UPLOADS)
        file = super().upload(name, chunks, size)
        self._by_name.setdefault(name, []).append(file.id)
        self._listed_from[file.id] = self._timers.clock.now() + self._lag(LONGEST_FILE_LAG)
        return file

    def jobs_on(self, training_file: str) -> list[ProviderJob]:
        found = (self.jobs[job_id] for job_id in self._by_file.get(training_file, ()) if self._is_listed(job_id))
        return sorted(found, key=lambda job: (job.created_at, job.id))

    def create_job(self, **parameters: Any) -> ProviderJob:
        self._take(CREATIONS)
        asked_at = self._timers.clock.now()
        if self._is_odd():
            landing = self._chance.uniform(0, LONGEST_LANDING)
            self._timers.after(landing, lambda: self._create(asked_at, **parameters), punctual=True)
            raise UnknownOutcome("the fine-tuning service did not answer (APITimeoutError)")
        return self._create(asked_at, **parameters)

    def _create(self, asked_at: float, **parameters: Any) -> ProviderJob:
        job = super().create_job(**parameters)
        at = self._timers.clock.now()
        self.creations.append((asked_at, job.id))
        self._by_file.setdefault(job.training_file, []).append(job.id)
        self._listed_from[job.id] = at + self._lag(LONGEST_JOB_LAG)
        outcome = self.outcomes.popleft() if self.outcomes else "succeeded"
        self._timers.after(self.training_seconds, lambda: self._end(job.id, outcome), punctual=True)
        return job

    def cancel_job(self, job_id: str) -> ProviderJob:
        if self.jobs[job_id].status not in ENDED:
            self._end(job_id, "cancelled")
        return self.jobs[job_id]

    def _end(self, job_id: str, outcome: str) -> None:
        if self.jobs[job_id].status in ENDED:
            return
        changes: dict[str, Any] = {"status": outcome}
        if outcome == "succeeded":
            table = f"file-results-{job_id}"
            self.contents[table] = b"step,train_loss\n1,0.9\n2,0.7\n"
            changes |= {"fine_tuned_model": f"ft:{job_id}", "trained_tokens": 100, "result_files": (table,)}
        self.set_job(job_id, **changes)
        self.ended_at[job_id] = self._timers.clock.now()
        self.ended(self.jobs[job_id])

    def _take(self, what: str) -> None:
        if what in self.limits:
            self.limits[what].take(self._timers.clock.now())

    def _is_odd(self) -> bool:
        return self._chance.random() < self.odd

    def _lag(self, longest: float) -> float:
        return self._chance.uniform(0, longest) if self._is_odd() else 0.0

    def _is_listed(self, thing_id: str) -> bool:
        return self._listed_from[thing_id] <= self._timers.clock.now()
