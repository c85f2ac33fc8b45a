"""Collecting: whatever became of the run, bring its results home and write its final state."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tunedrop.bucket import Bucket
from tunedrop.create_job import keep_oldest
from tunedrop.errors import Final, TunedropError, Unauthorised
from tunedrop.fetch_adapter import fetch_config, fetch_weights, find_adapter
from tunedrop.ledger import Ledger
from tunedrop.metrics import training_loss
from tunedrop.provider import Provider, ProviderJob
from tunedrop.runs import CONFIG, DEPLOYMENT, FINAL, WEIGHTS, Failure, Run, adapter_key, results_key
from tunedrop.smoke_test import smoke_test
from tunedrop.texts import message_of, subject_of

ENDED = ("succeeded", "failed", "cancelled")
METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints.json"
LONGEST_FETCH_SECONDS = 150
TRIES = 3
PAUSE_SECONDS = 1.0

_logger = logging.getLogger("tunedrop")

# What a person reads for a step that did not end by itself, by the error's name in Step Functions.
_DEATHS = {
    "Sandbox.Timedout": "a step of the run took longer than its function may",
    "States.Timeout": "a step of the run took longer than it may",
    "Runtime.ExitError": "a step of the run crashed again and again",
    "Runtime.OutOfMemory": "a step of the run needed more memory than its function has",
    "Transient": "a service that the run needs stayed out of reach",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the steps before ended: a final state, and why."""

    state: str
    error: Failure | None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Outcome:
        """Reads the execution's data: a step that failed for good left ``failure``, any other its ``answer``."""
        failure = given.get("failure")
        if failure:
            name = str(failure.get("Error"))
            what = _DEATHS.get(name, f"a step of the run failed unexpectedly ({name})")
            return cls("failed", Failure(name, f"{what}; its log has the details, and the file can be dropped again"))
        answer = given.get("answer", {})
        error = answer.get("error")
        state = answer.get("state")
        if state not in FINAL:
            return cls("failed", Failure("no_final_state", f"the last step ended in {state}, which is no final state"))
        return cls(state, Failure(error["code"], error["message"]) if error else None)


def collect_results(
    run: Run, outcome: Outcome, *, provider: Provider, bucket: Bucket, ledger: Ledger
) -> dict[str, Any]:
    """Ends the run and answers what is published: ``run``, ``subject``, ``cause`` and ``message``.

    A run that ends while its job is still under way has the job cancelled first, so that it costs nothing more; a job
    that turns out to have succeeded makes the run a success. What cannot be fetched of a job that has ended is left
    out: it never turns a paid success into a failure. Only a key that is refused is waited for.

    Raises:
        Transient, Throttled, Unauthorised: the job could not be looked at or cancelled, or the ledger not be written;
            the state machine repeats the step.
    """
    if not run.is_final:
        try:
            run = _end(run, outcome, provider, bucket, ledger)
        except Unauthorised as error:
            # Without the traceback: what the service said of the key is in its causes.
            _logger.error("%s", error, extra={"alarm": "unauthorised", "run_id": run.run_id})  # noqa: TRY400 - not its causes
            raise
    ledger.release(run.run_id)
    return {
        "run": run.document(),
        "subject": subject_of(run),
        "cause": run.error.message if run.error else run.state,
        "message": message_of(run),
    }


def _end(run: Run, outcome: Outcome, provider: Provider, bucket: Bucket, ledger: Ledger) -> Run:
    try:
        job = _job(run, outcome, provider)
    except Final as denied:
        # The service denies us the job: what the steps before found out stands.
        _logger.warning("the job could not be looked at: %s", denied, extra={"run_id": run.run_id})
        job = None
    fields: dict[str, Any] = {}
    state, error = outcome.state, outcome.error
    if job is not None:
        fields["job_id"] = job.id
        if job.status == "succeeded" and job.fine_tuned_model:
            state, error = "succeeded", None
            fields |= {"fine_tuned_model": job.fine_tuned_model, "trained_tokens": job.trained_tokens}
            fields["next_step"] = provider.profile.after_success or None
        saved = _save(run, job, provider, bucket)
        adapter: list[str] = []
        if state == "succeeded":
            deploys = bool(ledger.noted(run.run_id, DEPLOYMENT))
            checkpoints = saved.get(results_key(run.run_id, CHECKPOINTS))
            adapter = _save_adapter(run, checkpoints, provider, bucket, deploys=deploys)
            if deploys:
                fields["next_step"] = _of_the_deployment(run, adapter)
            _ask_both(run, job, provider, bucket)
        fields["result_keys"] = [*run.result_keys, *saved, *adapter]
        fields["loss_curve"] = list(training_loss(saved.get(results_key(run.run_id, METRICS), b"")))
    return ledger.finish(run.run_id, state, error, **fields)


def _job(run: Run, outcome: Outcome, provider: Provider) -> ProviderJob | None:
    """The run's job in an ended state, if it has one."""
    job: ProviderJob | None
    if run.job_id:
        job = provider.job(run.job_id)
    elif run.file_id and outcome.state in ("failed", "timed_out"):
        # The creating step may have died between creating the job and recording it.
        jobs = provider.jobs_on(run.file_id)
        job = keep_oldest(jobs, provider) if jobs else None
    else:
        return None
    if job is not None and job.status not in ENDED:
        job = provider.cancel_job(job.id)
    return job


def _save(run: Run, job: ProviderJob, provider: Provider, bucket: Bucket) -> dict[str, bytes]:
    """Writes what the job left, as far as it can be had; what was written, by key."""
    saved: dict[str, bytes] = {}

    def save(name: str, content_type: str, content: Callable[[], bytes]) -> None:
        key = results_key(run.run_id, name)

        def write() -> None:
            body = content()
            bucket.write(key, body, content_type)
            saved[key] = body

        _managed(write, key)

    save("job.json", "application/json", lambda: json.dumps(dict(job.document), indent=2).encode())
    save("events.jsonl", "application/jsonl", lambda: _lines(provider.events(job.id)))
    for number, file_id in enumerate(job.result_files):
        name = METRICS if number == 0 else f"metrics-{number + 1}.csv"
        save(name, "text/csv", partial(_table, provider, file_id))
    checkpoints = _managed(lambda: provider.checkpoints(job.id), CHECKPOINTS)
    if checkpoints:
        save(CHECKPOINTS, "application/json", lambda: json.dumps(checkpoints, indent=2).encode())
    return saved


def _save_adapter(
    run: Run, checkpoints: bytes | None, provider: Provider, bucket: Bucket, *, deploys: bool
) -> list[str]:
    """Copies the files of the adapter that was trained, where the service hands them out; their keys.

    Where it is to be deployed they go where the arrival of an adapter starts its publication; else they lie among the
    results, and start nothing. The configuration comes first: whoever sees the weights arrive finds it.
    """
    place = adapter_key if deploys else results_key
    found = _managed(lambda: find_adapter(json.loads(checkpoints or b"[]"), provider), "the adapter")
    if found is None:
        return []
    deadline = time.monotonic() + LONGEST_FETCH_SECONDS
    config = _managed(lambda: fetch_config(place(run.run_id, CONFIG), found[CONFIG], provider, bucket), CONFIG)
    if config is None:
        return []
    key = place(run.run_id, WEIGHTS)
    weights = _managed(lambda: fetch_weights(key, found[WEIGHTS], provider, bucket, deadline), WEIGHTS)
    return [config, weights] if weights else [config]


def _of_the_deployment(run: Run, adapter: list[str]) -> str:
    weights = adapter_key(run.run_id, WEIGHTS)
    if weights in adapter:
        return f"Its adapter is being published to Workers AI; the run of {weights} tells how that ends."
    return "Its adapter could not be fetched and so is not published: the fine-tuning service has its files."


def _ask_both(run: Run, job: ProviderJob, provider: Provider, bucket: Bucket) -> None:
    tuned, base = job.fine_tuned_model or "", run.model or job.model
    _managed(lambda: smoke_test(run, tuned, base, provider, bucket), "the smoke test's answers")


def _table(provider: Provider, file_id: str) -> bytes:
    content = provider.content(file_id)
    try:
        plain = base64.b64decode(b"".join(content.split()), validate=True)  # it may be broken into lines
    except ValueError:
        return content
    # Some services hand the table out in base64; a table as it is has commas, which base64 has not.
    return plain if b"," in plain else content


def _managed[Effect](effect: Callable[[], Effect], what: str) -> Effect | None:
    """What the effect answers; None where it could not be had after all."""
    for attempt in range(TRIES):
        try:
            return effect()
        except Unauthorised:
            raise  # a key that has expired or was rotated is mended: the step is repeated
        except TunedropError as error:
            _logger.warning("%s could not be had (attempt %d): %s", what, attempt + 1, error)
            time.sleep(PAUSE_SECONDS * attempt)
    return None


def _lines(values: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)
