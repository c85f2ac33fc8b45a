"""What is known of models: their encoding, limits, prices and shutdown dates."""

from __future__ import annotations

import msgspec

from tunedrop.dataset.report import Estimate


class TrainingModel(msgspec.Struct, frozen=True):
    """A model as far as training it is concerned.

    ``usd_per_million_tokens`` is the price of training, None where it is not known; ``price_date`` is the ISO date on
    which it was read.
    """

    name: str
    encoding: str = "o200k_base"
    token_limit: int | None = None
    usd_per_million_tokens: float | None = None
    price_date: str | None = None

    def estimate(self, examples: int, tokens: int, epochs: int | None = None) -> Estimate:
        """What training on ``tokens`` tokens an epoch is billed; ``epochs`` None leaves them to the provider."""
        epochs = epochs or default_epochs(examples)
        billable = tokens * epochs
        price = self.usd_per_million_tokens
        usd = None if price is None else round(billable * price / 1_000_000, 6)
        return Estimate(epochs, billable, usd, self.price_date)


def default_epochs(examples: int) -> int:
    """The epochs that the provider chooses for a number of examples (``specs/data-rules.md``, "Counting")."""
    if 3 * examples < 100:
        return min(25, 100 // max(examples, 1))
    if 3 * examples > 25_000:
        return max(1, 25_000 // examples)
    return 3
