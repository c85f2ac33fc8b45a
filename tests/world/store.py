"""A bucket behind the interface of S3's client, as far as the product asks it."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError


class Body(bytes):
    """What a `get_object` answers as its body."""

    def iter_chunks(self, size: int) -> Any:
        return (self[at : at + size] for at in range(0, len(self), size))


class Store:
    """One bucket's objects. A request with a key that is no longer valid is refused."""

    def __init__(self, access_key: str, now: Callable[[], float]) -> None:
        self.access_key = access_key
        self._now = now
        self._put_at: dict[str, float] = {}
        self.objects: dict[str, bytes] = {}

    def put(self, key: str, body: bytes) -> str:
        """Puts an object as its owner does; its eTag."""
        self.objects[key] = body
        self._put_at[key] = self._now()
        return _etag(body)

    def get_object(
        self, *, access_key: str, Bucket: str, Key: str, IfMatch: str = "", Range: str = ""
    ) -> dict[str, Any]:
        self._authenticate(access_key)
        body = self.objects.get(Key)
        if body is None:
            raise _refusal("NoSuchKey", 404)
        etag = f'"{_etag(body)}"'
        if IfMatch not in ("", etag):
            raise _refusal("PreconditionFailed", 412)
        answer: dict[str, Any] = {"ETag": etag, "LastModified": datetime.fromtimestamp(self._put_at[Key], UTC)}
        if Range:
            first, _, last = Range.removeprefix("bytes=").partition("-")
            if int(first) >= len(body):
                raise _refusal("InvalidRange", 416)
            part = body[int(first) : int(last) + 1]
            answer["ContentRange"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
            body = part
        return {**answer, "ContentLength": len(body), "Body": Body(body)}

    def put_object(self, *, access_key: str, Bucket: str, Key: str, Body: bytes, ContentType: str) -> dict[str, Any]:
        self._authenticate(access_key)
        return {"ETag": f'"{self.put(Key, bytes(Body))}"'}

    def _authenticate(self, access_key: str) -> None:
        if access_key != self.access_key:
            raise _refusal("InvalidAccessKeyId", 403)


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _refusal(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Object")
