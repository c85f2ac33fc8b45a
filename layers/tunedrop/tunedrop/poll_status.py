"""Polling: how a job is doing, and when to ask again."""

from __future__ import annotations

import logging

from tunedrop.clock import now
from tunedrop.deletion import dataset_deleted
from tunedrop.errors import Cancelled, Denied, Rejected, Unauthorised
from tunedrop.ledger import Ledger
from tunedrop.provider import Provider, ProviderJob
from tunedrop.refusals import recognise, without_quotations
from tunedrop.runs import Run
from tunedrop.settings import PollSettings
from tunedrop.steps import Done, Wait
from tunedrop.texts import DELAYED

SHORTEST_PAUSE_SECONDS = 15
SHORTEST_PAUSE_NEAR_THE_END_SECONDS = 30
LONGEST_PAUSE_SECONDS = 900

UNDER_WAY = ("validating_files", "queued", "running", "paused")
QUEUED = ("validating_files", "queued", "pending")
"""Names of a job's state before it runs; not every service has each."""
ENDED = ("succeeded", "failed", "cancelled")
LONG_IN_THE_QUEUE_SECONDS = 86_400
SAID_AGAIN_SECONDS = 300
"""A notice that a step has noted and then died with is said again within that time, and never after it."""

_logger = logging.getLogger("tunedrop")


def poll_status(run: Run, settings: PollSettings, *, provider: Provider, ledger: Ledger) -> Wait | Done:
    """Reads the job's state; waits while it is under way, which an unknown status counts as.

    Where the service calls back when the job ends, the next poll is only a heartbeat, in case the callback is lost.

    Raises:
        Denied: the job failed; the service's own code and sentence are in it.
        Cancelled: somebody cancelled it at the service, or its dataset was deleted, which cancels it.
        Transient, Throttled, Unauthorised: its state could not be read, which says nothing about the job. It is paid
            for and goes on: a refusal to tell of it, of whatever kind, is the operator's to mend until the deadline.
    """
    assert run.job_id is not None, "the creation step records the job before it lets the run go on"  # noqa: S101 - ours to keep
    ledger.listen(run.run_id)  # before the look: what calls back after it is not to be missed
    withdrawn = ledger.withdrawn(run.run_id)
    try:
        job = provider.job(run.job_id)
        if withdrawn and job.status not in ENDED:
            job = provider.cancel_job(job.id)
    except (Denied, Rejected) as error:
        raise Unauthorised(f"the fine-tuning service tells nothing of the job {run.job_id} ({error.code})") from None
    if job.status == "succeeded" and job.fine_tuned_model:
        ledger.update(run.run_id, fine_tuned_model=job.fine_tuned_model, trained_tokens=job.trained_tokens)
        return Done("succeeded", job.fine_tuned_model)
    if job.status == "failed":
        said = without_quotations(job.error_message or "")
        if refusal := recognise([job.error_code], said):
            raise Denied(refusal.code, refusal.error(f": {said}" if said else "").message)
        raise Denied(
            job.error_code or "job_failed", said or "the fine-tuning service failed the job and gave no reason"
        )
    if job.status == "cancelled" and withdrawn:
        raise dataset_deleted()
    if job.status == "cancelled":
        raise Cancelled(
            "job_cancelled",
            "the job was cancelled at the fine-tuning service, by somebody who has access to it there; "
            "drop the file again to train on it after all",
        )
    if job.status not in (*UNDER_WAY, *provider.profile.under_way, "succeeded"):
        _logger.error("the job %s has the unknown status %s", job.id, job.status, extra={"alarm": "unknown_status"})
    heartbeat = settings.callback_heartbeat_minutes * 60 if provider.profile.calls_back else 0
    return Wait(heartbeat or pause_seconds(job), "training", _notice(run, job, ledger))


def _notice(run: Run, job: ProviderJob, ledger: Ledger) -> str | None:
    if job.status not in QUEUED or now() - job.created_at <= LONG_IN_THE_QUEUE_SECONDS:
        return None
    since = ledger.intend(run.run_id, f"tell_{DELAYED}")
    return DELAYED if since is None or now() - since < SAID_AGAIN_SECONDS else None


def pause_seconds(job: ProviderJob) -> float:
    """Seconds until the next poll.

    Without an estimate a third of the job's age: short at first, growing. With one, half of what is left, so that the
    polls draw closer as the end does; past the estimate, half of what it is overdue. At most 15 minutes, and at least a
    hundredth of the job's age: an estimate that is always a minute ahead must not make a week of polls.
    """
    age = now() - job.created_at
    if job.estimated_finish:
        distance = abs(job.estimated_finish - now())
        shortest = max(SHORTEST_PAUSE_NEAR_THE_END_SECONDS, age / 100)
        return min(max(distance / 2, shortest), LONGEST_PAUSE_SECONDS)
    return min(max(age / 3, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
