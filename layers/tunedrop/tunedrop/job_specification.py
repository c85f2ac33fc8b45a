"""The job specification ``NAME.job.json``: what its author wants of the job that trains on NAME."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import msgspec

from tunedrop.dataset import Finding


class JobSpecification(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job specification, in the fine-tuning API's own words and a few of Tunedrop's."""

    provider: str | None = None
    model: str | None = None
    method: dict[str, Any] | None = None
    suffix: str | None = None
    seed: int | None = None
    integrations: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None
    extra_body: dict[str, Any] | None = None
    max_cost_usd: float | None = None
    force: bool = False

    @property
    def method_type(self) -> Literal["supervised", "dpo", "reinforcement"] | None:
        """The method's name."""
        return self.method["type"] if self.method else None


def parse(body: bytes, providers: Collection[str]) -> tuple[JobSpecification, list[Finding]]:
    """Reads a job specification."""
    try:
        return msgspec.json.decode(body, type=JobSpecification), []
    except msgspec.DecodeError as error:
        return JobSpecification(), [Finding("job", None, "invalid_value", None, str(error))]
