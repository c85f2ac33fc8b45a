"""What is found out before a cent is spent: the same for a run and for ``tunedrop check``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date
from importlib import import_module

from tunedrop import job_specification, prices
from tunedrop.dataset import PROFILES, DataProfile, DatasetCheck, Finding, Report, combine
from tunedrop.job_specification import JobSpecification
from tunedrop.prices import PriceList, TrainingModel
from tunedrop.tokens import Tokenizer

OVER_BUDGET = "over_budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a check is made under, beside the files.

    ``model`` and ``provider`` win over the job specification's, ``default_model`` and ``default_provider`` stand in for
    them. ``providers`` are those that a job specification may name, None for any. Only where ``at_home``, that is where
    the provider is certain to be the service itself and not another that speaks its API, is a model that it has shut
    down an error; None means that a provider's name makes it certain. ``max_cost_usd`` is a limit beside the job
    specification's own.
    """

    today: date
    model: str | None = None
    provider: str | None = None
    default_model: str | None = None
    default_provider: str = "openai"
    providers: Collection[str] | None = None
    at_home: bool | None = None
    max_cost_usd: float | None = None
    own_prices: PriceList | None = None
    count_tokens: bool = True
    scan: bool = True
    sha256: bool = True
    threads: int = 1
    max_findings: int = 100


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found out: what is to be trained, and the verdict. ``check`` is the training file's own."""

    specification: JobSpecification
    model: str | None
    report: Report
    check: DatasetCheck


def make_ready(model: str) -> None:
    """Loads what the first check would load: the search for sensitive content, and the vocabulary of ``model``, which
    takes half a second."""
    import_module("tunedrop.dataset.sensitive")  # which the command does without where nothing is searched
    Tokenizer(prices.look_up(model).encoding).count([""])


def preflight(
    training: Iterable[bytes], validation: Iterable[bytes] | None, specification: bytes | None, wanted: Wanted
) -> Preflight:
    """Checks a training file, with its validation file and job specification where there are such.

    Each file is read once, in chunks of any size; memory does not grow with it.
    """
    parsed, errors = _specification(specification, wanted)
    warnings: list[Finding] = []
    name = wanted.model or parsed.model or wanted.default_model
    provider = wanted.provider or parsed.provider or wanted.default_provider
    model = prices.look_up(name, wanted.own_prices) if name else TrainingModel(name="")
    at_home = bool(wanted.provider or parsed.provider) if wanted.at_home is None else wanted.at_home
    if end := model.end(provider, wanted.today):
        ended, sentence = end
        code = "model_shut_down" if ended else "model_near_shutdown"
        (errors if ended and at_home else warnings).append(Finding("job", None, code, "model", sentence))
    first = DatasetCheck(
        method=parsed.method_name,
        profile=PROFILES.get(provider, DataProfile()),
        tokens=Tokenizer(model.encoding, wanted.threads) if wanted.count_tokens else None,
        model=model,
        epochs=parsed.epochs,
        scan=wanted.scan,
        refuse_sensitive=parsed.refuse_sensitive,
        sha256=wanted.sha256,
        max_findings=wanted.max_findings,
    )
    for chunk in training:
        first.feed(chunk)
    estimate = first.finish().estimate
    second = None
    if validation is not None:
        second = first.for_validation()
        for chunk in validation:
            second.feed(chunk)
    limits = [limit for limit in (parsed.max_cost_usd, wanted.max_cost_usd) if limit is not None]
    if message := prices.over_budget(estimate, min(limits, default=None)):
        errors.append(Finding("job", None, OVER_BUDGET, "max_cost_usd", message))
    return Preflight(parsed, name, combine(first, second, errors, warnings), first)


def _specification(text: bytes | None, wanted: Wanted) -> tuple[JobSpecification, list[Finding]]:
    """The job specification, an empty one where there is none or it is invalid, and what is wrong with it."""
    if text is None:
        return JobSpecification(), []
    parsed = job_specification.parse(text, wanted.providers)
    return (parsed, []) if isinstance(parsed, JobSpecification) else (JobSpecification(), list(parsed))
