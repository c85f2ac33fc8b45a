"""What is found out before a cent is spent: the same for a run and for ``tunedrop check``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date

import msgspec

from tunedrop import job_request, job_specification, prices
from tunedrop.dataset import DatasetCheck, Finding, Report, combine
from tunedrop.job_specification import JobSpecification
from tunedrop.prices import PriceList, TrainingModel
from tunedrop.providers import PROFILES, ProviderProfile
from tunedrop.tokens import Tokenizer

OVER_BUDGET = "over_budget"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a check is made under, beside the files.

    ``model`` and ``provider`` win over the job specification's, ``default_model`` and ``default_provider`` stand in for
    them. ``providers`` are those that a job specification may name, None for any of ``profiles``. Only where
    ``at_home``, that is where the provider is certain to be the service itself and not another that speaks its API, is
    a model that it has shut down an error; None means that a provider's name makes it certain. ``model_told`` is
    whether the service itself tells the model's end, and then ``model_end`` wins over the table; ``job_errors`` are
    what else it says against the job. ``max_cost_usd`` is a limit beside the job specification's own.
    """

    today: date
    model: str | None = None
    provider: str | None = None
    default_model: str | None = None
    default_provider: str = "openai"
    providers: Collection[str] | None = None
    profiles: Mapping[str, ProviderProfile] = PROFILES
    at_home: bool | None = None
    model_told: bool = False
    model_end: date | None = None
    job_errors: Collection[Finding] = ()
    max_cost_usd: float | None = None
    own_prices: PriceList | None = None
    count_tokens: bool = True
    scan: bool = True
    sha256: bool = True
    threads: int = 1
    max_findings: int = 100


def provider_and_model(specification: bytes | None) -> tuple[str | None, str | None]:
    """The provider and the model that a job specification names, as far as it can be read."""
    parsed = job_specification.parse(specification) if specification is not None else None
    return (parsed.provider, parsed.model) if isinstance(parsed, JobSpecification) else (None, None)


class JudgedJob(msgspec.Struct, frozen=True):
    """What is known of a job before its dataset is read."""

    specification: JobSpecification
    model: TrainingModel
    profile: ProviderProfile
    errors: list[Finding]
    warnings: list[Finding]


class Preflight(msgspec.Struct, frozen=True):
    """What was found out: what is to be trained, and the verdict. ``check`` is the training file's own.

    ``validation_sha256`` is the validation file's sum, where there is one and sums are wanted.
    """

    specification: JobSpecification
    model: str | None
    report: Report
    check: DatasetCheck
    validation_sha256: str | None


def make_ready(model: str) -> None:
    """Makes what the first check would make: the search for sensitive content, and the vocabulary of ``model``, which
    takes half a second."""
    from tunedrop.dataset.sensitive import candidates  # which the command does without where nothing is searched

    candidates()
    Tokenizer(prices.look_up(model).encoding).count([""])


def judge_job(specification: bytes | None, wanted: Wanted) -> JudgedJob:
    """What speaks for and against a job whatever its dataset is like."""
    parsed, errors = _specification(specification, wanted)
    errors += wanted.job_errors
    warnings: list[Finding] = []
    name = wanted.model or parsed.model or wanted.default_model
    named = wanted.provider or parsed.provider
    profile = wanted.profiles.get(named or wanted.default_provider, PROFILES["compatible"])
    model = prices.look_up(name, wanted.own_prices) if name else TrainingModel(name="")
    errors += [Finding("job", None, wish.code, wish.path, wish.message) for wish in job_request.unmet(parsed, profile)]
    if not wanted.model_told or wanted.model_end:
        at_home = bool(named) if wanted.at_home is None else wanted.at_home
        if end := model.end(profile.like, wanted.today, wanted.model_end):
            ended, sentence = end
            code = "model_shut_down" if ended else "model_near_shutdown"
            certain = at_home or wanted.model_told
            (errors if ended and certain else warnings).append(Finding("job", None, code, "model", sentence))
    return JudgedJob(parsed, model, profile, errors, warnings)


def preflight(
    training: Iterable[bytes],
    validation: Iterable[bytes] | None,
    specification: bytes | None,
    wanted: Wanted,
    on_error: Callable[[], None] = lambda: None,
) -> Preflight:
    """Checks a training file, with its validation file and job specification where there are such.

    Each file is read once, in chunks of any size; memory does not grow with it. ``on_error`` is called as soon as a
    line of the training file is known to be invalid; the check goes on, to list the others.
    """
    judged = judge_job(specification, wanted)
    parsed, model, errors = judged.specification, judged.model, judged.errors
    first = DatasetCheck(
        method=parsed.method_name,
        profile=judged.profile.data,
        tokens=Tokenizer(model.encoding, wanted.threads) if wanted.count_tokens else None,
        model=model,
        epochs=parsed.epochs,
        scan=wanted.scan,
        refuse_sensitive=parsed.refuse_sensitive,
        sha256=wanted.sha256,
        max_findings=wanted.max_findings,
    )
    told = False
    for chunk in training:
        first.feed(chunk)
        if first.is_broken and not told:
            told = True
            on_error()
    estimate = first.finish().estimate
    second = None
    if validation is not None:
        second = first.for_validation()
        for chunk in validation:
            second.feed(chunk)
    limits = [limit for limit in (parsed.max_cost_usd, wanted.max_cost_usd) if limit is not None]
    if message := prices.over_budget(estimate, min(limits, default=None)):
        errors.append(Finding("job", None, OVER_BUDGET, "max_cost_usd", message))
    report = combine(first, second, errors, judged.warnings)
    return Preflight(parsed, model.name or None, report, first, second.finish().sha256 if second else None)


def _specification(text: bytes | None, wanted: Wanted) -> tuple[JobSpecification, list[Finding]]:
    """The job specification, an empty one where there is none or it is invalid, and what is wrong with it."""
    if text is None:
        return JobSpecification(), []
    known = wanted.profiles if wanted.providers is None else wanted.providers
    parsed = job_specification.parse(text, None if wanted.provider else known)
    return (parsed, []) if isinstance(parsed, JobSpecification) else (JobSpecification(), list(parsed))
