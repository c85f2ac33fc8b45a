"""What the sweeper asks of the ledger beyond what the steps of a run do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import boto3

from tunedrop.clock import now
from tunedrop.ledger import DynamoLedger, Ledger, _deserialised, _serialised, _Unchanged, arrival_id
from tunedrop.pages import Page
from tunedrop.runs import Run
from tunedrop.settings import LedgerSettings, load

_SWEEP: Any = {"id": {"S": "sweep"}}
_LEFT = ("cursors", "failing", "pass_began", "passed")


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A run that the sweeper has not settled yet.

    ``executions``: how many it has been given; ``creating_since``: the epoch second of an intent to create its job that
    was neither carried out nor taken back for certain.
    """

    run: Run
    executions: int = 1
    creating_since: float | None = None


@dataclass(slots=True)
class Sweep:
    """A sweep that has begun; times in epoch seconds. ``first_at`` is when the first of all sweeps did.

    What it leaves to the next one: ``cursors``, where listings go on that were not read to their end; ``failing``, what
    could not be looked at; ``pass_began``, when the listing of the bucket was begun that is being read; ``passed``,
    when the last one was that was read to its end.
    """

    first_at: float
    until: float
    cursors: dict[str, str] = field(default_factory=dict)
    failing: list[str] = field(default_factory=list)
    pass_began: float = 0
    passed: float = 0


class SweepLedger(Ledger, Protocol):
    """The ledger as the sweeper uses it. Every method raises Transient when it cannot be reached."""

    def begin_sweep(self, seconds: float) -> Sweep | None:
        """Begins a sweep that takes at most so long; None while another one is at it."""

    def end_sweep(self, sweep: Sweep) -> None:
        """Ends it, and keeps what it leaves to the next; nothing where another one has begun since."""

    def unsettled(self, cursor: str | None = None) -> Page[Unsettled]:
        """The runs that :meth:`close_run` was not called for, in parts; what was written just now may be missing."""

    def close_run(self, run_id: str) -> None:
        """Notes that nothing is left to be done about a run that has ended."""

    def next_execution(self, run_id: str, number: int) -> int:
        """Gives a run whose execution ``number`` is over the next one; its number, whoever gave it first."""

    def arrived(self, bucket: str, key: str, etag: str) -> float | None:
        """When the last run on an object of that eTag began, in epoch seconds; None where none ever did."""

    def run_of(self, job: str) -> str | None:
        """The id of the run whose job (``PROVIDER/ID``) it is; None where no run has recorded it."""


class DynamoSweepLedger(DynamoLedger):
    """The ledger's table as the sweeper uses it; ``sweep`` is the one item of its own."""

    def begin_sweep(self, seconds: float) -> Sweep | None:
        """See :meth:`SweepLedger.begin_sweep`: one conditional write, which notes the first sweep's time, too."""
        at = now()
        try:
            answer = self._call(
                "update_item",
                Key=_SWEEP,
                UpdateExpression="SET lease_until = :until, first_at = if_not_exists(first_at, :now)",
                ConditionExpression="attribute_not_exists(lease_until) OR lease_until < :now",
                ExpressionAttributeValues=_serialised({":now": at, ":until": at + seconds}),
                ReturnValues="ALL_NEW",
            )
        except _Unchanged:
            return None
        return _sweep(_deserialised(answer["Attributes"]))

    def end_sweep(self, sweep: Sweep) -> None:
        """See :meth:`SweepLedger.end_sweep`."""
        left = {name: getattr(sweep, name) for name in _LEFT}
        try:
            self._call(
                "update_item",
                Key=_SWEEP,
                UpdateExpression="SET left_behind = :left REMOVE lease_until",
                ConditionExpression="lease_until = :until",
                ExpressionAttributeValues=_serialised({":left": json.dumps(left), ":until": sweep.until}),
            )
        except _Unchanged:
            return

    def unsettled(self, cursor: str | None = None) -> Page[Unsettled]:
        """See :meth:`SweepLedger.unsettled`: a page is 1 MB of the table, of which most is passed over."""
        start = {"ExclusiveStartKey": {"id": {"S": cursor}}} if cursor else {}
        answer = self._call(
            "scan",
            FilterExpression="begins_with(id, :run) AND attribute_not_exists(settled)",
            ExpressionAttributeValues={":run": {"S": "run#"}},
            **start,
        )
        last = answer.get("LastEvaluatedKey")
        return Page([_unsettled(_deserialised(item)) for item in answer["Items"]], last["id"]["S"] if last else None)

    def close_run(self, run_id: str) -> None:
        """See :meth:`SweepLedger.close_run`."""
        self._update(run_id, "SET #mark = :mark", "attribute_exists(id)", {"#mark": "settled"}, {":mark": True})

    def next_execution(self, run_id: str, number: int) -> int:
        """See :meth:`SweepLedger.next_execution`."""
        expected = "#count = :number" + (" OR attribute_not_exists(#count)" if number == 1 else "")
        condition = f"attribute_exists(id) AND ({expected})"
        values = {":number": number, ":next": number + 1}
        try:
            item = self._update(run_id, "SET #count = :next", condition, {"#count": "executions"}, values)
        except _Unchanged as unchanged:
            item = unchanged.item
        return int(item["executions"])

    def arrived(self, bucket: str, key: str, etag: str) -> float | None:
        """See :meth:`SweepLedger.arrived`."""
        return self._get(arrival_id(bucket, key, etag)).get("begun_at")

    def run_of(self, job: str) -> str | None:
        """See :meth:`SweepLedger.run_of`."""
        return self._get(f"job#{job}").get("run_id")


def connect(environment: Mapping[str, str]) -> DynamoSweepLedger:
    """The ledger that ``environment`` names."""
    return DynamoSweepLedger(boto3.client("dynamodb"), load(LedgerSettings, environment).ledger_table)


def _sweep(item: Mapping[str, Any]) -> Sweep:
    return Sweep(item["first_at"], item["lease_until"], **json.loads(item.get("left_behind", "{}")))


def _unsettled(item: Mapping[str, Any]) -> Unsettled:
    return Unsettled(Run.from_document(item), item.get("executions", 1), item.get("intent_create_job"))
