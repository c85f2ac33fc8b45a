"""The check of a training file together with its validation file."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tunedrop.dataset.check import DatasetCheck
from tunedrop.dataset.report import Finding, Report


def check(
    training: Iterable[bytes],
    validation: Iterable[bytes] | None = None,
    *,
    job_findings: Iterable[Finding] = (),
    job_warnings: Iterable[Finding] = (),
    training_check: DatasetCheck | None = None,
) -> Report:
    """The report on a training file, with its validation file where there is one, and the job specification's errors.

    ``training_check`` is a fresh check that carries the options; by default it is one without any.
    """
    first = training_check or DatasetCheck()
    for chunk in training:
        first.feed(chunk)
    first.finish()
    second = None
    if validation is not None:
        second = first.for_validation()
        for chunk in validation:
            second.feed(chunk)
    return combine(first, second, job_findings, job_warnings)


def combine(
    training: DatasetCheck,
    validation: DatasetCheck | None,
    job_findings: Iterable[Finding] = (),
    job_warnings: Iterable[Finding] = (),
) -> Report:
    """The one report on all files of a run: ends both checks and applies the rules across files.

    ``job_findings`` are the job specification's errors, ``job_warnings`` what else there is to say about it.
    """
    report = training.finish()
    job = tuple(job_findings)
    errors = [*job, *report.errors]
    error_count = report.error_count + len(job)
    warnings = [*job_warnings, *report.warnings]
    warning_count = report.warning_count + len(warnings) - len(report.warnings)
    limit = training.max_findings
    if validation is not None:
        other = validation.finish()
        errors += other.errors
        error_count += other.error_count
        warnings += other.warnings
        warning_count += other.warning_count
        for line, source in validation.fingerprints.shared(training.fingerprints):
            warning_count += 1
            if len(warnings) < limit:
                message = f"line {source} of the training file holds the same example; remove it from one of the two"
                warnings.append(Finding("validation", line, "leaked_example", None, message))
    elif report.format == "reinforcement":
        message = "reinforcement fine-tuning takes a validation file; put NAME.validation.jsonl beside NAME.jsonl"
        errors.append(Finding("validation", None, "missing_validation_file", None, message))
        error_count += 1
    return msgspec.structs.replace(
        report,
        valid=error_count == 0,
        error_count=error_count,
        errors=tuple(errors[:limit]),
        warning_count=warning_count,
        warnings=tuple(warnings[:limit]),
    )
