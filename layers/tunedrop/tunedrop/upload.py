"""Uploading: check a dataset, and send it to the fine-tuning service once it is known to be valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import tunedrop.dataset.sensitive  # noqa: F401 - every run searches: to be loaded at init, not in the first request
from tunedrop.bucket import Bucket, StoredObject
from tunedrop.clock import now
from tunedrop.dataset import Report
from tunedrop.errors import Duplicate, Missing, OverBudget, Rejected, Superseded, Transient
from tunedrop.events import DATASET, SPECIFICATION, VALIDATION
from tunedrop.job_specification import MAX_SIZE, JobSpecification
from tunedrop.ledger import Ledger
from tunedrop.preflight import OVER_BUDGET, Preflight, Wanted, preflight
from tunedrop.provider import Provider, ProviderFile
from tunedrop.runs import Run, results_key
from tunedrop.settings import UploadSettings
from tunedrop.smoke_test import with_wish
from tunedrop.steps import Done

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_METADATA_PAIRS = 16


def upload_dataset(run: Run, settings: UploadSettings, *, bucket: Bucket, provider: Provider, ledger: Ledger) -> Done:
    """Checks the run's dataset as it was when its event happened, and uploads it as ``RUN_ID.jsonl``.

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
    found = _preflight(run, settings, bucket, provider)
    report, specification = found.report, found.specification
    text = with_wish(report.to_json(), specification.smoke_test)
    bucket.write(results_key(run.run_id, "report.json"), text.encode(), "application/json")
    parameters = _parameters(run, specification, found.model, provider)
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

    ledger.hold(
        run.run_id, run.bucket, run.key
    )  # before the last look at the object: a deletion meets one or the other
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


def _preflight(run: Run, settings: UploadSettings, bucket: Bucket, provider: Provider) -> _Found:
    specification = _open(bucket, _beside(run.key, SPECIFICATION))
    validation = _open(bucket, _beside(run.key, VALIDATION))
    training = bucket.open(run.key, run.etag)
    wanted = Wanted(
        today=datetime.fromtimestamp(now(), UTC).date(),
        default_model=settings.default_model,
        default_provider=provider.profile.name,
        providers=[provider.profile.name],
        at_home=provider.at_home,
        max_cost_usd=settings.max_cost_usd or None,
    )
    found = preflight(
        training.chunks,
        validation.chunks if validation else None,
        _whole(specification) if specification else None,
        wanted,
    )
    return _Found(found.specification, found.model, found.report, found.check, validation.etag if validation else None)


def _open(bucket: Bucket, key: str) -> StoredObject | None:
    try:
        return bucket.open(key)
    except Missing:
        return None


def _whole(stored: StoredObject) -> bytes:
    # One byte more than a job specification may have is enough to see that it has too many.
    return b"".join(stored.chunks) if stored.size <= MAX_SIZE else bytes(MAX_SIZE + 1)


def _parameters(run: Run, specification: JobSpecification, model: str | None, provider: Provider) -> dict[str, Any]:
    """What the job is created with, in the fine-tuning API's own words."""
    wanted = {
        "model": model,
        "method": specification.method,
        "suffix": specification.suffix,
        "seed": specification.seed,
        "integrations": specification.integrations,
        "extra_body": specification.extra_body,
    }
    metadata = dict(specification.metadata or {})
    if provider.profile.takes_metadata and len(metadata) < MAX_METADATA_PAIRS:
        metadata["run_id"] = run.run_id
    if metadata:
        wanted["metadata"] = metadata
    return {name: value for name, value in wanted.items() if value is not None}


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
