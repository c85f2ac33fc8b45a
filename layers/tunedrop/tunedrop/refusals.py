"""What a fine-tuning service refuses for good, recognised from its answer: what it means, and what mends it.

Services say the same in different codes and words; the table below is what is known of them. What it does not know is
told by its status alone (:mod:`tunedrop.provider`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tunedrop.errors import Denied, Rejected

_ELSEWHERE = 'train elsewhere: set the parameter Provider, or "provider" in the job specification, to another service'


_QUOTATION = re.compile(
    r"[\[{].*[\]}]|[\[{].*"
    r"|\"[^\"]*\s[^\"]*(\"|$)|`[^`]*\s[^`]*(`|$)|“[^”]*\s[^”]*(”|$)"
    r"|(?<!\w)'[^']*\s[^']*('(?!\w)|$)"  # an apostrophe is between letters
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One kind of refusal.

    It is recognised by the service's ``error.code`` or ``error.type`` being one of ``codes`` (compared without case,
    ``_`` and ``-``), or by its message fitting ``words``.
    """

    code: str
    """What the run's error is called."""

    ends: type[Denied | Rejected]
    """How the run ends: Rejected for what the user mends in the job specification, Denied for the operator's."""

    meaning: str
    remedy: str
    codes: tuple[str, ...] = ()
    words: str | None = None
    also_429: bool = False
    """Whether it comes as a 429 too, which in other words than these asks for patience."""

    def error(self, said: str) -> Denied | Rejected:
        """The error that ends the run; ``said`` is the service's own sentence, with its colon, or nothing."""
        return self.ends(self.code, f"{self.meaning}{said.rstrip('.')}. What helps: {self.remedy}")


#: The first that fits counts.
REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "insufficient_quota",
        Denied,
        "the account at the fine-tuning service is out of quota",
        "add credit or raise the limit at the service, then drop the file again",
        # https://platform.openai.com/docs/guides/error-codes; the words of 402 and of gateways that drop the code
        codes=("insufficient_quota", "quota_exceeded", "payment_required"),
        words=r"exceeded your current quota|insufficient (balance|credits?|funds)|credit balance is too low",
        also_429=True,
    ),
    Refusal(
        "billing_hard_limit_reached",
        Denied,
        "the account at the fine-tuning service has reached its spending limit",
        "raise the limit at the service or wait for the next billing period, then drop the file again",
        codes=(
            "billing_hard_limit_reached",
            "organization_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "project_spend_limit_exceeded",
        ),
        words=r"billing (hard )?limit|spend(ing)? limit",
        also_429=True,
    ),
    Refusal(
        "billing_not_active",
        Denied,
        "billing is not active for the account at the fine-tuning service",
        "set up or mend the payment there, then drop the file again",
        codes=("billing_not_active", "account_deactivated", "account_suspended"),
        words=(
            r"billing (is|has) not (been )?active|account is not active"
            r"|(account|organi[sz]ation) (is|has been) (deactivated|suspended)"
        ),
        also_429=True,
    ),
    Refusal(
        "fine_tuning_closed",
        Denied,
        "the fine-tuning service takes no new jobs from this organisation",
        # https://platform.openai.com/docs/deprecations: organisations that never trained since 2026-05-07, those that
        # did not use a tuned model for 60 days since 2026-07-02, all of them from 2027-01-06
        f"models that were trained before keep answering; {_ELSEWHERE}, such as azure, bedrock or nebius",
        codes=("fine_tuning_not_available", "fine_tuning_closed", "fine_tuning_disabled", "training_not_allowed"),
        words=(
            r"fine[- ]?tuning\b[^.]{0,80}\b(no longer|not|unavailable)\b"
            r"[^.]{0,80}\b(organi[sz]ation|account|project|customers)"
            r"|(organi[sz]ation|account|project)\b[^.]{0,80}\b(not|no longer|cannot|can't)\b[^.]{0,80}\bfine[- ]?tun"
            r"|(creating|create|new) (new )?fine[- ]?tuning jobs?\b[^.]{0,40}\b(no longer|not|unavailable)\b"
            r"|fine[- ]?tuning( api| platform)? (is|has been) (no longer available|discontinued|shut down|winding down)"
        ),
    ),
    Refusal(
        "region_not_supported",
        Denied,
        "the fine-tuning service does not train this where it was asked to",
        f"use an account or a base URL in a region that offers it, or another model, or {_ELSEWHERE}",
        codes=("unsupported_country_region_territory", "region_not_supported", "unsupported_region"),
        words=(
            r"(not (supported|available|offered|enabled)|unavailable|unsupported)\b[^.]{0,80}"
            r"\b(region|country|location|territory)\b"
            r"|\b(region|country|territory)\b[^.]{0,80}\b(not|un)\s?(supported|available|enabled)"
        ),
    ),
    Refusal(
        "model_retired",
        Rejected,
        "the fine-tuning service has retired the model",
        'name a newer one as "model" in the job specification, or as the parameter DefaultModel',
        codes=("model_retired", "model_deprecated", "deprecated_model", "model_shut_down"),
        words=(
            r"model\b.{0,120}\b(has been|is|was|are) (now )?"
            r"(deprecated|retired|shut ?down|sunset|decommissioned|discontinued)"
            r"|model\b.{0,120}\b(is|are) no longer (available|supported|offered)"
        ),
    ),
    Refusal(
        "model_not_tunable",
        Rejected,
        "the fine-tuning service does not train this model",
        'name another as "model" in the job specification, or as the parameter DefaultModel; the service lists those '
        "that it trains",
        codes=("model_not_available", "model_not_tunable", "model_not_supported", "unsupported_model"),
        words=(
            r"(not (available|supported|eligible|enabled) for|(does|do) not support|not allow) fine[- ]?tuning"
            r"|(cannot|can't|can not) be fine[- ]?tuned|not (a )?fine[- ]?tunable"
            r"|fine[- ]?tuning (is )?not (supported|available) (for|with|on) "
        ),
    ),
    Refusal(
        "model_not_found",
        Rejected,
        "the fine-tuning service does not know the model",
        'name another that it has, and that its key may use, as "model" in the job specification or as the parameter '
        "DefaultModel",
        codes=("model_not_found",),
        words=r"\bmodel\b.{0,120}\bdoes not exist",
    ),
)


def without_quotations(sentence: str) -> str:
    """A service's sentence, on one line, without what it may quote of a dataset: JSON, and words in quotation marks. A
    single word in quotation marks stays: it is a model, a parameter or a status."""
    return _QUOTATION.sub("…", " ".join(sentence.split()))


def recognise(codes: Iterable[object], message: str, status: int | None = None) -> Refusal | None:
    """The refusal that an answer means, with its HTTP status where it has one; None where it is none that is known."""
    given = {_plain(str(code)) for code in codes if code}
    possible = [refusal for refusal in REFUSALS if status != 429 or refusal.also_429]
    for refusal in possible:
        if given & {_plain(code) for code in refusal.codes}:
            return refusal
    for refusal in possible:
        if refusal.words and re.search(refusal.words, message, re.IGNORECASE):
            return refusal
    return None


def _plain(code: str) -> str:
    return code.lower().replace("_", "").replace("-", "")
