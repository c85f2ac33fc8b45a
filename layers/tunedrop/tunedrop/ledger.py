"""The ledger of runs: what has been decided, so that a repeated step finds what an earlier attempt left."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, cast

import boto3
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from tunedrop.clock import now, seconds, timestamp
from tunedrop.errors import Transient
from tunedrop.limits import Book, Limit, Slot, milliseconds
from tunedrop.runs import FINAL, Failure, Run
from tunedrop.settings import LedgerSettings, load

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

KEPT_DAYS = 400
CREATE_JOB = "create_job"
"""The effect that costs money."""

_SLOT = "slot_"
_SHAPINGS = 5


class UnknownRun(LookupError):
    """The ledger holds no run of that id."""


class Ledger(Protocol):
    """What the steps of a run ask of the ledger. Every method raises Transient when it cannot be reached.

    Times of limits are milliseconds since the epoch.
    """

    def begin(self, run: Run) -> Run:
        """Writes a new run, unless it is there already, and that its object has had one; returns what the ledger holds
        then."""

    def get(self, run_id: str) -> Run:
        """The run; raises UnknownRun."""

    def update(self, run_id: str, **fields: Any) -> Run:
        """Sets fields of a run that is not final; a final one stays as it is. Returns what the ledger holds then."""

    def finish(self, run_id: str, state: str, error: Failure | None, **fields: Any) -> Run:
        """Gives a run its final state, once: a later call changes nothing. Returns what the ledger holds then."""

    def claim(self, content: str, run_id: str) -> str:
        """Makes ``run_id`` the run that trains on ``content``, unless one that is under way, has succeeded or may have
        a job that nobody knows of holds it already; returns the id of the run that holds it then.

        That is so after ``intend(run_id, CREATE_JOB)`` without a ``job_id``, until the intent is abandoned.
        """

    def intend(self, run_id: str, effect: str, lost: float | None = None) -> float | None:
        """Notes that ``effect`` is about to be brought about. None when it was not noted before; else the epoch second
        at which it was, and nothing changes. What was noted at ``lost`` counts as not noted: it has come to nothing."""

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

    def reserve(self, run_id: str, use: str, limit: Limit) -> Slot:
        """The slot of the run's call ``use``: the one that it has, else the next that is free. Raises UnknownRun."""

    def reserved(self, run_id: str, use: str) -> Slot | None:
        """The slot that the run's call ``use`` has and has not used up, if there is one."""

    def admit(self, run_id: str, use: str, slot: Slot, limit: Limit, over: int) -> int:
        """Lets the call of a slot be made, which uses the slot up: 0. Where it may not, the time to ask again.

        The slot's cell counts as busy until ``over``, at which the call is over for certain.
        """

    def settle(self, slot: Slot, limit: Limit, over: int, at: int) -> None:
        """Notes that a call that was admitted until ``over`` was over ``at`` that time already."""

    def close(self, limit: Limit, until: int) -> None:
        """Lets nobody make a call under the limit until then."""

    def closed_until(self, limit: Limit) -> int:
        """The time until which nobody may make a call; 0 where nothing is known."""

    def occupy(self, run_id: str, group: str, most: int) -> bool:
        """Gives the run one of the ``most`` places of a group, or says that there is none left; one that has a place
        keeps it."""

    def release(self, run_id: str) -> None:
        """Gives back the slots, the place and the object that the run still has, for it has ended; may be repeated."""

    def join(self, job: str, run_id: str) -> None:
        """Notes whose job it is, so that a callback finds the run; one that came before is not lost."""

    def call_back(self, job: str) -> str | None:
        """Notes that ``job`` (``PROVIDER/ID``) has called back; the token of the wait to end, where its run waits."""

    def listen(self, run_id: str) -> None:
        """Forgets the callbacks so far: what they hint at is about to be looked at."""

    def hold(self, run_id: str, bucket: str, key: str) -> None:
        """Notes that the run trains on an object, until it is released, so that the object's deletion finds the run."""

    def withdraw(self, bucket: str, key: str, at: float) -> list[tuple[str, str | None]]:
        """Notes for the runs that train on an object that it was deleted at that epoch second; their ids and the tokens
        of their waits. Only runs that are under way and began before count, the oldest of them first.
        """

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
    ``job#PROVIDER/ID`` for whose a job is, ``object#BUCKET/KEY`` for the runs that train on an object,
    ``arrival#BUCKET/KEY/ETAG`` for the run that began last on an object as it was then, ``limit#NAME`` and
    ``places#GROUP`` for the limits of a service.

    Every write is one conditional write, so that of two attempts at the same time one sees what the other did.
    """

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def begin(self, run: Run) -> Run:
        """See :meth:`Ledger.begin`."""
        item = {"id": f"run#{run.run_id}", **run.document()}
        if not self._put(item, "attribute_not_exists(id)", {}):
            run = self.get(run.run_id)
        begun_at = seconds(run.created_at)
        arrival = {"id": arrival_id(run.bucket, run.key, run.etag), "run_id": run.run_id, "begun_at": begun_at}
        expiring = {**arrival, "expires_at": int(now()) + KEPT_DAYS * 86_400}
        self._put(expiring, "attribute_not_exists(id) OR begun_at < :at", {":at": begun_at})
        return run

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
            found = self._item(holder)
        except UnknownRun:
            return holder  # written a moment ago: its run is just beginning
        run = Run.from_document(found)
        if not run.is_final or run.state == "succeeded" or (_intent(CREATE_JOB) in found and not run.job_id):
            return holder
        if self._put(item, "run_id = :run_id", {":run_id": holder}):
            return run_id
        return str(self._get(f"content#{content}").get("run_id", run_id))

    def intend(self, run_id: str, effect: str, lost: float | None = None) -> float | None:
        """See :meth:`Ledger.intend`."""
        name = _intent(effect)
        condition, values = "attribute_not_exists(#name)", {":at": now()}
        if lost is not None:
            condition, values = f"{condition} OR #name = :lost", {**values, ":lost": lost}
        try:
            self._update(run_id, "SET #name = :at", condition, {"#name": name}, values)
        except _Unchanged as unchanged:
            at = unchanged.item.get(name)
            return float(at) if at is not None else self.intend(run_id, effect, lost)  # taken back a moment ago
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

    def reserve(self, run_id: str, use: str, limit: Limit) -> Slot:
        """See :meth:`Ledger.reserve`.

        A ticket, the next slot of the ticket's cell, a note of it: a death in between loses the slot, never the limit.
        """
        name = f"{_SLOT}{use}"
        noted = self._item(run_id).get(name)
        if noted and (slot := _slot(noted)).limit == limit.name and slot.cell < limit.cells:
            return slot
        slot = self._deal(limit)
        unchanged = "#name = :noted" if noted else "attribute_not_exists(#name)"
        values = {":slot": _written(slot)} | ({":noted": noted} if noted else {})
        try:
            self._update(run_id, "SET #name = :slot", unchanged, {"#name": name}, values)
        except _Unchanged:  # the same step runs twice, and one slot is enough
            self._return(slot)
            return self.reserve(run_id, use, limit)
        except Transient:
            # It may be noted all the same. Two runs at one slot are kept apart by its cell; a lost one serves nobody.
            with suppress(Transient):
                self._return(slot)
            raise
        return slot

    def reserved(self, run_id: str, use: str) -> Slot | None:
        """See :meth:`Ledger.reserved`."""
        noted = self._item(run_id).get(f"{_SLOT}{use}")
        return _slot(noted) if noted else None

    def _deal(self, limit: Limit) -> Slot:
        at = milliseconds(now())
        book = self._ticket(limit, at)
        spent = {_written(given) for given in book.returned if book.worth(given, limit, at) is None}
        given = book.best_returned(limit, at)
        if given:
            again = Slot(limit.name, given.cell, max(given.at, at))
            values: dict[str, Any] = {":text": _written(given), ":spent": {_written(given), *spent}}
            condition, change = "contains(returned, :text)", "DELETE returned :spent"
            if again.at != given.at:
                condition += f" AND frees[{given.cell}] = :free"
                change += f" SET frees[{given.cell}] = :next"
                values |= {":free": given.at + limit.spacing, ":next": again.at + limit.spacing}
            with suppress(_Unchanged):  # somebody else was given it
                self._book(limit, change, condition, values)
                return again
        free = f"frees[{book.turn}]"
        tidy, used_up = (" DELETE returned :spent", {":spent": spent}) if spent else ("", {})
        if book.frees[book.turn] <= at:
            with suppress(_Unchanged):  # somebody else has just taken it
                values = {":next": at + limit.spacing, ":at": at, **used_up}
                self._book(limit, f"SET {free} = :next{tidy}", f"{free} <= :at", values)
                return Slot(limit.name, book.turn, at)
        values = {":spacing": limit.spacing, **used_up}
        after = self._book(limit, f"SET {free} = {free} + :spacing{tidy}", "attribute_exists(id)", values)
        return Slot(limit.name, book.turn, after.frees[book.turn] - limit.spacing)

    def _ticket(self, limit: Limit, at: int) -> Book:
        values = {":one": 1, ":cells": limit.cells, ":period": limit.period}
        for _ in range(_SHAPINGS):
            with suppress(_Unchanged):
                return self._book(limit, "ADD tickets :one", "cells = :cells AND #period = :period", values)
            self._shape(limit, at)
        raise _shapeless()

    def _shape(self, limit: Limit, at: int) -> None:
        """Makes the limit's item what the limit is now."""
        item = self._get(f"limit#{limit.name}")
        shaped = _book(item).shaped(limit, at)
        values: dict[str, Any] = {":cells": shaped.cells, ":period": shaped.period, ":opens": list(shaped.opens)}
        change = "SET cells = :cells, #period = :period, opens = :opens"
        if "cells" in item:
            condition = "changes = :changes AND size(frees) = :size"
            change += ", frees = list_append(frees, :more)"
            known = len(item["frees"])
            values |= {":changes": item["changes"], ":size": known, ":more": list(shaped.frees[known:])}
        else:
            condition = "attribute_not_exists(cells)"
            change += ", frees = :frees, tickets = :zero, changes = :zero"
            change += ", closed_until = if_not_exists(closed_until, :zero)"
            values |= {":frees": list(shaped.frees), ":zero": 0}
        with suppress(_Unchanged):  # which the next attempt sees
            self._book(limit, change, condition, values)

    def admit(self, run_id: str, use: str, slot: Slot, limit: Limit, over: int) -> int:
        """See :meth:`Ledger.admit`."""
        at = milliseconds(now())
        cell = f"opens[{slot.cell}]"
        values = {":cells": limit.cells, ":period": limit.period, ":at": at, ":opens": over + limit.period, ":one": 1}
        condition = f"cells = :cells AND #period = :period AND {cell} <= :at AND closed_until <= :at"
        for _ in range(_SHAPINGS):
            try:
                self._book(limit, f"SET {cell} = :opens ADD changes :one", condition, values)
            except _Unchanged:
                book = _book(self._get(f"limit#{limit.name}"))
                if (book.cells, book.period) == (limit.cells, limit.period):
                    return max(book.opens[slot.cell], book.closed_until, at + 1)
                self._shape(limit, at)
            else:
                self._update(run_id, "REMOVE #name", "attribute_exists(id)", {"#name": f"{_SLOT}{use}"}, {})
                return 0
        raise _shapeless()

    def settle(self, slot: Slot, limit: Limit, over: int, at: int) -> None:
        """See :meth:`Ledger.settle`."""
        cell = f"opens[{slot.cell}]"
        values = {":then": over + limit.period, ":opens": at + limit.period, ":one": 1}
        with suppress(_Unchanged):  # the limit's size has changed since: the cell stays shut as long as it was to
            self._book(limit, f"SET {cell} = :opens ADD changes :one", f"{cell} = :then", values)

    def close(self, limit: Limit, until: int) -> None:
        """See :meth:`Ledger.close`."""
        with suppress(_Unchanged):
            condition = "attribute_not_exists(closed_until) OR closed_until < :until"
            self._book(limit, "SET closed_until = :until", condition, {":until": until})

    def closed_until(self, limit: Limit) -> int:
        """See :meth:`Ledger.closed_until`."""
        return _book(self._get(f"limit#{limit.name}")).closed_until

    def occupy(self, run_id: str, group: str, most: int) -> bool:
        """See :meth:`Ledger.occupy`.

        Where there is none left, one of those that have a place, by chance, is looked at: a run that ended without
        giving it back loses it.
        """
        self._update(run_id, "SET #place = :group", "attribute_exists(id)", {"#place": "place"}, {":group": group})
        condition = "attribute_not_exists(holders) OR contains(holders, :run_id) OR size(holders) < :most"
        values = {":me": {run_id}, ":run_id": run_id, ":most": most}
        for _ in range(2):
            with suppress(_Unchanged):
                self._write(f"places#{group}", "ADD holders :me", condition, {}, values)
                return True
            if not self._vacated(group):
                break
        return False

    def _vacated(self, group: str) -> bool:
        holders = self._get(f"places#{group}").get("holders")
        if not holders:
            return True
        one = random.choice(sorted(holders))  # noqa: S311 - no secret
        try:
            if not self.get(one).is_final:
                return False
        except UnknownRun:
            pass
        self._vacate(group, one)
        return True

    def _vacate(self, group: str, run_id: str) -> None:
        self._write(f"places#{group}", "DELETE holders :run", "attribute_exists(id)", {}, {":run": {run_id}})

    def release(self, run_id: str) -> None:
        """See :meth:`Ledger.release`."""
        item = self._item(run_id)
        for name in item:
            if name.startswith(_SLOT):
                with suppress(_Unchanged):  # another attempt at this has given it back
                    self._update(run_id, "REMOVE #name", "#name = :slot", {"#name": name}, {":slot": item[name]})
                    self._return(_slot(item[name]))
        with suppress(_Unchanged):
            held = f"object#{item['bucket']}/{item['key']}"
            self._write(held, "DELETE runs :runs", "attribute_exists(id)", {}, {":runs": {run_id}})
        if "place" in item:
            with suppress(_Unchanged):
                self._vacate(item["place"], run_id)
            self._update(run_id, "REMOVE #place", "attribute_exists(id)", {"#place": "place"}, {})

    def _return(self, slot: Slot) -> None:
        with suppress(_Unchanged):
            values = {":slot": {_written(slot)}}
            self._write(f"limit#{slot.limit}", "ADD returned :slot", "attribute_exists(id)", {}, values)

    def _book(self, limit: Limit, change: str, condition: str, values: Mapping[str, Any]) -> Book:
        names = {"#period": "period"} if "#period" in change + condition else {}
        return _book(self._write(f"limit#{limit.name}", change, condition, names, values))

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
        values = {":runs": {run_id}, ":expires_at": int(now()) + KEPT_DAYS * 86_400}
        change = "ADD runs :runs SET expires_at = :expires_at"
        self._write(f"object#{bucket}/{key}", change, None, {}, values)

    def withdraw(self, bucket: str, key: str, at: float) -> list[tuple[str, str | None]]:
        """See :meth:`Ledger.withdraw`.

        The mark of a callback goes with it: whether the run waits already or is about to, it looks again.
        """
        found = []
        for run_id in self._get(f"object#{bucket}/{key}").get("runs", ()):
            with suppress(UnknownRun):
                run = self.get(run_id)
                if not run.is_final and seconds(run.created_at) < at:
                    found.append(run)
        withdrawn = []
        for run in sorted(found, key=lambda run: run.created_at):
            with suppress(_Unchanged):
                withdrawn.append((run.run_id, self._withdraw(run.run_id, at)))
        return withdrawn

    def _withdraw(self, run_id: str, at: float) -> str | None:
        """Marks the run, and answers the token of its wait; raises _Unchanged where it is spared."""
        names = {"#withdrawn": "withdrawn", "#mark": "called_back", "#spared": "spared_until"}
        change = "SET #withdrawn = :mark, #mark = :mark"
        spared = "attribute_exists(id) AND (attribute_not_exists(#spared) OR #spared < :at)"
        return self._update(run_id, change, spared, names, {":mark": True, ":at": at}).get("wake_token")

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
        key = f"run#{run_id}"
        try:
            return self._write(key, change, condition, names, values)
        except _Unchanged as unchanged:
            # DynamoDB answers with the item; not every store that speaks its language does.
            item = unchanged.item or self._get(key)
            if not item:
                raise UnknownRun(run_id) from None
            raise _Unchanged(item) from None

    def _write(
        self, key: str, change: str, condition: str | None, names: Mapping[str, str], values: Mapping[str, Any]
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = {"ExpressionAttributeValues": _serialised(values)} if values else {}
        if condition:
            arguments["ConditionExpression"] = condition
        if names:
            arguments["ExpressionAttributeNames"] = dict(names)
        answer = self._call(
            "update_item",
            Key={"id": {"S": key}},
            UpdateExpression=change,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **arguments,
        )
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


def arrival_id(bucket: str, key: str, etag: str) -> str:
    """The id of the item that tells of the last run on an object of that eTag; at most 1,300 of 2,048 bytes."""
    return f"arrival#{bucket}/{key}/{etag}"


def _shapeless() -> Transient:
    return Transient("the limit's size changes again and again")


class _Unchanged(Exception):
    """A condition did not hold; ``item`` is what the table holds."""

    def __init__(self, item: dict[str, Any]) -> None:
        super().__init__()
        self.item = item


def _written(slot: Slot) -> str:
    return f"{slot.cell}@{slot.at}@{slot.limit}"


def _slot(text: str) -> Slot:
    cell, at, limit = text.split("@", 2)
    return Slot(limit, int(cell), int(at))


def _book(item: Mapping[str, Any]) -> Book:
    if "cells" not in item:
        return Book(closed_until=item.get("closed_until", 0))
    return Book(
        cells=item["cells"],
        period=item["period"],
        tickets=item["tickets"],
        opens=tuple(item["opens"]),
        frees=tuple(item["frees"]),
        returned=frozenset(map(_slot, item.get("returned", ()))),
        closed_until=item["closed_until"],
    )


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
