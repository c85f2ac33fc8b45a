"""The ledger of runs: what has been decided, so that a repeated step finds what an earlier attempt left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, cast

import boto3
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from tunedrop.clock import now, seconds, timestamp
from tunedrop.errors import Transient
from tunedrop.runs import FINAL, Failure, Run
from tunedrop.settings import LedgerSettings, load

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

KEPT_DAYS = 400


class UnknownRun(LookupError):
    """The ledger holds no run of that id."""


class Ledger(Protocol):
    """What the steps of a run ask of the ledger. Every method raises Transient when it cannot be reached."""

    def begin(self, run: Run) -> Run:
        """Writes a new run, unless it is there already; returns what the ledger holds then."""

    def get(self, run_id: str) -> Run:
        """The run; raises UnknownRun."""

    def update(self, run_id: str, **fields: Any) -> Run:
        """Sets fields of a run that is not final; a final one stays as it is. Returns what the ledger holds then."""

    def finish(self, run_id: str, state: str, error: Failure | None, **fields: Any) -> Run:
        """Gives a run its final state, once: a later call changes nothing. Returns what the ledger holds then."""

    def claim(self, content: str, run_id: str) -> str:
        """Makes ``run_id`` the run that trains on ``content``, unless a run that is under way or succeeded holds it
        already; returns the id of the run that holds it then."""

    def intend(self, run_id: str, effect: str) -> float | None:
        """Notes that ``effect`` is about to be brought about. None when it was not noted before; else the epoch second
        at which it was, and nothing changes."""

    def abandon(self, run_id: str, effect: str) -> None:
        """Takes back an intent: the effect is known not to have come about."""

    def plan(self, run_id: str, parameters: Mapping[str, Any]) -> None:
        """Notes what the run's job is to be created with, in the words of the fine-tuning API."""

    def planned(self, run_id: str) -> dict[str, Any]:
        """What :meth:`plan` noted last."""

    def note(self, run_id: str, name: str, value: Mapping[str, Any]) -> None:
        """Keeps JSON values under ``name`` for the run's next attempt, in the place of earlier ones."""

    def noted(self, run_id: str, name: str) -> dict[str, Any]:
        """What :meth:`note` kept last under ``name``, nothing where it never did."""

    def join(self, job: str, run_id: str) -> None:
        """Notes whose job it is, so that a callback finds the run; one that came before is not lost."""

    def call_back(self, job: str) -> str | None:
        """Notes that ``job`` (``PROVIDER/ID``) has called back; the token of the wait to end, where its run waits."""

    def listen(self, run_id: str) -> None:
        """Forgets the callbacks so far: what they hint at is about to be looked at."""

    def hold(self, run_id: str, bucket: str, key: str) -> None:
        """Notes that the run trains on an object, so that its deletion finds the run."""

    def withdraw(self, bucket: str, key: str, at: float) -> tuple[str, str | None] | None:
        """Notes for the run that trains on an object that it was deleted at that epoch second; its id and the token of
        its wait. None where no run that began before is under way."""

    def spare(self, run_id: str, until: float) -> bool:
        """Notes that the run is wanted all the same by who deleted its object before ``until`` (epoch second): the same
        content was dropped again. False where it is withdrawn already, and nothing changes."""

    def withdrawn(self, run_id: str) -> bool:
        """Whether the object that the run trains on was deleted."""

    def delivered(self, run_id: str) -> frozenset[str]:
        """The destinations that have accepted the run's notification."""

    def deliver(self, run_id: str, destination: str) -> None:
        """Notes that ``destination`` has accepted it."""


class DynamoLedger:
    """The ledger in a DynamoDB table whose only key is ``id``: ``run#ID`` for runs, ``content#HASH`` for claims,
    ``job#PROVIDER/ID`` for whose a job is, ``object#BUCKET/KEY`` for the run that trains on an object.

    Every write is one conditional write, so that of two attempts at the same time one sees what the other did.
    """

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def begin(self, run: Run) -> Run:
        """See :meth:`Ledger.begin`."""
        item = {"id": f"run#{run.run_id}", **run.document()}
        if self._put(item, "attribute_not_exists(id)", {}):
            return run
        return self.get(run.run_id)

    def get(self, run_id: str) -> Run:
        """See :meth:`Ledger.get`."""
        return Run.from_document(self._item(run_id))

    def update(self, run_id: str, **fields: Any) -> Run:
        """See :meth:`Ledger.update`."""
        return self._change(run_id, {**fields, "updated_at": timestamp(now())})

    def finish(self, run_id: str, state: str, error: Failure | None, **fields: Any) -> Run:
        """See :meth:`Ledger.finish`."""
        if state not in FINAL:
            raise ValueError(f"{state} is no final state")
        at = now()
        ended = {
            "state": state,
            "error": asdict(error) if error else None,
            "updated_at": timestamp(at),
            "finished_at": timestamp(at),
            "expires_at": int(at) + KEPT_DAYS * 86_400,
        }
        return self._change(run_id, {**fields, **ended})

    def claim(self, content: str, run_id: str) -> str:
        """See :meth:`Ledger.claim`."""
        item = {"id": f"content#{content}", "run_id": run_id, "expires_at": int(now()) + KEPT_DAYS * 86_400}
        if self._put(item, "attribute_not_exists(id) OR run_id = :run_id", {":run_id": run_id}):
            return run_id
        holder = str(self._get(f"content#{content}").get("run_id", run_id))
        try:
            run = self.get(holder)
        except UnknownRun:
            return holder  # written a moment ago: its run is just beginning
        if not run.is_final or run.state == "succeeded":
            return holder
        if self._put(item, "run_id = :run_id", {":run_id": holder}):
            return run_id
        return str(self._get(f"content#{content}").get("run_id", run_id))

    def intend(self, run_id: str, effect: str) -> float | None:
        """See :meth:`Ledger.intend`."""
        name = _intent(effect)
        try:
            self._update(run_id, "SET #name = :at", "attribute_not_exists(#name)", {"#name": name}, {":at": now()})
        except _Unchanged as unchanged:
            return float(unchanged.item[name])
        return None

    def abandon(self, run_id: str, effect: str) -> None:
        """See :meth:`Ledger.abandon`."""
        self._update(run_id, "REMOVE #name", "attribute_exists(id)", {"#name": _intent(effect)}, {})

    def plan(self, run_id: str, parameters: Mapping[str, Any]) -> None:
        """See :meth:`Ledger.plan`."""
        text = json.dumps(parameters)  # as text, numbers stay what they are
        self._update(run_id, "SET #name = :text", "attribute_exists(id)", {"#name": "job_parameters"}, {":text": text})

    def planned(self, run_id: str) -> dict[str, Any]:
        """See :meth:`Ledger.planned`."""
        parameters: dict[str, Any] = json.loads(self._item(run_id)["job_parameters"])
        return parameters

    def note(self, run_id: str, name: str, value: Mapping[str, Any]) -> None:
        """See :meth:`Ledger.note`."""
        values = {":text": json.dumps(value)}
        self._update(run_id, "SET #name = :text", "attribute_exists(id)", {"#name": f"note_{name}"}, values)

    def noted(self, run_id: str, name: str) -> dict[str, Any]:
        """See :meth:`Ledger.noted`."""
        value: dict[str, Any] = json.loads(self._item(run_id).get(f"note_{name}", "{}"))
        return value

    def join(self, job: str, run_id: str) -> None:
        """See :meth:`Ledger.join`."""
        item = self._upsert(f"job#{job}", {"run_id": run_id})
        if "called_back" in item:
            self._mark(run_id)

    def call_back(self, job: str) -> str | None:
        """See :meth:`Ledger.call_back`.

        The mark and the token are of one item, and the waiting state writes its token there under the condition that
        there is no mark: whichever comes second sees the other.
        """
        item = self._upsert(f"job#{job}", {"called_back": True})
        if "run_id" not in item:
            return None
        return self._mark(item["run_id"]).get("wake_token")

    def _mark(self, run_id: str) -> dict[str, Any]:
        names = {"#mark": "called_back"}
        try:
            return self._update(run_id, "SET #mark = :mark", "attribute_exists(id)", names, {":mark": True})
        except UnknownRun:
            return {}  # it ended so long ago that the ledger has forgotten it

    def listen(self, run_id: str) -> None:
        """See :meth:`Ledger.listen`."""
        names = {"#mark": "called_back", "#token": "wake_token"}
        self._update(run_id, "REMOVE #mark, #token", "attribute_exists(id)", names, {})

    def hold(self, run_id: str, bucket: str, key: str) -> None:
        """See :meth:`Ledger.hold`."""
        self._upsert(f"object#{bucket}/{key}", {"run_id": run_id})

    def withdraw(self, bucket: str, key: str, at: float) -> tuple[str, str | None] | None:
        """See :meth:`Ledger.withdraw`.

        The mark of a callback goes with it: whether the run waits already or is about to, it looks again.
        """
        run_id = self._get(f"object#{bucket}/{key}").get("run_id")
        try:
            if run_id is None or (run := self.get(run_id)).is_final or at <= seconds(run.created_at):
                return None
        except UnknownRun:
            return None
        names = {"#withdrawn": "withdrawn", "#mark": "called_back", "#spared": "spared_until"}
        change = "SET #withdrawn = :mark, #mark = :mark"
        spared = "attribute_exists(id) AND (attribute_not_exists(#spared) OR #spared < :at)"
        try:
            item = self._update(run_id, change, spared, names, {":mark": True, ":at": at})
        except _Unchanged:
            return None
        return run_id, item.get("wake_token")

    def spare(self, run_id: str, until: float) -> bool:
        """See :meth:`Ledger.spare`."""
        names = {"#withdrawn": "withdrawn", "#spared": "spared_until"}
        sooner = (
            "attribute_exists(id) AND attribute_not_exists(#withdrawn) "
            "AND (attribute_not_exists(#spared) OR #spared < :until)"
        )
        try:
            self._update(run_id, "SET #spared = :until", sooner, names, {":until": until})
        except _Unchanged as unchanged:
            return "withdrawn" not in unchanged.item
        return True

    def withdrawn(self, run_id: str) -> bool:
        """See :meth:`Ledger.withdrawn`."""
        return bool(self._item(run_id).get("withdrawn"))

    def delivered(self, run_id: str) -> frozenset[str]:
        """See :meth:`Ledger.delivered`."""
        return frozenset(self._item(run_id).get("delivered_to") or ())

    def deliver(self, run_id: str, destination: str) -> None:
        """See :meth:`Ledger.deliver`."""
        self._update(run_id, "ADD #name :to", "attribute_exists(id)", {"#name": "delivered_to"}, {":to": {destination}})

    def _change(self, run_id: str, fields: Mapping[str, Any]) -> Run:
        names = {f"#{name}": name for name in fields}
        values = {f":{name}": value for name, value in fields.items()}
        sets = ", ".join(f"#{name} = :{name}" for name in fields)
        # A run that is not final has a null where its end will be written, or nothing.
        unfinished = (
            "attribute_exists(id) AND (attribute_not_exists(finished_at) OR attribute_type(finished_at, :null))"
        )
        try:
            item = self._update(run_id, f"SET {sets}", unfinished, names, {**values, ":null": "NULL"})
        except _Unchanged as unchanged:
            item = unchanged.item
        return Run.from_document(item)

    def _upsert(self, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        values = {**values, "expires_at": int(now()) + KEPT_DAYS * 86_400}
        sets = ", ".join(f"#{name} = :{name}" for name in values)
        answer = self._call(
            "update_item",
            Key={"id": {"S": key}},
            UpdateExpression=f"SET {sets}",
            ExpressionAttributeNames={f"#{name}": name for name in values},
            ExpressionAttributeValues=_serialised({f":{name}": value for name, value in values.items()}),
            ReturnValues="ALL_NEW",
        )
        return _deserialised(answer["Attributes"])

    def _item(self, run_id: str) -> dict[str, Any]:
        item = self._get(f"run#{run_id}")
        if not item:
            raise UnknownRun(run_id)
        return item

    def _get(self, key: str) -> dict[str, Any]:
        answer = self._call("get_item", Key={"id": {"S": key}}, ConsistentRead=True)
        return _deserialised(answer.get("Item", {}))

    def _put(self, item: Mapping[str, Any], condition: str, values: Mapping[str, Any]) -> bool:
        arguments: dict[str, Any] = {"Item": _serialised(item), "ConditionExpression": condition}
        if values:
            arguments["ExpressionAttributeValues"] = _serialised(values)
        try:
            self._call("put_item", **arguments)
        except _Unchanged:
            return False
        return True

    def _update(
        self, run_id: str, change: str, condition: str, names: Mapping[str, str], values: Mapping[str, Any]
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = {"ExpressionAttributeValues": _serialised(values)} if values else {}
        try:
            answer = self._call(
                "update_item",
                Key={"id": {"S": f"run#{run_id}"}},
                UpdateExpression=change,
                ConditionExpression=condition,
                ExpressionAttributeNames=dict(names),
                ReturnValues="ALL_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **arguments,
            )
        except _Unchanged as unchanged:
            if not unchanged.item:
                raise UnknownRun(run_id) from None
            raise
        return _deserialised(answer["Attributes"])

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(TableName=self._table, **arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "ConditionalCheckFailedException":
                raise _Unchanged(_deserialised(cast(dict[str, Any], error.response).get("Item", {}))) from None
            if code in ("ValidationException", "ResourceNotFoundException", "AccessDeniedException"):
                raise  # a fault of ours or of the deployment, which no repetition mends
            raise Transient(f"DynamoDB answered {code}") from error
        except BotoCoreError as error:
            raise Transient(f"DynamoDB did not answer ({type(error).__name__})") from error
        return answer


def connect(environment: Mapping[str, str]) -> DynamoLedger:
    """The ledger that ``environment`` names."""
    return DynamoLedger(boto3.client("dynamodb"), load(LedgerSettings, environment).ledger_table)


class _Unchanged(Exception):
    """A condition did not hold; ``item`` is what the table holds."""

    def __init__(self, item: dict[str, Any]) -> None:
        super().__init__()
        self.item = item


def _intent(effect: str) -> str:
    return f"intent_{effect}"


def _serialised(values: Mapping[str, Any]) -> dict[str, Any]:
    serialise = TypeSerializer().serialize
    return {name: serialise(_with_decimals(value)) for name, value in values.items()}


def _deserialised(item: Mapping[str, Any]) -> dict[str, Any]:
    deserialise = TypeDeserializer().deserialize
    return {name: _without_decimals(deserialise(value)) for name, value in item.items()}


def _with_decimals(value: Any) -> Any:
    # DynamoDB's own serialiser takes no float, lest it lose digits; the shortest text that reads back equal loses none.
    if isinstance(value, list):
        return [_with_decimals(item) for item in value]
    return Decimal(repr(value)) if isinstance(value, float) else value


def _without_decimals(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return [_without_decimals(item) for item in value] if isinstance(value, list) else value
