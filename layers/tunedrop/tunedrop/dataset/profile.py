"""What differs between providers, as data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

Method = Literal["supervised", "dpo", "reinforcement"]


class DataProfile(msgspec.Struct, frozen=True):
    """A provider's limits on a dataset; the defaults are OpenAI's (``RULES.md``)."""

    #: fewest examples of a training file, by method
    minimum_examples: Mapping[str, int] = MappingProxyType({"supervised": 10, "dpo": 10, "reinforcement": 10})
    #: may a reinforcement example hold a system message
    system_in_reinforcement: bool = False
    #: may user messages of chat and reinforcement examples hold images
    images: bool = True
    #: most images in one example
    max_images: int = 10
    #: most examples with images in one file
    max_examples_with_images: int = 50_000
    #: tokens an example is cut at; None: the model's own limit
    token_limit: int | None = None


#: What is known of providers by name; one that is not listed here has the defaults.
PROFILES: Mapping[str, DataProfile] = MappingProxyType(
    {
        "openai": DataProfile(),
        "azure": DataProfile(),
        "bedrock": DataProfile(
            minimum_examples=MappingProxyType({"supervised": 10, "dpo": 10, "reinforcement": 100}),
            system_in_reinforcement=True,
        ),
        "nebius": DataProfile(images=False),
        "litellm": DataProfile(),
    }
)
