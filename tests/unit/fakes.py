"""In-memory doubles of what a run needs; the contract tests hold each to the behaviour of the real adapter."""

import hashlib
import itertools
import json
from dataclasses import dataclass, replace

from tunedrop import clock
from tunedrop.bucket import ListedObject, StoredObject
from tunedrop.errors import Denied, Missing, Superseded, Transient
from tunedrop.executions import Execution, execution_name
from tunedrop.ledger import UnknownRun
from tunedrop.limits import Book, Slot, milliseconds
from tunedrop.pages import Page
from tunedrop.provider import ProviderFile, ProviderJob
from tunedrop.providers import PROFILES
from tunedrop.runs import FINAL, Run
from tunedrop.sweep_ledger import Sweep, Unsettled

PAGE = 2
"""Items of a page: few, so that whoever reads one page alone is noticed."""


class FakeTime:
    """Stands in for the module ``time`` in ``tunedrop.clock``: passes only when a test says so."""

    def __init__(self, at):
        self.at = at

    def time(self):
        return self.at

    def advance(self, seconds):
        self.at += seconds


class FakeSecret:
    """A secret of the given values: one more of them is known each time it is fetched afresh."""

    def __init__(self, *values):
        self._values = list(values)
        self.fetched = 0

    def value(self, *, fresh=False):
        if fresh:
            self.fetched += 1
        return self._values[min(self.fetched, len(self._values) - 1)]


class Broken:
    """Hands every call on to ``whole``, except that ``method`` raises ``error``, so many ``times``.

    The first ``skip`` calls go through; ``after`` means that the call has its effect all the same.
    """

    def __init__(self, whole, method, error, *, times=1, skip=0, after=False):
        self._whole, self._method, self._error = whole, method, error
        self._times, self._skip, self._after = times, skip, after

    def __getattr__(self, name):
        found = getattr(self._whole, name)
        return self._failing(found) if name == self._method else found

    def _failing(self, found):
        def call(*arguments, **named):
            if self._skip or not self._times:
                self._skip = max(self._skip - 1, 0)
                return found(*arguments, **named)
            self._times -= 1
            if self._after:
                found(*arguments, **named)
            raise self._error

        return call


class MemoryLedger:
    def __init__(self):
        self._runs = {}
        self._claims = {}
        self._intents = {}
        self._plans = {}
        self._delivered = {}
        self._notes = {}
        self._jobs = {}
        self._called_back = set()
        self._objects = {}
        self._withdrawn = set()
        self._arrivals = {}
        self._executions = {}
        self._settled = set()
        self._sweep = None
        self._first_sweep = None
        self._left = {}
        self._spared = {}
        self._slots = {}
        self._books = {}
        self._places = {}
        self.tokens = {}

    def begin(self, run):
        run = self._runs.setdefault(run.run_id, run)
        place, at = (run.bucket, run.key, run.etag), clock.seconds(run.created_at)
        self._arrivals[place] = max(at, self._arrivals.get(place, at))
        return run

    def get(self, run_id):
        try:
            return self._runs[run_id]
        except KeyError:
            raise UnknownRun(run_id) from None

    def update(self, run_id, **fields):
        run = self.get(run_id)
        if not run.is_final:
            changed = {**run.document(), "updated_at": clock.timestamp(clock.now()), **fields}
            self._runs[run_id] = run = Run.from_document(changed)
        return run

    def finish(self, run_id, state, error, **fields):
        if state not in FINAL:
            raise ValueError(state)
        ended = {"error": {"code": error.code, "message": error.message} if error else None}
        return self.update(run_id, **fields, **ended, state=state, finished_at=clock.timestamp(clock.now()))

    def claim(self, content, run_id):
        holder = self._runs.get(self._claims.get(content, run_id))
        lost = holder and (holder.run_id, "create_job") in self._intents and not holder.job_id
        if holder is None or (holder.is_final and holder.state != "succeeded" and not lost):
            self._claims[content] = run_id
        return self._claims.setdefault(content, run_id)

    def intend(self, run_id, effect, lost=None):
        known = self._intents.get((run_id, effect))
        if known in (None, lost):
            self._intents[run_id, effect], known = clock.now(), None
        return known

    def abandon(self, run_id, effect):
        self._intents.pop((run_id, effect), None)

    def plan(self, run_id, parameters):
        self._plans[run_id] = dict(parameters)

    def planned(self, run_id):
        return dict(self._plans[run_id])

    def note(self, run_id, name, value):
        self.get(run_id)
        self._notes[run_id, name] = json.dumps(value)

    def noted(self, run_id, name):
        self.get(run_id)
        return json.loads(self._notes.get((run_id, name), "{}"))

    def join(self, job, run_id):
        if self._jobs.setdefault(job, run_id) is None:
            self._called_back.add(run_id)
        self._jobs[job] = run_id

    def call_back(self, job):
        run_id = self._jobs.setdefault(job)
        self._called_back.add(run_id)
        return self.tokens.get(run_id)

    def wait(self, run_id, token):
        """What the state machine does: it leaves its token, unless there has been a callback; whether it waits."""
        if run_id in self._called_back:
            return False
        self.tokens[run_id] = token
        return True

    def listen(self, run_id):
        self.get(run_id)
        self._called_back.discard(run_id)
        self.tokens.pop(run_id, None)

    def hold(self, run_id, bucket, key):
        self._objects.setdefault((bucket, key), set()).add(run_id)

    def withdraw(self, bucket, key, at):
        held = self._objects.get((bucket, key), set()) & self._runs.keys()
        runs = sorted(map(self._runs.get, held), key=lambda run: run.created_at)
        found = [
            run.run_id
            for run in runs
            if not run.is_final and max(clock.seconds(run.created_at), self._spared.get(run.run_id, 0)) < at
        ]
        self._withdrawn.update(found)
        self._called_back.update(found)
        return [(run_id, self.tokens.get(run_id)) for run_id in found]

    def spare(self, run_id, until):
        self.get(run_id)
        self._spared[run_id] = max(until, self._spared.get(run_id, 0))
        return run_id not in self._withdrawn

    def withdrawn(self, run_id):
        self.get(run_id)
        return run_id in self._withdrawn

    def reserved(self, run_id, use):
        self.get(run_id)
        return self._slots.get((run_id, use))

    def reserve(self, run_id, use, limit):
        self.get(run_id)
        noted = self._slots.get((run_id, use))
        if noted and noted.limit == limit.name and noted.cell < limit.cells:
            return noted
        at = milliseconds(clock.now())
        book = replace(self._book(limit, at), tickets=self._book(limit, at).tickets + 1)
        given = book.best_returned(limit, at)
        cell = given.cell if given else book.turn
        slot = Slot(limit.name, cell, max(given.at if given else book.frees[cell], at))
        returned = frozenset(one for one in book.returned - {given} if book.worth(one, limit, at))
        frees = max(book.frees[cell], slot.at + limit.spacing)
        self._books[limit.name] = replace(book, frees=_with(book.frees, cell, frees), returned=returned)
        self._slots[run_id, use] = slot
        return slot

    def admit(self, run_id, use, slot, limit, over):
        at = milliseconds(clock.now())
        book = self._book(limit, at)
        if book.opens[slot.cell] > at or book.closed_until > at:
            return max(book.opens[slot.cell], book.closed_until)
        self._books[limit.name] = replace(book, opens=_with(book.opens, slot.cell, over + limit.period))
        self._slots.pop((run_id, use), None)
        return 0

    def settle(self, slot, limit, over, at):
        book = self._books[limit.name]
        if book.opens[slot.cell] == over + limit.period:
            self._books[limit.name] = replace(book, opens=_with(book.opens, slot.cell, at + limit.period))

    def close(self, limit, until):
        book = self._books.get(limit.name, Book())
        self._books[limit.name] = replace(book, closed_until=max(until, book.closed_until))

    def closed_until(self, limit):
        return self._books.get(limit.name, Book()).closed_until

    def occupy(self, run_id, group, most):
        self.get(run_id)
        holders = self._places.setdefault(group, set())
        holders -= {other for other in holders if self._runs[other].is_final}
        if run_id not in holders and len(holders) >= most:
            return False
        holders.add(run_id)
        return True

    def release(self, run_id):
        self.get(run_id)
        for key in [key for key in self._slots if key[0] == run_id]:
            slot = self._slots.pop(key)
            book = self._books[slot.limit]
            self._books[slot.limit] = replace(book, returned=book.returned | {slot})
        for holders in (*self._places.values(), *self._objects.values()):
            holders.discard(run_id)

    def _book(self, limit, at):
        book = self._books.get(limit.name, Book())
        if (book.cells, book.period) != (limit.cells, limit.period):
            self._books[limit.name] = book = book.shaped(limit, at)
        return book

    def delivered(self, run_id):
        self.get(run_id)
        return frozenset(self._delivered.get(run_id, ()))

    def deliver(self, run_id, destination):
        self.get(run_id)
        self._delivered.setdefault(run_id, set()).add(destination)

    # What the sweeper asks

    def begin_sweep(self, seconds):
        if self._sweep and self._sweep.until >= clock.now():
            return None
        self._first_sweep = self._first_sweep or clock.now()
        self._sweep = Sweep(self._first_sweep, clock.now() + seconds, **json.loads(json.dumps(self._left)))
        return self._sweep

    def end_sweep(self, sweep):
        if self._sweep and self._sweep.until == sweep.until:
            self._left = {name: getattr(sweep, name) for name in ("cursors", "failing", "pass_began", "passed")}
            self._sweep = None

    def unsettled(self, cursor=None):
        found = sorted(self._runs.keys() - self._settled)
        after = [run_id for run_id in found if run_id > (cursor or "")]
        items = [
            Unsettled(self._runs[run_id], self._executions.get(run_id, 1), self._intents.get((run_id, "create_job")))
            for run_id in after[:PAGE]
        ]
        return Page(items, after[PAGE - 1] if len(after) > PAGE else None)

    def close_run(self, run_id):
        self.get(run_id)
        self._settled.add(run_id)

    def next_execution(self, run_id, number):
        self.get(run_id)
        if self._executions.get(run_id, 1) == number:
            self._executions[run_id] = number + 1
        return self._executions[run_id]

    def arrived(self, bucket, key, etag):
        return self._arrivals.get((bucket, key, etag))

    def run_of(self, job):
        return self._jobs.get(job)


class MemoryExecutions:
    """Executions that go on until a test ends them."""

    def __init__(self):
        self.found = {}

    def start(self, request, number=1):
        running = Execution("RUNNING", None, None)
        self.found.setdefault(execution_name(request.run_id, number), running)

    def end(self, name, status, error=None):
        self.found[name] = Execution(status, error, clock.now())

    def look(self, run_id, number=1):
        return self.found.get(execution_name(run_id, number))

    def running(self):
        return frozenset(name for name, execution in self.found.items() if execution.status == "RUNNING")


class MemoryTopic:
    def __init__(self):
        self.published = []

    def publish(self, subject, message, kind):
        self.published.append((kind, subject, json.loads(message["default"])))


def _with(values, index, value):
    return (*values[:index], value, *values[index + 1 :])


class MemoryBucket:
    def __init__(self):
        self.objects = {}
        self.modified = {}

    def put(self, key, body):
        """Drops an object; returns its eTag."""
        self.write(key, body, "")
        return self.etag(key)

    def etag(self, key):
        return hashlib.md5(self.objects[key], usedforsecurity=False).hexdigest()

    def delete(self, key):
        del self.objects[key]

    def open(self, key, etag=None):
        if len(key.encode()) > 1024:
            raise Transient("the bucket answered 500 InternalError")
        if key not in self.objects:
            raise Missing("object_missing", key)
        if etag and etag != self.etag(key):
            raise Superseded("object_changed", key)
        body = self.objects[key]
        chunks = (body[at : at + 7] for at in range(0, len(body), 7))
        return StoredObject(key, self.etag(key), len(body), chunks, self.modified.get(key, 0))

    def listed(self, prefix, cursor=None):
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > (cursor or ""))
        items = [
            ListedObject(key, self.etag(key), len(self.objects[key]), self.modified.get(key, 0)) for key in keys[:PAGE]
        ]
        return Page(items, items[-1].key if len(keys) > PAGE else None)

    def peek(self, key, count, etag=None):
        stored = self.open(key, etag)
        return self.objects[key][:count], stored.size

    def write(self, key, body, content_type):
        self.objects[key] = body
        self.modified[key] = clock.now()

    def write_stream(self, key, chunks, content_type):
        self.write(key, b"".join(chunks), content_type)


class MemoryRegistry:
    """Services by name, the first of them the default."""

    def __init__(self, **providers):
        self.providers = providers
        self.default = next(iter(providers))

    def of(self, name):
        return self.providers[name or self.default]

    def configured(self):
        return {name: provider.profile for name, provider in self.providers.items()}


class MemoryProvider:
    """A fine-tuning service whose jobs change when a test says so, and are listed ``lag`` seconds late."""

    profile = PROFILES["openai"]
    at_home = True

    def __init__(self, lag=0):
        self.lag = lag
        self.contents = {}
        self.jobs = {}
        self.models = {}
        self.requests = []
        self.left = {}  # the checkpoints of each job
        self.asked = []
        self._files = {}
        self._numbers = itertools.count(1)

    def set_file(self, file_id, **changes):
        self._files[file_id] = replace(self._files[file_id], **changes)

    def set_job(self, job_id, **changes):
        self.jobs[job_id] = replace(self.jobs[job_id], **changes)

    def model(self, name):
        return self.models.get(name)

    def files_named(self, name):
        return sorted((f for f in self._files.values() if f.name == name), key=lambda f: (f.created_at, f.id))

    def upload(self, name, chunks, size):
        content = b"".join(chunks)
        assert len(content) == size
        file = ProviderFile(f"file-{next(self._numbers)}", name, size, "processed", int(clock.now()))
        self._files[file.id], self.contents[file.id] = file, content
        return file

    def file(self, file_id):
        return self._files[file_id]

    def delete_file(self, file_id):
        self._files.pop(file_id, None)

    def jobs_on(self, training_file):
        listed = [job for job in self.jobs.values() if job.created_at + self.lag <= clock.now()]
        return sorted((j for j in listed if j.training_file == training_file), key=lambda j: (j.created_at, j.id))

    def files_listed(self, cursor=None):
        return _after(cursor, sorted(self._files.values(), key=lambda f: (-f.created_at, f.id)))

    def jobs_listed(self, cursor=None):
        listed = [job for job in self.jobs.values() if job.created_at + self.lag <= clock.now()]
        return _after(cursor, sorted(listed, key=lambda j: (-j.created_at, j.id)))

    def create_job(self, *, model, training_file, **parameters):
        self.requests.append({"model": model, "training_file": training_file, **parameters})
        job = ProviderJob(
            id=f"ftjob-{next(self._numbers)}",
            status="validating_files",
            model=model,
            training_file=training_file,
            created_at=int(clock.now()),
            estimated_finish=None,
            fine_tuned_model=None,
            trained_tokens=None,
            error_code=None,
            error_message=None,
            result_files=(),
            document={"object": "fine_tuning.job", "metadata": parameters.get("metadata")},
        )
        self.jobs[job.id] = job
        return job

    def job(self, job_id):
        return self.jobs[job_id]

    def cancel_job(self, job_id):
        if self.jobs[job_id].status not in ("succeeded", "failed", "cancelled"):
            self.set_job(job_id, status="cancelled")
        return self.jobs[job_id]

    def events(self, job_id):
        return [{"message": f"Created fine-tuning job: {job_id}"}]

    def checkpoints(self, job_id):
        return self.left.get(job_id, [])

    def content(self, file_id):
        return self.contents[file_id]

    def chunks(self, file_id):
        content = self.contents[file_id]
        return (content[at : at + 7] for at in range(0, len(content), 7))

    def ask(self, model, prompt, max_tokens):
        self.asked.append((model, prompt, max_tokens))
        return f"{model} was asked: {prompt}"


def _after(cursor, items):
    """A page of things with ids, and where the next begins."""
    ids = [item.id for item in items]
    if cursor is not None and cursor not in ids:
        raise Denied("http_404", f"no such place: {cursor}")
    page = items[ids.index(cursor) + 1 if cursor else 0 :][:PAGE]
    return Page(page, page[-1].id if page and page[-1].id != ids[-1] else None)


@dataclass(frozen=True)
class FakeContext:
    """What of Lambda's context object is looked at."""

    function_name: str
    memory_limit_in_mb: int = 512
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:123456789012:function:test"
    aws_request_id: str = "52fdfc07-2182-454f-963f-5f0f9a621d72"

    def get_remaining_time_in_millis(self) -> int:
        return 900_000
