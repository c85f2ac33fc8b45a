"""Uploading: check a dataset while it goes to the fine-tuning service, and commit it there if it is valid."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from tunedrop.bucket import Bucket, StoredObject
from tunedrop.clock import now, seconds
from tunedrop.dataset import Finding, Report
from tunedrop.dataset.values import is_of_the_formats, is_plain
from tunedrop.errors import Duplicate, Missing, OverBudget, Rejected, Superseded, Transient
from tunedrop.events import DATASET, MAX_KEY_BYTES, SPECIFICATION, VALIDATION
from tunedrop.job_request import parameters as job_parameters
from tunedrop.job_specification import MAX_SIZE
from tunedrop.ledger import Ledger, UnknownRun
from tunedrop.limits import refuse_before_turn
from tunedrop.preflight import OVER_BUDGET, Preflight, Wanted, judge_job, preflight, provider_and_model
from tunedrop.provider import Provider, Registry
from tunedrop.runs import DEPLOYMENT, Run, results_key, swept_run_id
from tunedrop.settings import UploadSettings
from tunedrop.smoke_test import with_wish
from tunedrop.steps import Done, Wait
from tunedrop.transfer import Outgoing, OutOfTime

WITHDRAWN_PAUSE_SECONDS = 30
_FOR_EVER = 1e11  # epoch seconds


def upload_dataset(
    run: Run,
    settings: UploadSettings,
    *,
    bucket: Bucket,
    providers: Registry,
    ledger: Ledger,
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> Wait | Done:
    """Checks the run's dataset as it was when its event happened, and uploads it as ``RUN_ID.jsonl`` to its service.

    The service is the one that the job specification names, else the stack's default.

    The dataset is read once: what is checked goes on to the service, where it becomes a file only if it is valid,
    within the budget and no duplicate. What an earlier attempt has sent is found. ``seconds_left`` is the time that the
    function has; before it is over, the step asks to be taken again, a few times.

    Raises:
        Rejected: the dataset or its specification is invalid; the report says all, the message the first error.
        OverBudget, Duplicate: it would cost more than it may; it is being, or has been trained on already, or its event
            comes after the sweeper has started a run in its place.
        Missing, Superseded: the object is gone, or is another one by now.
        UnknownOutcome: the service may hold the file; the next call looks for it.
        Transient, Throttled, Unauthorised, Denied: as reading and uploading raise them.
    """
    if run.file_id:
        return Done("waiting")
    ledger.update(run.run_id, state="uploading")
    try:
        return _check_and_send(run, settings, bucket, providers, ledger, seconds_left)
    except OutOfTime:
        return Wait(1, "uploading")


def _check_and_send(
    run: Run,
    settings: UploadSettings,
    bucket: Bucket,
    providers: Registry,
    ledger: Ledger,
    seconds_left: Callable[[], float],
) -> Wait | Done:
    training = bucket.open(run.key, run.etag)
    _refuse_late(run, training, ledger)
    refuse_before_turn(run.run_id, run.run_id + DATASET, ledger)
    specification_text = _specification(run, bucket)
    provider, wanted = _wanted(specification_text, settings, providers)
    _refuse_too_large(training, provider)

    def outgoing(stored: StoredObject, ending: str) -> Outgoing:
        name = run.run_id + ending
        return Outgoing(run.run_id, name, stored.size, provider=provider, ledger=ledger, seconds_left=seconds_left)

    with outgoing(training, DATASET) as sending:
        at_once = _may_leave_unchecked(specification_text, wanted)
        chunks = (sending.through if at_once else sending.in_time)(training.chunks)
        found = _preflight(run, bucket, provider, sending, chunks, specification_text, wanted)
        report, specification = found.report, found.specification
        text = with_wish(report.to_json(), specification.smoke_test)
        bucket.write(results_key(run.run_id, "report.json"), text.encode(), "application/json")
        parameters = job_parameters(run.run_id, specification, found.model, provider.profile)
        run = ledger.update(
            run.run_id,
            provider=provider.profile.name,
            model=found.model,
            method=specification.method_name or "supervised",
            examples=report.examples,
            tokens=report.tokens.total if report.tokens else None,
            estimated_cost_usd=report.estimate.usd if report.estimate else None,
            result_keys=[results_key(run.run_id, "report.json")],
        )
        _judge(run, report)
        holder = ledger.claim(_content(found, provider, parameters), run.run_id)
        if holder != run.run_id and not specification.force:
            return _duplicate_of(holder, run, ledger)
        ledger.hold(run.run_id, run.bucket, run.key)
        last_look = bucket.open(run.key, run.etag)  # after the note above: a deletion meets one or the other
        if not at_once:
            _send(last_look, sending)
        file = sending.commit()

    fields: dict[str, Any] = {"file_id": file.id}
    if found.validation_etag:
        try:
            validation = bucket.open(_beside(run.key, VALIDATION), found.validation_etag)
            with outgoing(validation, VALIDATION) as sending:
                _send(validation, sending)
                validation_file = sending.commit()
        except (Missing, Superseded) as error:
            raise Transient("the validation set changed while it was read; it is checked again") from error
        fields["validation_file_id"] = validation_file.id
        parameters["validation_file"] = validation_file.id
    if specification.deployment:
        ledger.note(run.run_id, DEPLOYMENT, specification.deployment)
    ledger.plan(run.run_id, {**parameters, "training_file": file.id})
    ledger.update(run.run_id, state="waiting", **fields)
    return Done("waiting")


def _send(stored: StoredObject, sending: Outgoing) -> None:
    for _ in sending.through(stored.chunks):
        pass


def _may_leave_unchecked(specification: bytes | None, wanted: Wanted) -> bool:
    """Whether bytes may go to the service, uncommitted, before all of them are known to be fit to go.

    None go for a job that is refused whatever the dataset is like.
    """
    judged = judge_job(specification, wanted)
    return not judged.errors and not judged.specification.refuse_sensitive


def _refuse_late(run: Run, stored: StoredObject, ledger: Ledger) -> None:
    """Refuses an event that comes after the sweeper has missed it and started a run on what it is about.

    The claim to the content does not do it alone: ``force`` makes none, and is meant once.
    """
    swept_id = swept_run_id(run.bucket, run.key, run.etag, stored.modified_at)
    try:
        swept = ledger.get(swept_id)
    except UnknownRun:
        return
    if swept_id != run.run_id and (not swept.is_final or swept.state == "succeeded"):
        raise Duplicate("late_event", f"run {swept_id} was started on this file because its event did not come in time")


def _refuse_too_large(stored: StoredObject, provider: Provider) -> None:
    limit = provider.profile.largest_dataset
    if limit is not None and stored.size > limit:
        raise Rejected(
            "dataset_too_large",
            f"{stored.key} has {stored.size:,} bytes; {provider.profile.name} takes at most {limit:,}: "
            "leave out examples",
        )


class _Found(Preflight, frozen=True):
    """What the check found out, and which validation set it read."""

    validation_etag: str | None


def _wanted(specification: bytes | None, settings: UploadSettings, providers: Registry) -> tuple[Provider, Wanted]:
    """The service that the run is for, and what its check is made under; the service is asked for the model."""
    named, model = provider_and_model(specification)
    known = {}
    if named and named != providers.default:
        known = dict(providers.configured())
    provider = providers.of(named if named in known else None)
    profile = provider.profile
    default_model = profile.default_model or (settings.default_model if profile.name == providers.default else None)
    wanted = Wanted(
        today=datetime.fromtimestamp(now(), UTC).date(),
        default_model=default_model,
        default_provider=profile.name,
        providers=known or [providers.default],
        profiles={**known, profile.name: profile},
        at_home=provider.at_home,
        deploys=bool(settings.workers_ai_account_id),
        max_cost_usd=settings.max_cost_usd or None,
    )
    if named not in (None, profile.name):
        return provider, wanted  # which rejects the run: nothing is to be asked for it
    return provider, replace(wanted, **_told(provider, model or default_model))


def _told(provider: Provider, model: str | None) -> dict[str, Any]:
    """What the service says of the model before anything is sent; nothing where it is known not to help."""
    if model is None:
        message = f'"model" must be named: DefaultModel is not meant for {provider.profile.name}'
        return {"job_errors": [Finding("job", None, "missing_model", "model", message)]}
    if not provider.profile.retrieves_models:
        return {}
    try:
        told = provider.model(model)
    except Rejected as error:
        return {"job_errors": [Finding("job", None, error.code, "model", error.message.rstrip("."))]}
    if told is None:
        return {}
    errors = []
    if told.tunable is False:
        message = f"{provider.profile.name} says that {model} cannot be fine-tuned; name another"
        errors.append(Finding("job", None, "model_not_tunable", "model", message))
    return {"job_errors": errors, "model_told": told.tells_end, "model_end": told.end}


def _preflight(
    run: Run,
    bucket: Bucket,
    provider: Provider,
    sending: Outgoing,
    training: Iterable[bytes],
    specification: bytes | None,
    wanted: Wanted,
) -> _Found:
    validation = _open(bucket, _beside(run.key, VALIDATION))
    if validation:
        _refuse_too_large(validation, provider)
    second = sending.in_time(_steady(validation)) if validation else None
    found = preflight(training, second, specification, wanted, on_error=sending.stop)
    etag = validation.etag if validation else None
    return _Found(found.specification, found.model, found.report, found.check, found.validation_sha256, etag)


def _open(bucket: Bucket, key: str) -> StoredObject | None:
    if len(key.encode()) > MAX_KEY_BYTES:
        return None  # no object has such a key, and to ask for it is an error, which would pass for one that passes
    try:
        return bucket.open(key)
    except Missing:
        return None


def _steady(validation: StoredObject) -> Iterator[bytes]:
    # Another validation set is no reason to give the training set up.
    try:
        yield from validation.chunks
    except (Missing, Superseded) as error:
        raise Transient("the validation set changed while it was read; it is read again") from error


def _specification(run: Run, bucket: Bucket) -> bytes | None:
    stored = _open(bucket, _beside(run.key, SPECIFICATION))
    if stored is None:
        return None
    # One byte more than a job specification may have is enough to see that it has too many.
    return b"".join(stored.chunks) if stored.size <= MAX_SIZE else bytes(MAX_SIZE + 1)


def _judge(run: Run, report: Report) -> None:
    if report.valid:
        return
    codes = {finding.code for finding in report.errors}
    if codes == {OVER_BUDGET}:
        raise OverBudget(OVER_BUDGET, report.errors[0].message)
    raise Rejected(report.errors[0].code, _summary(run, report))


def _content(found: _Found, provider: Provider, parameters: Mapping[str, Any]) -> str:
    """Names what is to be paid once: these datasets, in this way, at this service; wherever they lie."""
    wanted = {name: value for name, value in parameters.items() if name != "metadata"}
    content = [found.report.sha256, found.validation_sha256, provider.profile.name, wanted]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _duplicate_of(holder: str, run: Run, ledger: Ledger) -> Wait:
    """Ends ``run`` as a duplicate, or waits for the end of a ``holder`` that will not have trained.

    Events come in no order: a deletion that is still to come may be of what was there before this run's object.
    """
    began = seconds(run.created_at)
    with suppress(UnknownRun):  # somebody has deleted it
        same_object = ledger.get(holder).key == run.key
        if not ledger.spare(holder, began if same_object else _FOR_EVER) and not ledger.get(holder).is_final:
            return Wait(max(WITHDRAWN_PAUSE_SECONDS, (now() - began) / 60), "uploading")
    raise Duplicate("duplicate", _why_duplicate(holder, ledger))


def _why_duplicate(holder: str, ledger: Ledger) -> str:
    again = 'say "force": true in the job specification to train again'
    with suppress(UnknownRun):  # a moment ago it was just beginning
        run = ledger.get(holder)
        if run.is_final and run.state != "succeeded":
            return (
                f"run {holder}, on the same dataset with the same specification, ended before it was known whether its "
                f"job had come about; where the fine-tuning service has none, {again}"
            )
    return f"run {holder} trains or has trained on the same dataset with the same specification; {again}"


def _beside(key: str, ending: str) -> str:
    return key.removesuffix(DATASET) + ending


def _summary(run: Run, report: Report) -> str:
    first = report.errors[0]
    place = f"line {first.line:,}" if first.line else {"job": "the job specification"}.get(first.file, "the file")
    if first.file == "validation":
        place = f"{place} of the validation set"
    # A key that no format knows is somebody's own word, and may be a line's whole content: the report alone has it.
    told = first.path and (is_plain(first.path) if first.file == "job" else is_of_the_formats(first.path))
    path = f", {first.path}" if told else ""
    others = report.error_count - 1
    more = "" if not others else " There is 1 more error." if others == 1 else f" There are {others:,} more errors."
    return f"{place}{path}: {first.message}.{more} All of it is in {results_key(run.run_id, 'report.json')}."
