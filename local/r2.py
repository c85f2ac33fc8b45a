"""The emulated R2: an S3 endpoint whose bucket tells of what happens in it, as R2 does through its queue.

Objects are kept by moto, large ones on disk, so that gigabytes can be dropped. Each put, copy, completed multipart
upload and deletion becomes a message in R2's own form
(https://developers.cloudflare.com/r2/buckets/event-notifications/), delivered at least once by a signed POST to the
webhook, as the forwarder between R2's queue and the webhook does it.
"""

import hashlib
import io
import json
import logging
import queue
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote
from xml.etree import ElementTree as ET

import urllib3
from tunedrop import signatures

logger = logging.getLogger(__name__)

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Stored = Callable[[str, str], tuple[str, int] | None]
Content = Callable[[str, str], "Object | None"]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
ATTEMPTS = 100
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Object:
    """What is stored under a key; `read` takes an offset and a count of bytes."""

    etag: str
    size: int
    content_type: str
    modified: str
    read: Callable[[int, int], bytes]


@dataclass
class Delivery:
    """A message and what became of it: the webhook's last answer, and how often it was posted."""

    message: dict[str, Any]
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    attempts: int = 0
    status: int | None = None
    answer: dict[str, Any] | None = None


class Forwarder:
    """Posts messages to the webhook, in order, each until it is accepted or refused for good.

    A message that is refused (4xx other than 408 and 429) or exhausts its attempts stays among the `deliveries`, which
    is where a dead-letter queue would be.
    """

    def __init__(self, webhook: str, secret: str) -> None:
        self.deliveries: list[Delivery] = []
        self._webhook = webhook
        self._secret = secret
        self._http = urllib3.PoolManager(retries=False, timeout=60)
        self._waiting: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def tell(self, message: dict[str, Any]) -> None:
        """Deliver a message, soon."""
        delivery = Delivery(message)
        self.deliveries.append(delivery)
        self._waiting.put(delivery)

    def close(self) -> None:
        """Deliver nothing more."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            pause = FIRST_PAUSE_SECONDS
            while delivery.attempts < ATTEMPTS and not self._post(delivery):
                if self._closing.wait(pause):
                    return
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _post(self, delivery: Delivery) -> bool:
        body = json.dumps(delivery.message)
        headers = {"content-type": "application/json", **signatures.sign(self._secret, delivery.id, time.time(), body)}
        delivery.attempts += 1
        try:
            answer = self._http.request("POST", self._webhook, body=body.encode(), headers=headers)
        except urllib3.exceptions.HTTPError as error:
            logger.warning("the webhook did not answer: %s", error)
            return False
        delivery.status = answer.status
        try:
            delivery.answer = answer.json()
        except ValueError:
            delivery.answer = None
        return answer.status < 500 and answer.status not in (408, 429)


def guarded(app: WsgiApp, access_key_ids: Collection[str]) -> WsgiApp:
    """`app` for those alone who sign with one of the keys, which may change meanwhile. The signature itself is not
    checked."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        signed = environ.get("HTTP_AUTHORIZATION", "") + unquote(environ.get("QUERY_STRING", ""))
        given = re.search(r"Credential=([^/&]+)/", signed)
        if given and given[1] in access_key_ids:
            return app(environ, start_response)
        body = b"<?xml version='1.0'?><Error><Code>Unauthorized</Code><Message>Unauthorized</Message></Error>"
        start_response("401 Unauthorized", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    return serve


@dataclass(frozen=True)
class _Kept:
    """The bytes of an object that stand in a file, in place of those that moto would hold in memory."""

    file: BinaryIO
    size: int

    def __len__(self) -> int:
        return self.size


def keep_on_disk() -> None:
    """Have moto put a multipart upload together on disk, part by part; of itself it copies the whole several times."""
    from moto.s3 import models

    def complete(upload: Any, named: Iterable[tuple[int, str]]) -> tuple[_Kept, str, None]:
        parts = [(upload.parts.get(number), tag.strip('"')) for number, tag in named]
        if any(part is None or part.etag.strip('"') != tag for part, tag in parts):
            raise models.InvalidPart
        if any(part.size < models.S3_UPLOAD_PART_MIN_SIZE for part, _ in parts[:-1]):
            raise models.EntityTooSmall
        if not parts:
            raise models.MalformedXML
        whole: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - the object closes it
        for part, _ in parts:
            whole.write(part.value)
            part.dispose()
        tags = hashlib.md5(bytes.fromhex("".join(tag for _, tag in parts)), usedforsecurity=False)
        return _Kept(whole, whole.tell()), f"{tags.hexdigest()}-{len(parts)}", None

    in_memory = models.FakeKey.value

    def keep(key: Any, value: bytes | _Kept) -> None:
        if isinstance(value, _Kept):
            key._value_buffer, key.contentsize = value.file, value.size
        else:
            in_memory.__set__(key, value)

    models.FakeMultipart.complete = complete
    models.FakeKey.value = in_memory.setter(keep)


def streaming(moto: WsgiApp, content: Content) -> WsgiApp:
    """`moto`'s S3 without its way of reading: for every range of an object it copies the whole."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        bucket, _, key = environ["PATH_INFO"].encode("latin-1").decode().lstrip("/").partition("/")
        plain = environ["REQUEST_METHOD"] == "GET" and key and not environ.get("QUERY_STRING")
        found = content(bucket, key) if plain else None
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", environ.get("HTTP_RANGE", "bytes=0-"))
        if not found or not asked or environ.get("HTTP_IF_MATCH", "").strip('"') not in ("", found.etag):
            return moto(environ, start_response)
        first, last = int(asked[1]), min(int(asked[2] or found.size), found.size - 1)
        if first > last:
            return moto(environ, start_response)
        headers = [
            ("ETag", f'"{found.etag}"'),
            ("Content-Type", found.content_type),
            ("Content-Length", str(last - first + 1)),
            ("Last-Modified", found.modified),
            ("Accept-Ranges", "bytes"),
        ]
        if "HTTP_RANGE" in environ:
            headers.append(("Content-Range", f"bytes {first}-{last}/{found.size}"))
            start_response("206 Partial Content", headers)
        else:
            start_response("200 OK", headers)
        return (found.read(at, min(_BLOCK, last + 1 - at)) for at in range(first, last + 1, _BLOCK))

    return serve


def notifying(
    moto: WsgiApp,
    account: str,
    stored: Stored,
    tell: Callable[[dict[str, Any]], None],
    clock: Callable[[], float] = time.time,
) -> WsgiApp:
    """`moto`'s S3 as a bucket that tells of its events; `stored` knows an object's eTag and size, `clock` the time."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        bucket, _, key = environ["PATH_INFO"].encode("latin-1").decode().lstrip("/").partition("/")
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        deleted = _keys_to_delete(environ, key, query)
        action = _action(environ, key, query)
        if not action and not deleted:
            return moto(environ, start_response)
        status = ""

        def remember(line: str, *rest: Any) -> Any:
            nonlocal status
            status = line
            return start_response(line, *rest)

        body = b"".join(moto(environ, remember))
        if status.startswith("2") and b"<Error>" not in body[:300]:
            for name in deleted:
                tell(_message(clock(), account, "DeleteObject", bucket, {"key": name}))
            if action and (found := stored(bucket, key)):
                etag, size = found
                stored_now = {"key": key, "size": size, "eTag": etag}
                tell(_message(clock(), account, action, bucket, stored_now, _source(environ)))
        return [body]

    return serve


def _action(environ: dict[str, Any], key: str, query: dict[str, list[str]]) -> str | None:
    method = environ["REQUEST_METHOD"]
    if key and method == "PUT" and not query.keys() & {"partNumber", "acl", "tagging", "retention", "legal-hold"}:
        return "CopyObject" if "HTTP_X_AMZ_COPY_SOURCE" in environ else "PutObject"
    if key and method == "POST" and "uploadId" in query:
        return "CompleteMultipartUpload"
    return None


def _keys_to_delete(environ: dict[str, Any], key: str, query: dict[str, list[str]]) -> list[str]:
    method = environ["REQUEST_METHOD"]
    if method == "DELETE" and key and not query.keys() & {"uploadId", "tagging"}:
        return [key]
    if method == "POST" and "delete" in query:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        return [element.text or "" for element in ET.fromstring(body).iter() if element.tag.rpartition("}")[2] == "Key"]  # noqa: S314 - sent by the operator's own client
    return []


def _source(environ: dict[str, Any]) -> dict[str, str] | None:
    source = environ.get("HTTP_X_AMZ_COPY_SOURCE")
    if source is None:
        return None
    bucket, _, key = unquote(source).lstrip("/").partition("/")
    return {"bucket": bucket, "object": key}


def _message(
    now: float, account: str, action: str, bucket: str, stored: dict[str, Any], source: dict[str, str] | None = None
) -> dict[str, Any]:
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    message = {"account": account, "action": action, "bucket": bucket, "object": stored, "eventTime": at}
    return message | ({"copySource": source} if source else {})
