"""Creating the job: the one step that costs money, and therefore happens once."""

from __future__ import annotations

import logging

from tunedrop.clock import now, seconds
from tunedrop.deletion import dataset_deleted
from tunedrop.errors import Denied, Rejected, Throttled, Unauthorised
from tunedrop.ledger import Ledger
from tunedrop.provider import Provider, ProviderFile, ProviderJob
from tunedrop.runs import Run
from tunedrop.steps import Done, Wait, next_look_seconds

EFFECT = "create_job"
PROCESSING_PAUSE_SECONDS = 5
LONGEST_PROCESSING_SECONDS = 3600
LAST_LOOK_SECONDS = 900
"""A creation whose outcome is unknown is looked for so long before it is repeated: it can land after the client's
time-out, and listings lag behind."""


_logger = logging.getLogger("tunedrop")


def create_job(run: Run, *, provider: Provider, ledger: Ledger) -> Wait | Done:
    """Makes sure that exactly one job trains on the run's file.

    Looks before it creates. An intent in the ledger, written under a condition before the creating call, tells an
    attempt that died in the middle from one that never was: after such a one nothing is created until the last look is
    over.

    Raises:
        Rejected, Denied, Throttled, Unauthorised: the service refused; nothing was created.
        Cancelled: the dataset was deleted; nothing was created.
        UnknownOutcome: the service may have created it; the next call looks for it.
        Transient: looking failed.
    """
    if run.job_id:
        return Done("training")
    assert run.file_id is not None, "the upload step records the file before it lets the run go on"  # noqa: S101
    if not _processed(provider.file(run.file_id)):
        return Wait(_processing_pause(now() - seconds(run.updated_at)), run.state)

    jobs = provider.jobs_on(run.file_id)
    if jobs:
        return _record(run, keep_oldest(jobs, provider), provider, ledger)

    since = ledger.intend(run.run_id, EFFECT)
    if since is not None:
        pause = next_look_seconds(since, LAST_LOOK_SECONDS)
        if pause is not None:
            return Wait(pause, run.state)
        ledger.abandon(run.run_id, EFFECT)
        ledger.intend(run.run_id, EFFECT)
    if ledger.withdrawn(run.run_id):
        ledger.abandon(run.run_id, EFFECT)
        raise dataset_deleted()
    try:
        job = provider.create_job(**ledger.planned(run.run_id))
    except (Rejected, Denied, Throttled, Unauthorised):
        ledger.abandon(run.run_id, EFFECT)  # refused for certain
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


def _processed(file: ProviderFile) -> bool:
    if file.status in ("error", "failed"):
        raise Rejected("file_not_processed", "the fine-tuning service could not process the uploaded dataset")
    # Not every service says "processed"; one that never does must not keep the run waiting for ever.
    return file.status not in ("uploaded", "pending", "running") or now() - file.created_at > LONGEST_PROCESSING_SECONDS


def _record(run: Run, job: ProviderJob, provider: Provider, ledger: Ledger) -> Done:
    ledger.join(f"{provider.profile.name}/{job.id}", run.run_id)
    ledger.update(run.run_id, state="training", job_id=job.id)
    return Done("training")
