"""What is known of models: their encoding, limits, prices and shutdown dates."""

from __future__ import annotations

import msgspec


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
