"""A listing in parts: read as far as there is time, and gone on with later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page[Item]:
    """A part of a listing; ``cursor`` asks for the next one, None after the last."""

    items: Sequence[Item]
    cursor: str | None
