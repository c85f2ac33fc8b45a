"""The models that Workers AI serves with adapters, and which base model each of them is.

The table is data, ``workers_ai_models.json``, with the date on which it was read and where. Where Cloudflare refuses a
model that is in it, its own sentence is told.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MAX_RANK = 32
"""Of an adapter; https://developers.cloudflare.com/workers-ai/features/fine-tunes/loras/"""

# What the names of quantised copies end in; https://developers.cloudflare.com/workers-ai/features/fine-tunes/loras/
# wants adapters of models that are not.
_QUANTISED = re.compile(r"[-_.](bnb|awq|gptq|gguf|fp8|int[48]|[48]-?bit|w4a16|w8a8|mlx)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that Workers AI serves; ``model_type`` is what it wants to read in an adapter's configuration."""

    name: str
    model_type: str
    bases: tuple[str, ...]


@cache
def served_models() -> tuple[ServedModel, ...]:
    """Every model that is served with adapters."""
    table = json.loads(Path(__file__).with_name("workers_ai_models.json").read_bytes())
    return tuple(ServedModel(model["name"], model["model_type"], tuple(model["bases"])) for model in table["models"])


def served(base: str) -> ServedModel | None:
    """The model that serves adapters of ``base``; None where none does.

    ``base`` is what an adapter's configuration or a job calls it: copies of a model under other owners, and folders, go
    by the last part of their name.
    """
    name = base.rstrip("/").rpartition("/")[2].lower()
    return next((model for model in served_models() if name in model.bases), None)


def is_quantised(base: str) -> bool:
    """Whether the name is that of a quantised copy."""
    return _QUANTISED.search(base) is not None


def known_bases() -> str:
    """The base models, for a sentence."""
    return ", ".join(base for model in served_models() for base in model.bases)
