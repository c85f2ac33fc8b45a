"""Event notifications of a bucket, in the forms that stores send them, as one kind of value.

Forms understood: the S3 envelope ``{"Records": [...]}`` (keys form-encoded), MinIO's variant of it, the same by way of
SNS or SQS, an event of S3 on EventBridge (key as it is), a native message of R2 (key as it is), and a list of any of
these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote_plus

from tunedrop.runs import CONFIG, RunRequest, adapter_name, is_adapter, run_id_of

DATASET = ".jsonl"
VALIDATION = ".validation.jsonl"
SPECIFICATION = ".job.json"
RESULTS = "results/"
MAX_KEY_BYTES = 1024

# https://developers.cloudflare.com/r2/buckets/event-notifications/
_R2_CREATIONS = ("PutObject", "CopyObject", "CompleteMultipartUpload")
_R2_DELETIONS = ("DeleteObject", "LifecycleDeletion")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-how-to-event-types-and-destinations.html
_S3_DELETIONS = ("ObjectRemoved:", "LifecycleExpiration:")
_MAX_ETAG = 128


class MalformedEvent(ValueError):
    """The body is no notification in a form that is understood; the message says where."""


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """Something happened to an object. ``occurred`` is the sequencer where there is one, else the time.

    ``deleted_at`` is the time of a deletion, empty where the object was not deleted or the time is not told.
    """

    bucket: str
    key: str
    etag: str
    size: int | None
    occurred: str
    created: bool
    deleted_at: str = ""

    @property
    def deletes_dataset(self) -> bool:
        """Whether what is gone may be what a run trains on."""
        starts_a_run = replace(self, created=True).why_ignored(self.bucket) is None
        return bool(self.deleted_at) and starts_a_run and not self.brings_adapter

    @property
    def brings_adapter(self) -> bool:
        """Whether it is about the weights of an adapter that is to be published, and not about a dataset."""
        return adapter_name(self.key) is not None

    def run_request(self) -> RunRequest:
        """The run that this event stands for."""
        run_id = run_id_of(self.bucket, self.key, self.etag, self.occurred)
        return RunRequest(run_id, self.bucket, self.key, self.etag, self.size)

    def why_ignored(self, bucket: str, prefix: str = "", suffix: str = "") -> str | None:
        """Why the event starts no run in ``bucket``'s pipeline; None where it does.

        ``prefix`` and ``suffix`` are the stack's own rules for the keys of datasets.
        """
        if self.bucket != bucket:
            return "another bucket"
        if not self.created:
            return "no object was created"
        if self.key.startswith(RESULTS):
            return "a result of Tunedrop's own"
        if is_adapter(self.key):
            return _why_no_adapter(self.key)
        if self.key.endswith(VALIDATION):
            return "a validation set; it is read with its dataset"
        if self.key.endswith(SPECIFICATION):
            return "a job specification; it is read with its dataset"
        if not self.key.endswith(DATASET):
            return f"the key does not end in {DATASET}"
        if not self.key.startswith(prefix):
            return f"the key does not begin with {prefix}"
        if not self.key.endswith(suffix):
            return f"the key does not end in {suffix}"
        return None


def _why_no_adapter(key: str) -> str | None:
    if adapter_name(key):
        return None
    if key.endswith(f"/{CONFIG}"):
        return "an adapter's configuration; it is read with its weights"
    return "an adapter's file; only adapters/NAME/adapter_model.safetensors starts anything"


def parse(body: bytes) -> list[ObjectEvent | MalformedEvent]:
    """The events in a notification's body, in its order; ``s3:TestEvent`` has none.

    In the place of an event that is malformed stands what is wrong with it, so that it takes no others with it.

    Raises:
        MalformedEvent: the body is no JSON text.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedEvent("the body is no JSON text") from None
    return list(_events(value, "$"))


def _events(value: Any, path: str) -> Iterator[ObjectEvent | MalformedEvent]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, list):
                yield MalformedEvent(f"{path}[{index}]: a list inside a list")
            else:
                yield from _events(item, f"{path}[{index}]")
    elif not isinstance(value, dict):
        yield MalformedEvent(f"{path}: an object or a list of objects is expected")
    elif value.get("Event") == "s3:TestEvent":
        return
    elif isinstance(value.get("Records"), list):
        for index, record in enumerate(value["Records"]):
            place = f"{path}.Records[{index}]"
            if isinstance(record, dict) and record.get("eventSource") == "aws:sqs":
                yield from _enclosed(record.get("body"), f"{place}.body")
            else:
                yield _read(_s3_record, record, place)
    elif value.get("Type") == "Notification":  # of SNS
        yield from _enclosed(value.get("Message"), f"{path}.Message")
    elif value.get("source") == "aws.s3":
        yield _read(_eventbridge_event, value, path)
    elif "action" in value and "object" in value:
        yield _read(_r2_message, value, path)
    else:
        yield MalformedEvent(f"{path}: neither an S3 envelope with Records nor an R2 message with action and object")


def _enclosed(text: Any, path: str) -> Iterator[ObjectEvent | MalformedEvent]:
    """The events in a notification that another one carries as text."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        yield MalformedEvent(f"{path}: no JSON text")
    else:
        yield from _events(value, path)


def _read(form: Callable[[Any, str], ObjectEvent], value: Any, path: str) -> ObjectEvent | MalformedEvent:
    try:
        return form(value, path)
    except MalformedEvent as malformed:
        return malformed


def _s3_record(record: Any, path: str) -> ObjectEvent:
    entity = _get(record, "s3", dict, path)
    stored = _get(entity, "object", dict, f"{path}.s3")
    name, told = _get(record, "eventName", str, path), record.get("eventTime")
    created, deleted = "ObjectCreated:" in name, any(deletion in name for deletion in _S3_DELETIONS)
    key = _get(stored, "key", str, f"{path}.s3.object")
    return ObjectEvent(
        bucket=_get(_get(entity, "bucket", dict, f"{path}.s3"), "name", str, f"{path}.s3.bucket"),
        key=_key(_decoded(key, f"{path}.s3.object.key"), f"{path}.s3.object.key"),
        etag=_etag(stored, created, f"{path}.s3.object"),
        size=_size(stored),
        occurred=_sequencer(stored, f"{path}.s3.object") or _get(record, "eventTime", str, path),
        created=created,
        deleted_at=told if deleted and isinstance(told, str) else "",
    )


def _eventbridge_event(event: dict[str, Any], path: str) -> ObjectEvent:
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
    detail = _get(event, "detail", dict, path)
    stored = _get(detail, "object", dict, f"{path}.detail")
    kind, time = _get(event, "detail-type", str, path), _get(event, "time", str, path)
    created = kind == "Object Created"
    return ObjectEvent(
        bucket=_get(_get(detail, "bucket", dict, f"{path}.detail"), "name", str, f"{path}.detail.bucket"),
        key=_key(_get(stored, "key", str, f"{path}.detail.object"), f"{path}.detail.object.key"),
        etag=_etag(stored, created, f"{path}.detail.object", "etag"),
        size=_size(stored),
        occurred=_sequencer(stored, f"{path}.detail.object") or time,
        created=created,
        deleted_at=time if kind == "Object Deleted" else "",
    )


def _r2_message(message: dict[str, Any], path: str) -> ObjectEvent:
    stored = _get(message, "object", dict, path)
    created = message["action"] in _R2_CREATIONS
    return ObjectEvent(
        bucket=_get(message, "bucket", str, path),
        key=_key(_get(stored, "key", str, f"{path}.object"), f"{path}.object.key"),
        etag=_etag(stored, created, f"{path}.object"),
        size=_size(stored),
        occurred=_get(message, "eventTime", str, path),
        created=created,
        deleted_at=_get(message, "eventTime", str, path) if message["action"] in _R2_DELETIONS else "",
    )


def _get[Kind](value: Any, name: str, kind: type[Kind], path: str) -> Kind:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise MalformedEvent(f"{path}.{name}: missing, or not of the expected type")
    if isinstance(found, str) and not _is_unicode(found):
        raise MalformedEvent(f"{path}.{name}: not Unicode text")
    return found


def _is_unicode(text: str) -> bool:
    # JSON can escape half of a surrogate pair, which no encoding takes.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(key: str, path: str) -> str:
    try:
        return unquote_plus(key, errors="strict")
    except UnicodeDecodeError:
        raise MalformedEvent(f"{path}: not the form-encoding of UTF-8 text") from None


def _key(key: str, path: str) -> str:
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        raise MalformedEvent(f"{path}: a key has 1 to {MAX_KEY_BYTES} bytes")
    return key


def _etag(stored: dict[str, Any], created: bool, path: str, name: str = "eTag") -> str:
    if not created:
        return ""  # a deletion's is of no use, where there is one at all
    etag = _get(stored, name, str, path).strip('"')
    if not etag:
        raise MalformedEvent(f"{path}.{name}: empty, and what was created could not be told from what comes after it")
    if len(etag) > _MAX_ETAG or not (etag.isascii() and etag.isprintable()):
        raise MalformedEvent(f"{path}.{name}: an eTag has at most {_MAX_ETAG} printable characters")
    return etag


def _sequencer(stored: dict[str, Any], path: str) -> str:
    """What tells apart the events of one object; empty where the store does not."""
    return "" if stored.get("sequencer") in (None, "") else _get(stored, "sequencer", str, path)


def _size(stored: dict[str, Any]) -> int | None:
    size = stored.get("size")
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 63 else None
