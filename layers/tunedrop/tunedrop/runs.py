"""A run: what becomes of one dropped dataset, from its event to its final state."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from tunedrop.clock import now, timestamp

UNDER_WAY = ("received", "uploading", "waiting", "training")
FINAL = (
    "succeeded",
    "failed",
    "cancelled",
    "rejected",
    "duplicate",
    "superseded",
    "missing",
    "over_budget",
    "timed_out",
)


def run_id_of(bucket: str, key: str, etag: str, occurred: str) -> str:
    """The id of the run that a notification stands for: the same notification, delivered twice, is the same run.

    ``occurred`` is the event's sequencer where it has one, else its time. 32 hexadecimal digits: it names the execution
    (at most 80 characters), the uploaded file and the folder of results.
    """
    # Lengths go in so that no two different events can read the same when joined.
    parts = b"".join(b"%d:%s" % (len(part), part) for part in (p.encode() for p in (bucket, key, etag, occurred)))
    return hashlib.sha256(parts).hexdigest()[:32]


def swept_run_id(bucket: str, key: str, etag: str, modified_at: float) -> str:
    """The id of the run that the sweeper starts for an object whose event was lost; ``modified_at`` in epoch seconds.

    Whole seconds count: reading an object tells no more of them, and a late event's run has to find this one.
    """
    return run_id_of(bucket, key, etag, timestamp(math.floor(modified_at)))


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What an execution is started with."""

    run_id: str
    bucket: str
    key: str
    etag: str
    size: int | None

    @classmethod
    def from_input(cls, given: Mapping[str, Any]) -> Self:
        """Reads an execution's input; what the execution has added to it is passed over.

        Raises:
            KeyError: a value is missing.
        """
        return cls(given["run_id"], given["bucket"], given["key"], given["etag"], given.get("size"))

    @classmethod
    def of(cls, run: Run) -> Self:
        """What ``run`` was started with."""
        return cls(run.run_id, run.bucket, run.key, run.etag, run.size)

    def to_input(self) -> str:
        """The execution's input; the same request always reads the same, so that starting it twice is harmless."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run did not succeed; ``code`` is stable and for machines, ``message`` a sentence for a person.

    Both are cut to what a notification can hold: some of them are a service's own words, of any length.
    """

    code: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", _cut(self.code, 100))
        object.__setattr__(self, "message", _cut(self.message, 1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The run document, the same in the ledger, the API and notifications.

    A run that publishes an adapter has the name that the adapter answers by as its ``fine_tuned_model``, and
    ``source_run_id`` is the run that has trained it, where one has.
    ``loss_curve`` is the training loss, thinned out to at most 32 steps. ``next_step`` is a sentence: what is left to
    be done before the model answers.
    Ids, counts and keys only: never a line of the dataset, never a secret. Times are ISO 8601 in UTC.
    """

    run_id: str
    state: str
    bucket: str
    key: str
    etag: str
    size: int | None = None
    provider: str | None = None
    model: str | None = None
    method: str | None = None
    examples: int | None = None
    tokens: int | None = None
    estimated_cost_usd: float | None = None
    file_id: str | None = None
    validation_file_id: str | None = None
    job_id: str | None = None
    fine_tuned_model: str | None = None
    finetune_id: str | None = None
    source_run_id: str | None = None
    trained_tokens: int | None = None
    loss_curve: tuple[float, ...] = ()
    result_keys: tuple[str, ...] = ()
    next_step: str | None = None
    error: Failure | None = None
    created_at: str
    updated_at: str
    finished_at: str | None = None

    @classmethod
    def of(cls, request: RunRequest) -> Self:
        """The run as it begins."""
        at = timestamp(now())
        return cls(**asdict(request), state="received", created_at=at, updated_at=at)

    @property
    def is_final(self) -> bool:
        """Whether nothing can become of it any more."""
        return self.finished_at is not None

    def document(self) -> dict[str, Any]:
        """The run as JSON values; what is not known is null."""
        return {**asdict(self), "result_keys": list(self.result_keys), "loss_curve": list(self.loss_curve)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The reverse of :meth:`document`; unknown keys (of a newer version) are passed over."""
        known = {field.name: document[field.name] for field in fields(cls) if field.name in document}
        error = known.get("error")
        known["error"] = Failure(error["code"], error["message"]) if error else None
        known["result_keys"] = tuple(known.get("result_keys") or ())
        known["loss_curve"] = tuple(known.get("loss_curve") or ())
        return cls(**known)


ADAPTERS = "adapters/"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DEPLOYMENT = "deployment"
"""Under this a run notes in the ledger how the adapter that it trains is to be published."""


def adapter_key(name: str, file: str) -> str:
    """Where the adapter called ``name`` lies to be published; that of a run is called by the run's id."""
    return f"{ADAPTERS}{name}/{file}"


def adapter_name(key: str) -> str | None:
    """What the adapter is called whose weights ``key`` is; None where it is not the key of an adapter's weights."""
    name = key.removeprefix(ADAPTERS).removesuffix(f"/{WEIGHTS}")
    return name if name and "/" not in name and key == adapter_key(name, WEIGHTS) else None


def is_adapter(key: str) -> bool:
    """Whether the key is of a file in the folder of adapters that are published."""
    return key.startswith(ADAPTERS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def results_key(run_id: str, name: str) -> str:
    """Where a run leaves the result called ``name``."""
    return f"results/{run_id}/{name}"
