"""Creating the job: the one step that costs money, and therefore happens once."""

from __future__ import annotations

import logging

from tunedrop.clock import now, seconds
from tunedrop.deletion import dataset_deleted
from tunedrop.errors import Denied, NotYet, Rejected, Throttled, Transient, Unauthorised
from tunedrop.ledger import CREATE_JOB, Ledger
from tunedrop.limits import JOBS, in_turn, limit_of, refuse_before_turn
from tunedrop.provider import Provider, ProviderFile, ProviderJob
from tunedrop.runs import Run
from tunedrop.steps import Done, Wait, next_look_seconds

PROCESSING_PAUSE_SECONDS = 5
LONGEST_PROCESSING_SECONDS = 3600
LAST_LOOK_SECONDS = 900
"""A creation whose outcome is unknown is looked for so long before it is repeated: it can land after the client's
time-out, and listings lag behind."""
LONGEST_CALL_SECONDS = 150
"""The function is ended before that, and with it the call."""
SHORTEST_PLACE_PAUSE_SECONDS = 15
LONGEST_PLACE_PAUSE_SECONDS = 600


_logger = logging.getLogger("tunedrop")


def create_job(run: Run, *, provider: Provider, ledger: Ledger) -> Wait | Done:
    """Makes sure that exactly one job trains on the run's file.

    Looks before it creates. An intent in the ledger, written under a condition before the creating call, tells an
    attempt that died in the middle from one that never was: after such a one nothing is created until the last look is
    over.

    Raises:
        Rejected, Denied, Throttled, Unauthorised: the service refused; nothing was created.
        NotYet: the service's limit is used up for now; the run has its turn.
        Cancelled: the dataset was deleted; nothing was created.
        UnknownOutcome: the service may have created it; the next call looks for it.
        Transient: looking failed, or the ledger; nothing was created.
    """
    if run.job_id:
        return Done("training")
    refuse_before_turn(run.run_id, CREATE_JOB, ledger)
    assert run.file_id is not None, "the upload step records the file before it lets the run go on"  # noqa: S101 - ours to keep
    if not _processed(provider.file(run.file_id)):
        return Wait(_processing_pause(now() - seconds(run.updated_at)), run.state)

    jobs = provider.jobs_on(run.file_id)
    if jobs:
        return _record(run, keep_oldest(jobs, provider), provider, ledger)

    most = provider.profile.concurrent_jobs
    if most and not ledger.occupy(run.run_id, provider.profile.name, most):
        if ledger.withdrawn(run.run_id):
            raise dataset_deleted()
        return Wait(_place_pause(now() - seconds(run.updated_at)), run.state)

    since = ledger.intend(run.run_id, CREATE_JOB)
    while since is not None:
        pause = next_look_seconds(since, LAST_LOOK_SECONDS)
        if pause is not None:
            return Wait(pause, run.state)
        # Another attempt may have come this far, too: one of them goes on, the other sees its intent.
        since = ledger.intend(run.run_id, CREATE_JOB, lost=since)
    if ledger.withdrawn(run.run_id):
        ledger.abandon(run.run_id, CREATE_JOB)
        raise dataset_deleted()
    try:
        parameters = ledger.planned(run.run_id)
        limit = limit_of(provider.profile, JOBS, parameters["model"])
        with in_turn(run.run_id, CREATE_JOB, limit, LONGEST_CALL_SECONDS, ledger):
            job = provider.create_job(**parameters)
    except (NotYet, Transient, Rejected, Denied, Throttled, Unauthorised):
        ledger.abandon(run.run_id, CREATE_JOB)  # refused for certain, or never asked for
        raise
    return _record(run, job, provider, ledger)


def keep_oldest(jobs: list[ProviderJob], provider: Provider) -> ProviderJob:
    """The first of the jobs on a run's file, oldest first; any other is one too many, and is cancelled."""
    kept, *surplus = jobs
    for job in surplus:
        _logger.warning("job %s trains on the same file as %s, one too many: it is cancelled", job.id, kept.id)
        provider.cancel_job(job.id)
    return kept


def _processing_pause(age: float) -> float:
    # Growing, lest an hour of it fill the history of the execution; and it ends when the patience does.
    return max(PROCESSING_PAUSE_SECONDS, min(age / 60, LONGEST_PROCESSING_SECONDS - age))


def _place_pause(waited: float) -> float:
    # A job that is in the way takes a while: the longer it has, the longer it may.
    return min(max(waited / 10, SHORTEST_PLACE_PAUSE_SECONDS), LONGEST_PLACE_PAUSE_SECONDS)


def _processed(file: ProviderFile) -> bool:
    if file.status in ("error", "failed"):
        raise Rejected("file_not_processed", "the fine-tuning service could not process the uploaded dataset")
    # Not every service says "processed"; one that never does must not keep the run waiting for ever.
    return file.status not in ("uploaded", "pending", "running") or now() - file.created_at > LONGEST_PROCESSING_SECONDS


def _record(run: Run, job: ProviderJob, provider: Provider, ledger: Ledger) -> Done:
    ledger.join(f"{provider.profile.name}/{job.id}", run.run_id)
    ledger.update(run.run_id, state="training", job_id=job.id)
    return Done("training")
