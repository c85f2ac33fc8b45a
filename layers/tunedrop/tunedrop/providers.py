"""Fine-tuning services: what differs between them, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderProfile:
    """What a fine-tuning service does differently from the others.

    ``base_url`` is where its API is unless the stack says otherwise; ``takes_metadata`` whether a job can carry the
    run's id.
    """

    name: str
    base_url: str = ""
    takes_metadata: bool = True


PROFILES = {
    profile.name: profile
    for profile in (
        ProviderProfile(name="openai", base_url="https://api.openai.com/v1"),
        # Any gateway that speaks the same API, of which nothing more is promised.
        ProviderProfile(name="compatible", takes_metadata=False),
    )
}


class UnknownProvider(LookupError):
    """No profile has that name, or the profile has no base URL and the stack gives none."""


def profile_of(name: str) -> ProviderProfile:
    """The profile called ``name``.

    Raises:
        UnknownProvider: there is none; the message names those there are.
    """
    try:
        return PROFILES[name]
    except KeyError:
        raise UnknownProvider(f"no provider is called {name}; there are {', '.join(sorted(PROFILES))}") from None
