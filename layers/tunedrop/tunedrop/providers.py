"""Fine-tuning services: what differs between them, as data."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderProfile:
    """What a fine-tuning service does differently from the others.

    ``base_url`` is where its API is unless the stack says otherwise; ``takes_metadata`` whether a job can carry the
    run's id.

    Sizes are in bytes. ``file_limit`` is what a file call takes at most, None where no limit is known. A dataset of
    more than ``uploads_above`` goes through the Uploads API instead, in parts of ``part_bytes``, up to
    ``uploads_limit``; None where the service has no such API. Parts under way are held in memory: smaller ones than the
    service allows (OpenAI: 64 MB) cost little and spare much.
    """

    name: str
    base_url: str = ""
    takes_metadata: bool = True
    file_limit: int | None = None
    uploads_above: int | None = None
    uploads_limit: int = 0
    part_bytes: int = 8 * MIB

    @property
    def largest_dataset(self) -> int | None:
        """Bytes of the largest dataset that the service takes in any way; None where no limit is known."""
        return self.file_limit if self.uploads_above is None else self.uploads_limit


PROFILES = {
    profile.name: profile
    for profile in (
        # https://platform.openai.com/docs/api-reference/files/create and /uploads: 512 MB, 8 GB
        ProviderProfile(
            name="openai",
            base_url="https://api.openai.com/v1",
            file_limit=512 * MIB,
            uploads_above=512_000_000,
            uploads_limit=8192 * MIB,
        ),
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
