"""Reconciling: what ledger, executions, fine-tuning services and bucket should agree on, compared and mended.

Every effect of a run is guarded where it is brought about; the sweeper finds what these guards cannot see: an event
that never came, an execution that somebody ended, a job whose creation showed only after the run had ended.

It mends what is safe and reports the rest. What changed within ``SAFETY_SECONDS`` is left to whoever is at it still. It
creates no job, and touches neither a run that its ledger does not know nor what belongs to one: another stack may use
the same account.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tunedrop.bucket import Bucket, ListedObject
from tunedrop.clock import now, seconds, timestamp
from tunedrop.errors import Final, Throttled, Transient, TunedropError, Unauthorised
from tunedrop.events import DATASET, VALIDATION, ObjectEvent
from tunedrop.executions import Execution, execution_name
from tunedrop.ledger import CREATE_JOB, UnknownRun
from tunedrop.pages import Page
from tunedrop.poll_status import ENDED
from tunedrop.provider import Provider, ProviderFile, ProviderJob, Registry
from tunedrop.runs import ADAPTERS, Run, RunRequest, adapter_name, results_key, swept_run_id
from tunedrop.sweep_ledger import Sweep, SweepLedger, Unsettled
from tunedrop.texts import MODEL_FOUND, message_of, subject_of
from tunedrop.topic import Topic

SAFETY_SECONDS = 900
"""As long as a function may run at most (template.yaml): what changed within it may be under way still. An event has so
much time to come in, and a job is cancelled only when it is older."""
DAY = 86_400
LOOK_BACK_SECONDS = DAY
"""How far before its last pass the bucket is looked through again: a store may date a large object by the beginning of
its upload, and what could not be started is tried again."""
CLOCKS_DIFFER_SECONDS = 60
LOOKED_FOR_SECONDS = 30 * DAY
"""How old a job may be that has succeeded unnoticed: no run lasts as long."""
EXECUTIONS_KEPT_SECONDS = 80 * DAY
"""Step Functions forgets an execution 90 days after its end."""
PATIENT_EXECUTIONS = 3
"""A run that so many executions have not ended needs a person."""
RESERVE_SECONDS = 90
"""Time kept for the call that is under way, which may take a minute, and for the report."""
LEASE_SECONDS = 960
"""A little more than the function may take: a sweep that died does not hold up the next."""
LISTED_IN_THE_REPORT = 200
REPORT = results_key("_sweeps", "latest.json")

_OUR_FILE = re.compile(rf"([0-9a-f]{{32}})(?:{re.escape(VALIDATION)}|{re.escape(DATASET)})")

_logger = logging.getLogger("tunedrop")


class Executions(Protocol):
    """The executions of one state machine; see :class:`~tunedrop.executions.StepFunctionsExecutions`."""

    def start(self, request: RunRequest, number: int = 1) -> None:
        """Starts the run's execution of that number, or does nothing where it was started before."""

    def look(self, run_id: str, number: int = 1) -> Execution | None:
        """The run's execution of that number; None where there is none, or none any more."""

    def running(self) -> frozenset[str]:
        """The names of all executions that run."""


@dataclass(frozen=True, slots=True)
class Notifications:
    """What of the bucket starts a run: nothing else has an event that could be lost.

    The keys of datasets begin with ``prefix`` and end in ``suffix``; ``adapters`` says whether any are published.
    """

    bucket: str
    prefix: str = ""
    suffix: str = ""
    adapters: bool = False


@dataclass(slots=True)
class Report:
    """What a sweep has found, by kind: counts of all, and of the first ones the ids. Never data."""

    counts: Counter[str] = field(default_factory=Counter)
    found: list[dict[str, Any]] = field(default_factory=list)
    needs_a_person: bool = False

    def add(self, kind: str, *, alarm: bool = False, **ids: Any) -> None:
        """Adds a finding; ``alarm`` where a person must look at it."""
        self.counts[kind] += 1
        self.needs_a_person |= alarm
        if len(self.found) < LISTED_IN_THE_REPORT:
            self.found.append({"kind": kind, "alarm": alarm, **ids})


def reconcile(
    notifications: Notifications,
    *,
    bucket: Bucket,
    ledger: SweepLedger,
    executions: Executions,
    adapters: Executions,
    providers: Registry,
    topic: Topic,
    seconds_left: Callable[[], float],
) -> dict[str, Any]:
    """Sweeps once, and answers the counts of what was found; ``{"skipped": True}`` where another sweep is at it.

    Of runs that publish adapters the executions are in ``adapters``, of all others in ``executions``.

    Runs come first, since a stuck one holds up everything; then jobs, which cost money; lost events; and at last files.
    Each listing has its share of ``seconds_left`` and, where that is not enough, is gone on with by the next sweep. One
    that fails does not stop the others; it is reported.
    """
    sweep = ledger.begin_sweep(LEASE_SECONDS)
    if sweep is None:
        return {"skipped": True}
    sweeper = _Sweeper(notifications, bucket, ledger, executions, adapters, providers, topic, seconds_left, sweep)
    try:
        sweeper.sweep()
        return _tell(sweeper.report, bucket)
    finally:
        ledger.end_sweep(sweep)


def _tell(report: Report, bucket: Bucket) -> dict[str, Any]:
    document = {"at": timestamp(now()), "counts": dict(report.counts), "found": report.found}
    try:
        bucket.write(REPORT, json.dumps(document, indent=2).encode(), "application/json")
    except TunedropError as error:
        report.add("failed", alarm=True, what="report", error=type(error).__name__)
    counts = dict(report.counts)
    if report.needs_a_person:
        _logger.error("the sweep found what a person must look at: see %s", REPORT, extra={"alarm": "sweep", **counts})
    else:
        _logger.info("swept", extra=counts)
    return {"counts": counts, "needs_a_person": report.needs_a_person}


def is_published(run: Run, execution: Execution) -> bool:
    """Whether an execution that is over has published the final state: it ends after that, and says which it was."""
    return execution.status == "SUCCEEDED" or (execution.status == "FAILED" and execution.error == run.state)


def judge_job(run: Run, job: ProviderJob) -> str | None:
    """What is wrong with a job that carries the mark of ``run``; None where nothing is.

    ``surplus_job``: one more than the run's own. ``unwanted_job``: under way, and its run has ended. ``model_found``:
    it has succeeded, and its run has ended without it.
    """
    if now() - job.created_at < SAFETY_SECONDS:
        return None
    under_way = job.status not in ENDED
    if not under_way and not (job.status == "succeeded" and job.fine_tuned_model):
        return None
    own = job.id == run.job_id
    if not run.is_final:
        # While it has no job, its execution looks for one, and keeps the oldest.
        return "surplus_job" if run.job_id and not own else None
    if _age(run.finished_at) < SAFETY_SECONDS:
        return None
    if run.state == "succeeded":
        return None if own else "surplus_job"
    return "unwanted_job" if under_way else "model_found"


def is_orphan(run: Run, file: ProviderFile) -> bool:
    """Whether a file that no job uses can be deleted: its run has ended, and both are older than a day."""
    return _age(run.finished_at) > DAY and now() - file.created_at > DAY


def _age(at: str | None) -> float:
    """Seconds since then; of what has not come about, such as the end of a run under way, none."""
    return now() - seconds(at) if at else 0.0


@dataclass(slots=True)
class _Sweeper:
    notifications: Notifications
    bucket: Bucket
    ledger: SweepLedger
    executions: Executions
    adapters: Executions
    providers: Registry
    topic: Topic
    seconds_left: Callable[[], float]
    begun: Sweep
    report: Report = field(default_factory=Report)
    _failing: frozenset[str] = frozenset()
    _stop_at: float = 0.0

    def __post_init__(self) -> None:
        self._failing, self.begun.failing = frozenset(self.begun.failing), []

    def sweep(self) -> None:
        names = self._configured()
        used: dict[str, set[str]] = {}  # by service whose jobs were listed to the end: the files that they use
        sections: list[Callable[[], None]] = [
            self._runs,
            *(lambda name=name: self._jobs(name, used) for name in names),
            self._objects,
            *(lambda name=name: self._files(name, used) for name in names),
        ]
        for position, section in enumerate(sections):
            left = self.seconds_left()
            self._stop_at = left - (left - RESERVE_SECONDS) / (len(sections) - position)
            section()

    def _configured(self) -> list[str]:
        try:
            return list(self.providers.configured())
        except TunedropError as error:
            self._failed("providers", error)
            return []

    # Reading to the end, or as far as there is time

    def _through[Item](
        self, name: str, listed: Callable[[str | None], Page[Item]], look: Callable[[Item], None]
    ) -> bool:
        """Looks at each item of a listing, from where it was left; whether its end was reached."""
        cursors = self.begun.cursors
        try:
            while self.seconds_left() >= self._stop_at:
                page = listed(cursors.get(name))
                for item in page.items:
                    if self.seconds_left() < self._stop_at:
                        break
                    self._each(name, look, item)
                else:
                    if page.cursor is None:
                        cursors.pop(name, None)
                        return True
                    cursors[name] = page.cursor
        except Final as error:  # where it was left may be no place any more
            cursors.pop(name, None)
            self._failed(name, error)
        except TunedropError as error:
            self._failed(name, error)
        else:
            self.report.add("not_finished", what=name)
        return False

    def _each[Item](self, name: str, look: Callable[[Item], None], item: Item) -> None:
        try:
            look(item)
        except (Throttled, Unauthorised):
            raise  # of the whole service, not of the item
        except TunedropError as error:
            self._failed(name, error)

    def _failed(self, what: str, error: TunedropError) -> None:
        # What passes is no affair of a person's before it has failed in two sweeps.
        lasting = what in self._failing or not isinstance(error, Transient | Throttled)
        if what not in self.begun.failing:
            self.begun.failing.append(what)
        self.report.add("failed", alarm=lasting, what=what, error=type(error).__name__)

    # Runs

    def _runs(self) -> None:
        try:
            running = self.executions.running() | self.adapters.running()
        except TunedropError as error:
            self._failed("executions", error)
            return
        self._through("runs", self.ledger.unsettled, lambda found: self._run(found, running))

    def _run(self, found: Unsettled, running: frozenset[str]) -> None:
        run, number = found.run, found.executions
        if execution_name(run.run_id, number) in running or _age(run.updated_at) < SAFETY_SECONDS:
            return
        execution = self._machine_of(run).look(run.run_id, number)
        if execution is None:
            if run.is_final and _age(run.finished_at) > EXECUTIONS_KEPT_SECONDS:
                self._settle(run, found.creating_since)
            else:
                self._go_on(run, number)
        elif execution.stopped_at is not None and now() - execution.stopped_at >= SAFETY_SECONDS:
            run = self.ledger.get(run.run_id)  # after its execution's end: nothing more comes of that
            if run.is_final and is_published(run, execution):
                self._settle(run, found.creating_since)
            else:
                self._go_on(run, self.ledger.next_execution(run.run_id, number))

    def _go_on(self, run: Run, number: int) -> None:
        """A new execution takes the run up where it stands; of one that has ended it tells the end once more."""
        if run.is_final:
            self.ledger.release(run.run_id)  # the machine may have ended it by itself, without its last step
        self._machine_of(run).start(RunRequest.of(run), number)
        kind = "unpublished_run" if run.is_final else "stuck_run"
        self.report.add(kind, alarm=number > PATIENT_EXECUTIONS, run_id=run.run_id, execution=number)

    def _machine_of(self, run: Run) -> Executions:
        """Where the run's executions are, as the webhook decides it."""
        return self.adapters if adapter_name(run.key) else self.executions

    def _settle(self, run: Run, creating_since: float | None) -> None:
        self.ledger.release(run.run_id)
        if creating_since is not None and run.job_id is None:
            if _age(run.finished_at) < DAY:
                return
            self.ledger.abandon(run.run_id, CREATE_JOB)
            self.report.add("creation_without_a_job", run_id=run.run_id)
        self.ledger.close_run(run.run_id)

    # Jobs

    def _jobs(self, name: str, used: dict[str, set[str]]) -> None:
        files: set[str] = set()
        try:
            provider = self.providers.of(name)
        except TunedropError as error:
            self._failed(f"jobs of {name}", error)
            return

        def look(job: ProviderJob) -> None:
            files.update((job.training_file, str(job.document.get("validation_file"))))
            self._job(name, provider, job)

        section = f"jobs of {name}"
        from_the_start = section not in self.begun.cursors
        if self._through(section, provider.jobs_listed, look) and from_the_start:
            used[name] = files

    def _job(self, name: str, provider: Provider, job: ProviderJob) -> None:
        if job.status in ENDED and not (job.status == "succeeded" and now() - job.created_at < LOOKED_FOR_SECONDS):
            return
        run_id = self._run_of(name, provider, job)
        run = self._known(run_id, name) if run_id else None
        kind = judge_job(run, job) if run else None
        if run is None or kind is None:
            return
        ids: Mapping[str, Any] = {"provider": name, "run_id": run.run_id, "job_id": job.id}
        if job.status not in ENDED:
            job = provider.cancel_job(job.id)
            if job.status != "succeeded":
                self.report.add(kind, alarm=kind == "surplus_job", **ids)
                return
            kind = judge_job(run, job) or kind  # it was quicker
        if self.ledger.noted(run.run_id, f"told {job.id}"):
            return
        if kind == "model_found":
            told = replace(run, job_id=job.id, fine_tuned_model=job.fine_tuned_model, trained_tokens=job.trained_tokens)
            self.topic.publish(subject_of(told, MODEL_FOUND), message_of(told, MODEL_FOUND), MODEL_FOUND)
        self.ledger.note(run.run_id, f"told {job.id}", {"at": now()})
        self.report.add(kind, alarm=True, fine_tuned_model=job.fine_tuned_model, **ids)

    def _run_of(self, name: str, provider: Provider, job: ProviderJob) -> str | None:
        """The id of the run whose mark a job carries: in its metadata, or as its training file's name."""
        if provider.profile.takes_metadata:
            run_id = (job.document.get("metadata") or {}).get("run_id")
            return run_id if isinstance(run_id, str) else None
        known = self.ledger.run_of(f"{name}/{job.id}")
        if known:
            return known
        try:
            ours = _OUR_FILE.fullmatch(provider.file(job.training_file).name)
        except Final:
            return None  # the file is gone, and nobody knows whose it was
        return ours[1] if ours else None

    def _known(self, run_id: str, name: str) -> Run | None:
        """The run, if it is this stack's and was made at this service."""
        try:
            run = self.ledger.get(run_id)
        except UnknownRun:
            self.report.counts["of_another_stack"] += 1
            return None
        return run if (run.provider or self.providers.default) == name else None

    # Lost events

    def _objects(self) -> None:
        sweep = self.begun
        if "objects" not in sweep.cursors:
            sweep.pass_began = now()
        # What was there before the first sweep is never started: its runs, if it had any, may not have been noted.
        since = max(sweep.first_at, sweep.passed - LOOK_BACK_SECONDS)
        if self._through("objects", self._listed, lambda found: self._object(found, since)):
            sweep.passed = sweep.pass_began

    def _listed(self, cursor: str | None) -> Page[ListedObject]:
        """The datasets, and then the adapters where they do not lie among them; the cursor is the last key."""
        prefix = self.notifications.prefix
        if ADAPTERS.startswith(prefix):
            return self.bucket.listed(prefix, cursor)
        if cursor and cursor.startswith(ADAPTERS):
            return self.bucket.listed(ADAPTERS, cursor)
        page = self.bucket.listed(prefix, cursor)
        return replace(page, cursor=page.cursor or ADAPTERS)

    def _object(self, found: ListedObject, since: float) -> None:
        bucket = self.notifications.bucket
        event = ObjectEvent(bucket, found.key, found.etag, found.size, "", created=True)
        if event.why_ignored(bucket, self.notifications.prefix, self.notifications.suffix):
            return
        if event.brings_adapter and not self.notifications.adapters:
            return
        if not since <= found.modified_at <= now() - SAFETY_SECONDS:
            return
        begun_at = self.ledger.arrived(bucket, found.key, found.etag)
        if begun_at is not None and begun_at > found.modified_at - CLOCKS_DIFFER_SECONDS:
            return
        run_id = swept_run_id(bucket, found.key, found.etag, found.modified_at)
        request = RunRequest(run_id, bucket, found.key, found.etag, found.size)
        run = self.ledger.begin(Run.of(request))  # before it is started: its event, should it come now, finds it
        self._machine_of(run).start(request)
        self.report.add("lost_event", run_id=run_id, key=found.key)

    # Files

    def _files(self, name: str, used: dict[str, set[str]]) -> None:
        if name not in used:
            return  # a job that was not seen may use any of them
        provider = self.providers.of(name)
        orphans: list[ProviderFile] = []

        def look(file: ProviderFile) -> None:
            ours = _OUR_FILE.fullmatch(file.name)
            if ours is None or file.id in used[name]:
                return
            run = self._known(ours[1], name)
            if run and is_orphan(run, file):
                orphans.append(file)

        def delete(file: ProviderFile) -> None:
            provider.delete_file(file.id)
            self.report.add("orphaned_file", provider=name, file_id=file.id)

        section = f"files of {name}"
        self._through(section, provider.files_listed, look)
        for file in orphans:  # after the listing, which goes on from the last file of a page
            if file.id != self.begun.cursors.get(section) and self.seconds_left() > RESERVE_SECONDS:
                self._each(section, delete, file)
