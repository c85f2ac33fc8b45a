"""Uploading: check a dataset, and send it to the fine-tuning service once it is known to be valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tunedrop import job_specification
from tunedrop.bucket import Bucket, StoredObject
from tunedrop.dataset import DatasetCheck, Finding, Report, check
from tunedrop.errors import Duplicate, Missing, OverBudget, Rejected, Superseded, Transient
from tunedrop.events import DATASET, SPECIFICATION, VALIDATION
from tunedrop.job_specification import JobSpecification
from tunedrop.ledger import Ledger
from tunedrop.provider import Provider, ProviderFile
from tunedrop.runs import Run, results_key
from tunedrop.settings import UploadSettings
from tunedrop.steps import Done

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_SPECIFICATION_BYTES = 1 << 20
MAX_METADATA_PAIRS = 16


@dataclass(frozen=True, slots=True)
class _Sources:
    """The objects of a run; ``validation`` is the eTag of its validation set, where it has one."""

    key: str
    etag: str
    validation_key: str
    validation: str | None


def upload_dataset(run: Run, settings: UploadSettings, *, bucket: Bucket, provider: Provider, ledger: Ledger) -> Done:
    """Checks the run's dataset as it was when its event happened, and uploads it as ``RUN_ID.jsonl``.

    The dataset is read twice, once to check and once to send, so that memory does not grow with it and no byte of a
    broken one leaves the bucket. What an earlier attempt has uploaded is found by its name.

    Raises:
        Rejected: the dataset or its specification is invalid; the report says all, the message the first.
        OverBudget, Duplicate: it would cost more than it may; it is being, or has been trained on already.
        Missing, Superseded: the object is gone, or is another one by now.
        UnknownOutcome: the service may hold the file; the next call looks for it.
        Transient, Throttled, Unauthorised, Denied: as reading and uploading raise them.
    """
    if run.file_id:
        return Done("waiting")
    ledger.update(run.run_id, state="uploading")
    specification, job_findings = _specification(run, bucket, provider)
    parameters = _parameters(run, specification, settings, provider)
    sources, report = _check(run, specification, job_findings, bucket)
    bucket.write(results_key(run.run_id, "report.json"), report.to_json().encode(), "application/json")
    run = ledger.update(
        run.run_id,
        provider=provider.profile.name,
        model=parameters["model"],
        method=specification.method_type or "supervised",
        examples=report.examples,
        tokens=report.tokens.total if report.tokens else None,
        estimated_cost_usd=report.estimate.usd if report.estimate else None,
        result_keys=[results_key(run.run_id, "report.json")],
    )
    if not report.valid:
        raise Rejected(report.errors[0].code, _summary(run, report))
    _hold_to_budget(report, specification, settings)
    if not specification.force:
        _claim(run, report, sources, parameters, ledger)

    file = _upload(sources.key, sources.etag, f"{run.run_id}.jsonl", bucket, provider)
    fields: dict[str, Any] = {"file_id": file.id}
    if sources.validation:
        name = f"{run.run_id}.validation.jsonl"
        try:
            validation = _upload(sources.validation_key, sources.validation, name, bucket, provider)
        except (Missing, Superseded) as error:
            raise Transient("the validation set changed while it was read; it is checked again") from error
        fields["validation_file_id"] = validation.id
        parameters["validation_file"] = validation.id
    ledger.plan(run.run_id, {**parameters, "training_file": file.id})
    ledger.update(run.run_id, state="waiting", **fields)
    return Done("waiting")


def _specification(run: Run, bucket: Bucket, provider: Provider) -> tuple[JobSpecification, list[Finding]]:
    try:
        stored = bucket.open(_beside(run.key, SPECIFICATION))
    except Missing:
        return JobSpecification(), []
    if stored.size > MAX_SPECIFICATION_BYTES:
        raise Rejected("too_large", f"{stored.key} has more than {MAX_SPECIFICATION_BYTES} bytes")
    return job_specification.parse(b"".join(stored.chunks), providers=[provider.profile.name])


def _parameters(
    run: Run, specification: JobSpecification, settings: UploadSettings, provider: Provider
) -> dict[str, Any]:
    """What the job is created with, in the fine-tuning API's own words."""
    wanted = {
        "model": specification.model or settings.default_model,
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


def _check(
    run: Run, specification: JobSpecification, job_findings: list[Finding], bucket: Bucket
) -> tuple[_Sources, Report]:
    validation_key = _beside(run.key, VALIDATION)
    validation: StoredObject | None
    try:
        validation = bucket.open(validation_key)
    except Missing:
        validation = None
    training = bucket.open(run.key, run.etag)
    report = check(
        training.chunks,
        validation.chunks if validation else None,
        job_findings=job_findings,
        training_check=DatasetCheck(method=specification.method_type),
    )
    return _Sources(run.key, run.etag, validation_key, validation.etag if validation else None), report


def _hold_to_budget(report: Report, specification: JobSpecification, settings: UploadSettings) -> None:
    limits = [limit for limit in (specification.max_cost_usd, settings.max_cost_usd or None) if limit is not None]
    cost = report.estimate.usd if report.estimate else None
    if cost is not None and limits and cost > min(limits):
        raise OverBudget(
            "over_budget",
            f"training is estimated at {cost:,.2f} USD, which is over the limit of {min(limits):,.2f} USD",
        )


def _claim(run: Run, report: Report, sources: _Sources, parameters: dict[str, Any], ledger: Ledger) -> None:
    wanted = {name: value for name, value in parameters.items() if name != "metadata"}
    content = json.dumps([report.sha256, sources.validation, run.provider, wanted], sort_keys=True)
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
    more = f" There are {report.error_count - 1:,} more errors." if report.error_count > 1 else ""
    return f"{place}{path}: {first.message}.{more} All of it is in {results_key(run.run_id, 'report.json')}."
