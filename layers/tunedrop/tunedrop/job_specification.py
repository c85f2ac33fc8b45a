"""NAME.job.json: how a dataset is to be trained on, in the provider API's own words."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from tunedrop.dataset.report import Finding
from tunedrop.dataset.strict_json import Malformed
from tunedrop.dataset.strict_json import parse as parse_json
from tunedrop.providers import Method
from tunedrop.schema import Mismatch, mismatches

#: Bytes that a job specification has at most.
MAX_SIZE = 1 << 20


class JobSpecification(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asks for; None where the stack's parameters decide.

    ``method`` has the shape of the fine-tuning API: ``{"type": "dpo", "dpo": {"hyperparameters": {…}}}``.
    """

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
    smoke_test: bool | str = False
    deploy: dict[str, Any] | None = None
    refuse_sensitive: bool = False

    @property
    def method_name(self) -> Method | None:
        """``supervised``, ``dpo`` or ``reinforcement``."""
        return self.method["type"] if self.method else None

    @property
    def deployment(self) -> dict[str, Any] | None:
        """How the trained adapter is to be published to Workers AI (its ``name``, where one is wished); None: not."""
        wish = (self.deploy or {}).get("workers_ai")
        if wish is None or wish is False:
            return None
        return {"workers_ai": True, **(wish if isinstance(wish, dict) else {})}

    @property
    def epochs(self) -> int | None:
        """The number of epochs that is asked for, None where the provider chooses."""
        settings = (self.method or {}).get(self.method_name or "") or {}
        epochs = (settings.get("hyperparameters") or {}).get("n_epochs")
        return int(epochs) if isinstance(epochs, int | float) else None


def parse(data: bytes, providers: Collection[str] | None = None) -> JobSpecification | tuple[Finding, ...]:
    """The specification in ``data``, or what is wrong with it; ``providers`` are the known ones, None for any."""
    if len(data) > MAX_SIZE:
        return (_finding("invalid_value", None, f"{len(data)} bytes; a job specification has at most {MAX_SIZE}"),)
    try:
        value = parse_json(data.removeprefix(b"\xef\xbb\xbf"))
    except Malformed as problem:
        return (_finding(problem.code, None, problem.message),)
    schema = _schema()
    findings = [
        _finding(_code(problem), problem.path or None, problem.message) for problem in mismatches(value, schema, schema)
    ]
    if not findings and providers is not None and value.get("provider") not in (None, *providers):
        message = f"not configured here, which takes a base URL and a key; there are {', '.join(sorted(providers))}"
        findings.append(_finding("unknown_provider", "provider", message))
    if findings:
        return tuple(findings)
    given = {key: member for key, member in value.items() if member is not None and not key.startswith("$")}
    if isinstance(given.get("method"), str):
        given["method"] = {"type": given["method"]}
    return JobSpecification(**given)


def _code(problem: Mismatch) -> str:
    if problem.keyword == "additionalProperties":
        return "unrecognized_key"
    return (
        "wrong_method" if problem.path in ("method", "method.type") and problem.keyword == "enum" else "invalid_value"
    )


def _finding(code: str, path: str | None, message: str) -> Finding:
    return Finding("job", None, code, path, message)


@cache
def _schema() -> dict[str, Any]:
    data = Path(__file__).with_name("job.schema.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Any])
