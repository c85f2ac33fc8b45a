"""Uploading: check a dataset, and send it to the fine-tuning service once it is known to be valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import tunedrop.dataset.sensitive  # noqa: F401 - every run searches: to be loaded at init, not in the first request
from tunedrop.bucket import Bucket, StoredObject
from tunedrop.clock import now
from tunedrop.dataset import Finding, Report
from tunedrop.errors import Duplicate, Missing, OverBudget, Rejected, Superseded, Transient
from tunedrop.events import DATASET, SPECIFICATION, VALIDATION
from tunedrop.job_request import parameters as job_parameters
from tunedrop.job_specification import MAX_SIZE
from tunedrop.ledger import Ledger
from tunedrop.preflight import OVER_BUDGET, Preflight, Wanted, preflight, provider_and_model
from tunedrop.provider import Provider, ProviderFile, Registry
from tunedrop.runs import Run, results_key
from tunedrop.settings import UploadSettings
from tunedrop.steps import Done

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def upload_dataset(run: Run, settings: UploadSettings, *, bucket: Bucket, providers: Registry, ledger: Ledger) -> Done:
    """Checks the run's dataset as it was when its event happened, and uploads it as ``RUN_ID.jsonl`` to its service.

    The service is the one that the job specification names, else the stack's default.

    The dataset is read twice, once to check and once to send, so that memory does not grow with it and no byte of a
    broken one leaves the bucket. What an earlier attempt has uploaded is found by its name.

    Raises:
        Rejected: the dataset or its specification is invalid; the report says all, the message the first error.
        OverBudget, Duplicate: it would cost more than it may; it is being, or has been trained on already.
        Missing, Superseded: the object is gone, or is another one by now.
        UnknownOutcome: the service may hold the file; the next call looks for it.
        Transient, Throttled, Unauthorised, Denied: as reading and uploading raise them.
    """
    if run.file_id:
        return Done("waiting")
    ledger.update(run.run_id, state="uploading")
    stored = _open(bucket, _beside(run.key, SPECIFICATION))
    specification_text = _whole(stored) if stored else None
    provider, wanted = _wanted(specification_text, settings, providers)
    found = _preflight(run, bucket, specification_text, wanted)
    report, specification = found.report, found.specification
    bucket.write(results_key(run.run_id, "report.json"), report.to_json().encode(), "application/json")
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
    if not specification.force:
        _claim(run, report, found.validation_etag, parameters, ledger)

    file = _upload(run.key, run.etag, f"{run.run_id}.jsonl", bucket, provider)
    fields: dict[str, Any] = {"file_id": file.id}
    if found.validation_etag:
        name = f"{run.run_id}.validation.jsonl"
        try:
            key = _beside(run.key, VALIDATION)
            validation = _upload(key, found.validation_etag, name, bucket, provider)
        except (Missing, Superseded) as error:
            raise Transient("the validation set changed while it was read; it is checked again") from error
        fields["validation_file_id"] = validation.id
        parameters["validation_file"] = validation.id
    ledger.plan(run.run_id, {**parameters, "training_file": file.id})
    ledger.update(run.run_id, state="waiting", **fields)
    return Done("waiting")


@dataclass(frozen=True, slots=True)
class _Found(Preflight):
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


def _preflight(run: Run, bucket: Bucket, specification: bytes | None, wanted: Wanted) -> _Found:
    validation = _open(bucket, _beside(run.key, VALIDATION))
    training = bucket.open(run.key, run.etag)
    found = preflight(training.chunks, validation.chunks if validation else None, specification, wanted)
    return _Found(found.specification, found.model, found.report, found.check, validation.etag if validation else None)


def _open(bucket: Bucket, key: str) -> StoredObject | None:
    try:
        return bucket.open(key)
    except Missing:
        return None


def _whole(stored: StoredObject) -> bytes:
    # One byte more than a job specification may have is enough to see that it has too many.
    return b"".join(stored.chunks) if stored.size <= MAX_SIZE else bytes(MAX_SIZE + 1)


def _judge(run: Run, report: Report) -> None:
    if report.valid:
        return
    codes = {finding.code for finding in report.errors}
    if codes == {OVER_BUDGET}:
        raise OverBudget(OVER_BUDGET, report.errors[0].message)
    raise Rejected(report.errors[0].code, _summary(run, report))


def _claim(run: Run, report: Report, validation_etag: str | None, parameters: dict[str, Any], ledger: Ledger) -> None:
    wanted = {name: value for name, value in parameters.items() if name != "metadata"}
    content = json.dumps([report.sha256, validation_etag, run.provider, wanted], sort_keys=True)
    holder = ledger.claim(hashlib.sha256(content.encode()).hexdigest(), run.run_id)
    if holder != run.run_id:
        raise Duplicate(
            "duplicate",
            f"run {holder} trains or has trained on the same dataset with the same specification; "
            'say "force": true in the job specification to train again',
        )


def _upload(key: str, etag: str, name: str, bucket: Bucket, provider: Provider) -> ProviderFile:
    stored = bucket.open(key, etag)
    size, chunks = _without_byte_order_mark(stored)
    whole = [file for file in provider.files_named(name) if file.size == size]
    for surplus in whole[1:]:
        provider.delete_file(surplus.id)
    return whole[0] if whole else provider.upload(name, chunks, size)


def _without_byte_order_mark(stored: StoredObject) -> tuple[int, Iterator[bytes]]:
    """The size and the chunks of what is uploaded: a byte order mark at the start is not part of the data."""
    chunks = iter(stored.chunks)
    start = b""
    while len(start) < len(BYTE_ORDER_MARK) and (chunk := next(chunks, None)) is not None:
        start += chunk
    if start.startswith(BYTE_ORDER_MARK):
        return stored.size - len(BYTE_ORDER_MARK), chain((start[len(BYTE_ORDER_MARK) :],), chunks)
    return stored.size, chain((start,), chunks)


def _beside(key: str, ending: str) -> str:
    return key.removesuffix(DATASET) + ending


def _summary(run: Run, report: Report) -> str:
    first = report.errors[0]
    place = f"line {first.line:,}" if first.line else {"job": "the job specification"}.get(first.file, "the file")
    if first.file == "validation":
        place = f"{place} of the validation set"
    path = f", {first.path}" if first.path else ""
    others = report.error_count - 1
    more = "" if not others else " There is 1 more error." if others == 1 else f" There are {others:,} more errors."
    return f"{place}{path}: {first.message}.{more} All of it is in {results_key(run.run_id, 'report.json')}."
