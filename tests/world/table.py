"""An atomic table behind the interface of DynamoDB's client, for the real ledger to write into.

moto's threaded server looks and writes in two steps; here a condition and its effect are one. It evaluates the
expressions of https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Expressions.html that the product uses,
and refuses those that it does not know. The ledger's contract tests hold it to what moto answers.
"""

import re
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from botocore.exceptions import ClientError

Value = dict[str, Any]  # {"S": "text"}, as DynamoDB's API has it
Item = dict[str, Value]
Values = Mapping[str, Value]
Condition = Callable[[Item, Values], bool]
Operand = Callable[[Item, Values], Value | None]
Change = Callable[[Item, Item, Values], Item]  # of the item as it was and as it is so far, to what it becomes
Path = tuple[str | int, ...]  # an attribute's name, then the keys and indices inside it


class Table:
    """Items by the key ``id``. What is stored is never changed in place, so it need not be copied."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self._lock = threading.Lock()

    def get_item(self, *, Key: Item, **_: Any) -> dict[str, Any]:
        with self._lock:
            item = self.items.get(Key["id"]["S"])
            return {"Item": item} if item is not None else {}

    def put_item(self, *, Item: Item, **asked: Any) -> dict[str, Any]:
        with self._lock:
            key = Item["id"]["S"]
            self._require(key, asked)
            self.items[key] = Item
            return {}

    def update_item(self, *, Key: Item, UpdateExpression: str, **asked: Any) -> dict[str, Any]:
        with self._lock:
            key = Key["id"]["S"]
            self._require(key, asked)
            names = tuple(sorted(asked.get("ExpressionAttributeNames", {}).items()))
            before = self.items.get(key, {})
            after: Item = {**before, **Key}
            for change in _changes(UpdateExpression, names):
                after = change(before, after, asked.get("ExpressionAttributeValues", {}))
            self.items[key] = after
            return {"Attributes": after} if asked.get("ReturnValues") == "ALL_NEW" else {}

    def delete_item(self, *, Key: Item, **asked: Any) -> dict[str, Any]:
        with self._lock:
            key = Key["id"]["S"]
            self._require(key, asked)
            self.items.pop(key, None)
            return {}

    def _require(self, key: str, asked: Mapping[str, Any]) -> None:
        text = asked.get("ConditionExpression")
        if text is None:
            return
        names = tuple(sorted(asked.get("ExpressionAttributeNames", {}).items()))
        item = self.items.get(key)
        if not _condition(text, names)(item or {}, asked.get("ExpressionAttributeValues", {})):
            failed: Any = {"Error": {"Code": "ConditionalCheckFailedException", "Message": "The condition failed"}}
            if item is not None and asked.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD":
                failed["Item"] = item
            raise ClientError(failed, "Write")


@lru_cache(maxsize=1000)
def _condition(text: str, names: tuple[tuple[str, str], ...]) -> Condition:
    parser = _Parser(text, dict(names))
    condition = parser.either()
    parser.end()
    return condition


@lru_cache(maxsize=1000)
def _changes(text: str, names: tuple[tuple[str, str], ...]) -> list[Change]:
    parser = _Parser(text, dict(names))
    changes = []
    while clause := parser.take("SET", "REMOVE", "ADD", "DELETE"):
        changes.append(parser.change(clause))
        while parser.take(","):
            changes.append(parser.change(clause))
    parser.end()
    return changes


class _Parser:
    """Reads an expression from left to right; what it returns are functions of an item and the values given."""

    def __init__(self, text: str, names: Mapping[str, str]) -> None:
        self._words = re.findall(r"[#:]?\w+|<>|<=|>=|[=<>(),+-]|\S", text)
        self._names = names

    def take(self, *wanted: str) -> str | None:
        """The next word if it is one of these, in capitals; it is then behind us."""
        if self._words and self._words[0].upper() in wanted:
            return self._words.pop(0).upper()
        return None

    def end(self) -> None:
        if self._words:
            raise NotImplementedError(f"not understood: {' '.join(self._words)}")

    def _need(self, word: str) -> None:
        if not self.take(word):
            raise NotImplementedError(f"{word} is expected before: {' '.join(self._words)}")

    def either(self) -> Condition:
        found = [self._all()]
        while self.take("OR"):
            found.append(self._all())
        return lambda item, values: any(condition(item, values) for condition in found)

    def _all(self) -> Condition:
        found = [self._one()]
        while self.take("AND"):
            found.append(self._one())
        return lambda item, values: all(condition(item, values) for condition in found)

    def _one(self) -> Condition:
        if self.take("NOT"):
            negated = self._one()
            return lambda item, values: not negated(item, values)
        if self.take("("):
            inner = self.either()
            self._need(")")
            return inner
        if kind := self.take("ATTRIBUTE_EXISTS", "ATTRIBUTE_NOT_EXISTS", "ATTRIBUTE_TYPE", "CONTAINS"):
            return self._function(kind)
        left = self._operand()
        sign = self.take("=", "<>", "<", "<=", ">", ">=")
        if sign is None:
            raise NotImplementedError(f"a comparison is expected before: {' '.join(self._words)}")
        right = self._operand()
        return lambda item, values: _compare(left(item, values), sign, right(item, values))

    def _function(self, kind: str) -> Condition:
        self._need("(")
        path = self._path()
        if kind.endswith("EXISTS"):
            self._need(")")
            return lambda item, values: (_at(item, path) is not None) == (kind == "ATTRIBUTE_EXISTS")
        self._need(",")
        operand = self._operand()
        self._need(")")
        if kind == "ATTRIBUTE_TYPE":
            return lambda item, values: operand(item, values)["S"] in (_at(item, path) or {})
        return lambda item, values: _contains(_at(item, path), operand(item, values))

    def _operand(self) -> Operand:
        word = self._words[0]
        if word.startswith(":"):
            self._words.pop(0)
            return lambda item, values: values[word]
        if self.take("IF_NOT_EXISTS"):
            self._need("(")
            path = self._path()
            self._need(",")
            default = self._operand()
            self._need(")")
            return lambda item, values: default(item, values) if (v := _at(item, path)) is None else v
        if self.take("SIZE"):
            self._need("(")
            path = self._path()
            self._need(")")
            return lambda item, values: _size(_at(item, path))
        if self.take("LIST_APPEND"):
            self._need("(")
            head = self._operand()
            self._need(",")
            tail = self._operand()
            self._need(")")
            return lambda item, values: {"L": [*head(item, values)["L"], *tail(item, values)["L"]]}
        path = self._path()
        return lambda item, values: _at(item, path)

    def _path(self) -> Path:
        path: list[str | int] = [self._name()]
        while sign := self.take(".", "["):
            if sign == ".":
                path.append(self._name())
            else:
                path.append(int(self._words.pop(0)))
                self._need("]")
        return tuple(path)

    def _name(self) -> str:
        word = self._words.pop(0)
        return self._names[word] if word.startswith("#") else word

    def change(self, clause: str) -> Change:
        path = self._path()
        if clause == "REMOVE":
            return lambda before, after, values: _with(after, path, None)
        if clause == "SET":
            self._need("=")
            value = self._sum()
            return lambda before, after, values: _with(after, path, value(before, values))
        operand = self._operand()

        def merge(before: Item, after: Item, values: Values) -> Item:
            return _with(after, path, _merged(_at(before, path), operand(before, values), add=clause == "ADD"))

        return merge

    def _sum(self) -> Operand:
        left = self._operand()
        sign = self.take("+", "-")
        if sign is None:
            return left
        right = self._operand()
        factor = 1 if sign == "+" else -1

        def total(item: Item, values: Values) -> Value:
            return {"N": str(Decimal(left(item, values)["N"]) + factor * Decimal(right(item, values)["N"]))}

        return total


def _plain(value: Value) -> tuple[str, Any]:
    [(kind, content)] = value.items()
    return kind, Decimal(content) if kind == "N" else content


def _compare(left: Value | None, sign: str, right: Value | None) -> bool:
    if left is None or right is None:
        return sign == "<>" and left is not right
    (kind, a), (other_kind, b) = _plain(left), _plain(right)
    if kind != other_kind:
        return sign == "<>"
    return {
        "=": lambda: a == b,
        "<>": lambda: a != b,
        "<": lambda: a < b,
        "<=": lambda: a <= b,
        ">": lambda: a > b,
        ">=": lambda: a >= b,
    }[sign]()


def _at(item: Item, path: Path) -> Value | None:
    found: Value | None = item.get(str(path[0]))
    for step in path[1:]:
        inside = (found or {}).get("L" if isinstance(step, int) else "M")
        if isinstance(step, int):
            found = inside[step] if inside and step < len(inside) else None
        else:
            found = inside.get(step) if inside else None
    return found


def _with(item: Item, path: Path, value: Value | None) -> Item:
    """The item with that value at that place, or without anything there."""
    name, *rest = path
    if rest:
        value = _inside(item[str(name)], tuple(rest), value)
    return {**item, str(name): value} if value is not None else {k: v for k, v in item.items() if k != name}


def _inside(outer: Value, path: Path, value: Value | None) -> Value:
    step, *rest = path
    if not isinstance(step, int):
        return {"M": _with(outer["M"], path, value)}
    elements = list(outer["L"])
    if rest:
        value = _inside(elements[step], tuple(rest), value)
    if value is None:
        del elements[step]
    elif step < len(elements):
        elements[step] = value
    else:
        elements.append(value)  # as DynamoDB does with an index past the end
    return {"L": elements}


def _size(value: Value | None) -> Value | None:
    return {"N": str(len(next(iter(value.values()))))} if value else None


def _contains(value: Value | None, wanted: Value) -> bool:
    if value is None:
        return False
    (kind, content), (_, element) = _plain(value), _plain(wanted)
    return wanted in content if kind == "L" else str(element) in content


def _merged(old: Value | None, value: Value, *, add: bool) -> Value | None:
    """What ADD and DELETE make of a number or a set; an empty set is no value."""
    [(kind, content)] = value.items()
    if kind == "N":
        return {"N": str(Decimal((old or {"N": "0"})["N"]) + Decimal(content))}
    found = set((old or {kind: []})[kind])
    found = found | set(content) if add else found - set(content)
    return {kind: sorted(found)} if found else None
