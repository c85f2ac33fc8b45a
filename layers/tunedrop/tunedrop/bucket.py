"""The bucket: conditional streaming reads, and the results written back."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, DeferredRefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError

from tunedrop.errors import Denied, Missing, Superseded, Transient, TunedropError, Unauthorised
from tunedrop.secret_store import CACHE_SECONDS, Secret, StoredSecret
from tunedrop.settings import StorageSettings, load

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CHUNK_BYTES = 1 << 20
RANGE_BYTES = 4 << 20
RANGES_AHEAD = 3  # read at the same time; with the one that is handed out, 16 MiB at most are held
READ_ATTEMPTS = 4  # at each range
PART_BYTES = 8 << 20

_GONE = ("404", "NoSuchKey", "NoSuchBucket")
_CHANGED = ("412", "PreconditionFailed")
_NO_SUCH_RANGE = ("416", "InvalidRange")
_REFUSED = ("401", "Unauthorized", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object opened for reading: its eTag, its size in bytes, and its chunks, which can be read once."""

    key: str
    etag: str
    size: int
    chunks: Iterator[bytes]


class _Place(TypedDict):
    Bucket: str
    Key: str


class Bucket(Protocol):
    """The bucket that datasets are dropped into. Every method raises what :class:`S3Bucket`'s does."""

    def open(self, key: str, etag: str | None = None) -> StoredObject:
        """Opens an object, as the version ``etag`` where one is given."""

    def write(self, key: str, body: bytes, content_type: str) -> None:
        """Writes a whole object."""

    def write_stream(self, key: str, chunks: Iterable[bytes], content_type: str) -> None:
        """Writes an object as its chunks come; what the chunks raise leaves none behind."""


class S3Bucket:
    """A bucket of R2, or of another S3-compatible store."""

    def __init__(self, name: str, endpoint: str, credentials: Secret) -> None:
        self._name = name
        self._credentials = credentials
        self._client = s3_client(endpoint, credentials)

    def open(self, key: str, etag: str | None = None) -> StoredObject:
        """Opens an object for reading in chunks of at most 1 MiB; with ``etag`` (unquoted) only that version of it.

        A large object is read in ranges, some of them at the same time and ahead of the reader, all of one version. A
        range that breaks off is asked for again. Threads are at work only while the chunks are being read.

        Raises:
            Missing: there is no such object; while reading, too.
            Superseded: it is another version by now; while reading, too, and then without ``etag`` as well.
            Unauthorised, Denied: the store does not accept our credentials, or not for this.
            Transient: the store did not answer properly; while reading, too.
        """
        try:
            answer = self._get(key, etag, f"bytes=0-{RANGE_BYTES - 1}")
        except _NoSuchRange:  # it is empty
            answer = self._get(key, etag)
        length = answer["ContentLength"]
        # A store that takes no notice of ranges has answered the whole.
        size = int(answer["ContentRange"].rpartition("/")[2]) if answer.get("ContentRange") else length
        version = _Version(key, answer["ETag"].strip('"'), size)
        return StoredObject(key, version.etag, size, self._chunks(version, length, answer["Body"]))

    def write(self, key: str, body: bytes, content_type: str) -> None:
        """Writes a whole object; writing it again is harmless.

        Raises:
            Missing: there is no such bucket.
            Unauthorised, Denied: the store does not accept our credentials, or not for this.
            Transient: the store did not answer properly.
        """
        self._ask(lambda s3: s3.put_object(Bucket=self._name, Key=key, Body=body, ContentType=content_type), key)

    def write_stream(self, key: str, chunks: Iterable[bytes], content_type: str) -> None:
        """Writes an object of any size in parts of 8 MiB, of which it keeps one in memory.

        It is there once it is whole: when the chunks raise, or a part is not taken, what was written is discarded.

        Raises:
            Missing, Unauthorised, Denied, Transient: as :meth:`write` does; besides, whatever the chunks raise.
        """
        parts = _parts(chunks)
        first = next(parts, b"")
        if len(first) < PART_BYTES:
            self.write(key, first, content_type)
            return
        place: _Place = {"Bucket": self._name, "Key": key}
        begun = self._ask(lambda s3: s3.create_multipart_upload(**place, ContentType=content_type), key)
        upload_id = begun["UploadId"]
        try:
            taken = []
            for number, part in enumerate(chain((first,), parts), 1):
                tag = self._write_part(place, upload_id, number, part)
                taken.append({"PartNumber": number, "ETag": tag})
            whole: Any = {"Parts": taken}
            self._ask(
                lambda s3: s3.complete_multipart_upload(**place, UploadId=upload_id, MultipartUpload=whole),
                key,
            )
        except BaseException:
            with suppress(TunedropError):  # the store discards unfinished ones by itself in time
                self._ask(lambda s3: s3.abort_multipart_upload(**place, UploadId=upload_id), key)
            raise

    def _write_part(self, place: _Place, upload_id: str, number: int, part: bytes) -> str:
        taken = self._ask(
            lambda s3: s3.upload_part(**place, UploadId=upload_id, PartNumber=number, Body=part), place["Key"]
        )
        return taken["ETag"]

    def _chunks(self, version: _Version, length: int, opening: Any) -> Iterator[bytes]:
        """The chunks of an object, of which ``opening`` is the body of the first ``length`` bytes."""
        spans = ((start, min(start + RANGE_BYTES, version.size)) for start in range(length, version.size, RANGE_BYTES))
        pool = ThreadPoolExecutor(RANGES_AHEAD, "read")
        try:
            ahead = deque(pool.submit(self._whole, version, *span) for span in islice(spans, RANGES_AHEAD))
            yield from self._read(version, 0, length, opening)
            while ahead:
                chunks = ahead.popleft().result()
                ahead.extend(pool.submit(self._whole, version, *span) for span in islice(spans, 1))
                yield from chunks
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _whole(self, version: _Version, start: int, end: int) -> list[bytes]:
        return list(self._read(version, start, end))

    def _read(self, version: _Version, start: int, end: int, body: Any = None) -> Iterator[bytes]:
        """The bytes from ``start`` to before ``end``; where reading breaks off, it goes on with a new request."""
        why = "it ended"
        for _ in range(READ_ATTEMPTS):
            try:
                for chunk in (body or self._part(version, start, end)).iter_chunks(CHUNK_BYTES):
                    start += len(chunk)
                    if start > end:
                        break
                    yield chunk
            except (BotoCoreError, HTTPClientError, Transient) as error:
                why = type(error).__name__  # its text may quote what was read
            if start >= end:
                break
            body = None
        if start != end:
            raise Transient(f"reading {version.key} broke off after {start} of {version.size} bytes ({why})")

    def _part(self, version: _Version, start: int, end: int) -> Any:
        answer = self._get(version.key, version.etag, f"bytes={start}-{end - 1}")
        if answer["ETag"].strip('"') != version.etag:
            raise _superseded(version.key)  # a store that takes no notice of conditions
        if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
            raise Transient("another range came than was asked for")
        return answer["Body"]

    def _get(self, key: str, etag: str | None, span: str = "") -> Any:
        asked: dict[str, Any] = {"Bucket": self._name, "Key": key}
        if etag:
            asked["IfMatch"] = f'"{etag}"'
        if span:
            asked["Range"] = span
        return self._ask(lambda s3: s3.get_object(**asked), key)

    def _ask[Answer](self, call: Callable[[S3Client], Answer], key: str) -> Answer:
        used = self._credentials.value()
        try:
            return self._translating(call, key)
        except Unauthorised:
            if self._credentials.value(fresh=True) == used:
                raise
        return self._translating(call, key)  # they were rotated

    def _translating[Answer](self, call: Callable[[S3Client], Answer], key: str) -> Answer:
        try:
            return call(self._client)
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            raise _translated(error, key) from None  # its text may quote what was sent


def connect(environment: Mapping[str, str]) -> S3Bucket:
    """The bucket that ``environment`` names."""
    settings = load(StorageSettings, environment)
    return S3Bucket(settings.bucket_name, settings.storage_endpoint, StoredSecret(settings.storage_secret_arn))


def s3_client(endpoint: str, credentials: Secret) -> S3Client:
    """A client for R2 and its like.

    ``credentials`` is JSON of ``access_key_id`` and ``secret_access_key``; it is asked for with each request, so that
    the client can be made before it is known, and rotated ones are taken up.
    """

    session = botocore.session.get_session()
    session.register_component("credential_provider", CredentialResolver([_FromSecret(credentials)]))
    # R2 answers newer clients' checksums with errors unless they are sent only where S3 requires them:
    # https://developers.cloudflare.com/r2/examples/aws/boto3/
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 3},
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": "path"},
    )
    return boto3.Session(botocore_session=session).client(
        "s3", endpoint_url=endpoint, region_name="auto", config=config
    )


class _FromSecret(CredentialProvider):
    """Credentials that are read when they are needed; rotation is left to the secret's own cache."""

    METHOD = "secret"

    def __init__(self, secret: Secret) -> None:
        super().__init__()
        self._secret = secret

    def load(self) -> DeferredRefreshableCredentials:
        return DeferredRefreshableCredentials(refresh_using=self._read, method=self.METHOD)

    def _read(self) -> dict[str, str]:
        access_key_id, secret_access_key = _keys(self._secret.value())
        soon = datetime.now(UTC) + timedelta(seconds=CACHE_SECONDS)
        return {
            "access_key": access_key_id,
            "secret_key": secret_access_key,
            "token": "",
            "expiry_time": soon.isoformat(),
        }


def _keys(text: str) -> tuple[str, str]:
    try:
        keys = json.loads(text)
        return str(keys["access_key_id"]), str(keys["secret_access_key"])
    except (ValueError, KeyError, TypeError):
        raise Unauthorised(
            'the storage secret should read {"access_key_id": "...", "secret_access_key": "..."}'
        ) from None


@dataclass(frozen=True, slots=True)
class _Version:
    """What is read: all of it has the same eTag."""

    key: str
    etag: str
    size: int


class _NoSuchRange(Exception):
    """The object ends before the range begins."""


def _superseded(key: str) -> Superseded:
    return Superseded("object_changed", f"{key} was overwritten after this event; its newer version has its own run")


def _parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks in parts of one size, as R2 wants them; only the last one is smaller."""
    part = bytearray()
    for chunk in chunks:
        part += chunk
        while len(part) >= PART_BYTES:
            yield bytes(part[:PART_BYTES])
            del part[:PART_BYTES]
    if part:
        yield bytes(part)


def _translated(error: ClientError | BotoCoreError | ResponseParserError, key: str) -> Exception:
    if not isinstance(error, ClientError):
        return Transient(f"the bucket did not answer ({type(error).__name__})")
    code = error.response["Error"]["Code"]
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _GONE:
        return Missing("object_missing", f"{key} is no longer in the bucket: drop it again if it is still wanted")
    if code in _CHANGED:
        return _superseded(key)
    if code in _NO_SUCH_RANGE:
        return _NoSuchRange()
    # R2's words for a key of the wrong length, such as one of another store:
    malformed_key = code == "InvalidArgument" and "access key" in str(error.response["Error"].get("Message")).lower()
    if code in _REFUSED or malformed_key:
        return Unauthorised(f"the bucket refused our credentials ({code}): put valid ones into the storage secret")
    if status == 403:
        return Denied(
            "storage_denied", f"the bucket's credentials may not do this with {key}: give them read and write"
        )
    return Transient(f"the bucket answered {status} {code}")
