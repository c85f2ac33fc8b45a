"""A fine-tuning service in memory, whose jobs run by the clock and whose own books say what was paid."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunedrop.errors import Throttled, Unauthorised
from tunedrop.provider import ProviderFile, ProviderJob

from tests.unit.fakes import MemoryProvider
from tests.world.timers import Timers

CREATIONS, UPLOADS = "creations", "uploads"
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
            raise Throttled("the fine-tuning service asks for a pause (429)", 60.0)
        self.taken.append(at)


class Service(MemoryProvider):
    """The double that passes the contract of the real adapter, with keys, limits and a will of its own.

    ``ended`` is told of the end of every job. Of every file and job taken it knows when listings show it, and of a
    creation that comes late when it lands: such a call is never answered.
    """

    def __init__(self, timers: Timers, key: str, training_seconds: float = 600.0) -> None:
        super().__init__()
        self.key = key
        self.training_seconds = training_seconds
        self.limits: dict[str, Limit] = {}
        self.ended: Callable[[ProviderJob], None] = lambda job: None
        self.outcomes: deque[str] = deque()
        self.listing_lag = 0.0
        self.creations: list[tuple[float, str]] = []  # when, and on which file: what was paid
        self._timers = timers
        self._by_file: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        self._listed_from: dict[str, float] = {}

    def paid(self) -> Counter[str]:
        """How many jobs were ever created, by the name of the file that they train on."""
        return Counter(self._files[file_id].name for _, file_id in self.creations)

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
        self._listed_from[file.id] = self._timers.clock.now() + self.listing_lag
        return file

    def jobs_on(self, training_file: str) -> list[ProviderJob]:
        found = (self.jobs[job_id] for job_id in self._by_file.get(training_file, ()) if self._is_listed(job_id))
        return sorted(found, key=lambda job: (job.created_at, job.id))

    def create_job(self, *, model: str, training_file: str, **parameters: Any) -> ProviderJob:
        self._take(CREATIONS)
        job = super().create_job(model=model, training_file=training_file, **parameters)
        at = self._timers.clock.now()
        self.creations.append((at, training_file))
        self._by_file.setdefault(training_file, []).append(job.id)
        self._listed_from[job.id] = at + self.listing_lag
        outcome = self.outcomes.popleft() if self.outcomes else "succeeded"
        self._timers.after(self.training_seconds, lambda: self._end(job.id, outcome))
        return job

    def create_job_late(self, seconds: float, **parameters: Any) -> None:
        """Takes a creation whose caller is gone by the time it lands."""
        self._timers.after(seconds, lambda: self.create_job(**parameters))

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
        self.ended(self.jobs[job_id])

    def _take(self, what: str) -> None:
        if what in self.limits:
            self.limits[what].take(self._timers.clock.now())

    def _is_listed(self, thing_id: str) -> bool:
        return self._listed_from[thing_id] <= self._timers.clock.now()
