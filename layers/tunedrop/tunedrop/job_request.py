"""The request that creates a job: what a job specification wishes, in the words that its service knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tunedrop.providers import ProviderProfile

if TYPE_CHECKING:
    from tunedrop.job_specification import JobSpecification

MAX_METADATA_PAIRS = 16


class Unmet(NamedTuple):
    """A wish that the service cannot meet; the message names the remedy."""

    code: str
    path: str
    message: str


def unmet(specification: JobSpecification, profile: ProviderProfile) -> Iterator[Unmet]:
    """The wishes of ``specification`` that the service has no words for: left out, they would be lost silently."""
    takes = {
        "suffix": profile.suffix_length is not None,
        "seed": profile.takes_seed,
        "integrations": profile.takes_integrations,
        "metadata": profile.takes_metadata,
    }
    for name, taken in takes.items():
        if not taken and getattr(specification, name) is not None:
            yield Unmet("unrecognized_key", name, f"{profile.name} takes no {name}; leave it out")
    length, suffix = profile.suffix_length, specification.suffix or ""
    if length is not None and len(suffix) > length:
        yield Unmet("invalid_value", "suffix", f"{profile.name} takes a suffix of at most {length} characters")
    own = (specification.extra_body or {}).get("hyperparameters", {})
    if not profile.hyperparameters_in_method and not isinstance(own, dict):
        yield Unmet("invalid_value", "extra_body.hyperparameters", "an object is expected")
    method = specification.method_name
    if method and method not in profile.methods:
        known = " and ".join(profile.methods)
        yield Unmet("wrong_method", "method", f"{profile.name} trains by {known} only; name another provider or method")


def parameters(
    run_id: str, specification: JobSpecification, model: str | None, profile: ProviderProfile
) -> dict[str, Any]:
    """What the job is created with, in the fine-tuning API's own words; ``run_id`` goes into its metadata, if it has
    any."""
    extra = _merged(profile.extra_body, specification.extra_body or {})
    wanted: dict[str, Any] = {
        "model": model,
        "suffix": specification.suffix,
        "seed": specification.seed,
        "integrations": specification.integrations,
    }
    if profile.hyperparameters_in_method:
        wanted["method"] = specification.method
    else:
        chosen = (specification.method or {}).get(specification.method_name or "") or {}
        # The client lets extra_body replace whole keys: what is to be one object must be made one here.
        own = extra.pop("hyperparameters", {})
        wanted["hyperparameters"] = _merged(
            own if isinstance(own, Mapping) else {}, chosen.get("hyperparameters") or {}
        )
    metadata = dict(specification.metadata or {})
    if profile.takes_metadata and len(metadata) < MAX_METADATA_PAIRS:
        metadata["run_id"] = run_id
    optional = {"metadata": metadata, "extra_body": extra}
    wanted |= {name: value or None for name, value in optional.items()}
    return {name: value for name, value in wanted.items() if value is not None and value != {}}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
