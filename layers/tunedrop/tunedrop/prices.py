"""What is known of models: their encoding, token limit, price of training and end.

The facts are data (``models.json``), each kind with the date on which it was read. Prices: OpenAI's price list; ends:
OpenAI's page of deprecations. A provider has its own dates, so an end counts only for the provider it is listed for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path

import msgspec

from tunedrop.dataset.report import Estimate

_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{4})$")

#: Days before a model's end from which on a report warns of it.
NEAR = 90


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model with all of its dated names; ``shutdown`` holds an ISO date by provider."""

    encoding: str = "o200k_base"
    token_limit: int | None = None
    usd_per_million_tokens: float | None = None
    shutdown: dict[str, date] = {}


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    price_date: str
    shutdown_date: str
    families: dict[str, Family]
    encodings_by_prefix: dict[str, str]


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of the user's own, in US dollars per million training tokens; they win over those of the table."""

    price_date: str
    usd_per_million_tokens: Mapping[str, float]


class TrainingModel(msgspec.Struct, frozen=True):
    """A model as far as training it is concerned.

    ``token_limit`` is the number of tokens an example is cut at; ``usd_per_million_tokens`` is the price of training,
    None where it is not known; ``price_date`` is the ISO date on which it was read.
    """

    name: str
    encoding: str = "o200k_base"
    token_limit: int | None = None
    usd_per_million_tokens: float | None = None
    price_date: str | None = None
    shutdown: Mapping[str, date] = {}

    def estimate(self, examples: int, tokens: int, epochs: int | None = None) -> Estimate:
        """What training on ``tokens`` tokens an epoch is billed; ``epochs`` None leaves them to the provider."""
        epochs = epochs or default_epochs(examples)
        billable = tokens * epochs
        price = self.usd_per_million_tokens
        usd = None if price is None else round(billable * price / 1_000_000, 6)
        return Estimate(epochs, billable, usd, self.price_date)

    def end(self, provider: str, today: date, announced: date | None = None) -> tuple[bool, str] | None:
        """Whether the model has ended at the provider, and a sentence on it; None where its end is not near.

        ``announced`` is the date that the provider itself answers (``shutdown_date``); it wins over the table.
        """
        ends = announced or self.shutdown.get(provider)
        if ends is None or (ends - today).days > NEAR:
            return None
        others = ", ".join(still_offered(provider, today)) or "a model of another provider"
        verb = "was" if ends <= today else "will be"
        return ends <= today, f"{self.name} {verb} shut down by {provider} on {ends}; still offered: {others}"


def look_up(name: str, own_prices: PriceList | None = None) -> TrainingModel:
    """What is known of a model: a fine-tuned one (``ft:BASE:…``) counts as its base, a dated name as its family."""
    facts = _facts()
    base = name.split(":")[1] if name.startswith("ft:") and name.count(":") > 1 else name
    family_name = base if base in facts.families else _SNAPSHOT.sub("", base)
    family = facts.families.get(family_name)
    if family is None:
        prefixes = facts.encodings_by_prefix.items()
        family = Family(encoding=next((e for prefix, e in prefixes if base.startswith(prefix)), "o200k_base"))
    price, price_date = family.usd_per_million_tokens, facts.price_date
    for key in (name, base, family_name):
        if own_prices and key in own_prices.usd_per_million_tokens:
            price, price_date = own_prices.usd_per_million_tokens[key], own_prices.price_date
            break
    return TrainingModel(
        name=name,
        encoding=family.encoding,
        token_limit=family.token_limit,
        usd_per_million_tokens=price,
        price_date=None if price is None else price_date,
        shutdown=family.shutdown,
    )


def still_offered(provider: str, today: date) -> list[str]:
    """The models of the table that the provider has not ended."""
    ends = {name: family.shutdown.get(provider) for name, family in _facts().families.items()}
    return [name for name, end in ends.items() if end is not None and end > today]


def default_epochs(examples: int) -> int:
    """The epochs that the provider chooses for a number of examples (``dataset/RULES.md``, "Counting")."""
    if 3 * examples < 100:
        return min(25, 100 // max(examples, 1))
    if 3 * examples > 25_000:
        return max(1, 25_000 // examples)
    return 3


def over_budget(estimate: Estimate | None, max_cost_usd: float | None) -> str | None:
    """A sentence with the figures where the estimate exceeds ``max_cost_usd``, None where it does not.

    A limit is no limit where no price is known, so that is a sentence too.
    """
    if estimate is None or max_cost_usd is None:
        return None
    if estimate.usd is None:
        return (
            f"no price of training is known for this model, so a limit of {max_cost_usd:,g} USD cannot be kept: "
            "name a model with a known price, or lift the limit"
        )
    if estimate.usd <= max_cost_usd:
        return None
    return (
        f"training is estimated at {_usd(estimate.usd)} USD ({estimate.billable_tokens} tokens in {estimate.epochs} "
        f"epochs, prices of {estimate.price_date}), over max_cost_usd {_usd(max_cost_usd)}"
    )


def _usd(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.3g}"


@cache
def _facts() -> _Facts:
    data = Path(__file__).with_name("models.json").read_bytes()
    return msgspec.json.decode(data, type=_Facts)
