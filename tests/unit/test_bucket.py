"""The bucket's contract, on emulated S3 and on the double that other tests use in its place."""

import json

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from tunedrop.bucket import CHUNK_BYTES, PART_BYTES, S3Bucket, _chunks
from tunedrop.errors import Denied, Missing, Superseded, Transient, Unauthorised

from tests.unit.fakes import Broken, FakeSecret, MemoryBucket

ENDPOINT = "https://s3.amazonaws.com"  # where moto listens; no request leaves this process


def keys(access_key_id="id", secret_access_key="secret"):
    return json.dumps({"access_key_id": access_key_id, "secret_access_key": secret_access_key})


class DroppingS3Bucket(S3Bucket):
    def put(self, key, body):
        return self._client.put_object(Bucket="datasets", Key=key, Body=body)["ETag"].strip('"')

    def delete(self, key):
        self._client.delete_object(Bucket="datasets", Key=key)


@pytest.fixture(scope="module")
def made(aws):
    boto3.client("s3").create_bucket(Bucket="datasets")
    secret = FakeSecret(keys())
    bucket = DroppingS3Bucket("datasets", ENDPOINT, secret)
    return bucket, secret


@pytest.fixture
def secret(made, monkeypatch):
    """The secret with the bucket's credentials."""
    monkeypatch.setattr(made[1], "fetched", 0)
    return made[1]


@pytest.fixture
def s3(made, secret):
    bucket, _ = made
    yield bucket
    for found in bucket._client.list_objects_v2(Bucket="datasets").get("Contents", ()):
        bucket.delete(found["Key"])


@pytest.fixture(params=["memory", "s3"])
def bucket(request):
    return MemoryBucket() if request.param == "memory" else request.getfixturevalue("s3")


def read(stored):
    return b"".join(stored.chunks)


@pytest.mark.parametrize("body", [b"", b"x", b"line\n" * 10])
def test_an_object_is_read_as_it_was_written(bucket, body):
    bucket.write("a b/ü.jsonl", body, "application/jsonl")
    stored = bucket.open("a b/ü.jsonl")
    assert (stored.key, stored.size) == ("a b/ü.jsonl", len(body))
    assert read(stored) == body


def test_an_object_is_read_as_the_version_that_is_meant(bucket):
    etag = bucket.put("a", b"one")
    stored = bucket.open("a", etag)
    assert (stored.etag, read(stored)) == (etag, b"one")


def test_an_overwritten_object_is_superseded(bucket):
    etag = bucket.put("a", b"one")
    bucket.put("a", b"two")
    with pytest.raises(Superseded):
        bucket.open("a", etag)


def test_an_object_written_again_alike_is_the_same_version(bucket):
    etag = bucket.put("a", b"one")
    bucket.put("a", b"one")
    assert read(bucket.open("a", etag)) == b"one"


@pytest.mark.parametrize("etag", [None, "e1"])
def test_an_object_that_is_gone_is_missing(bucket, etag):
    bucket.put("a", b"one")
    bucket.delete("a")
    with pytest.raises(Missing):
        bucket.open("a", etag)


def test_writing_replaces(bucket):
    bucket.write("a", b"one", "text/plain")
    bucket.write("a", b"two", "text/plain")
    assert read(bucket.open("a")) == b"two"


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 5])
def test_what_comes_in_chunks_is_written_whole(bucket, size):
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    bucket.write_stream("a", (body[at : at + 999_983] for at in range(0, size, 999_983)), "text/plain")
    assert read(bucket.open("a")) == body


@pytest.mark.parametrize("size", [1, PART_BYTES + 1])
def test_chunks_that_break_off_leave_nothing(bucket, size):
    def chunks():
        yield b"x" * size
        raise Transient("broke off")

    with pytest.raises(Transient, match="broke off"):
        bucket.write_stream("a", chunks(), "text/plain")
    with pytest.raises(Missing):
        bucket.open("a")


# Of S3


def unfinished(s3):
    return s3._client.list_multipart_uploads(Bucket="datasets").get("Uploads", [])


@pytest.mark.parametrize("operation", ["upload_part", "complete_multipart_upload"])
@pytest.mark.parametrize("skip", [0, 1])
def test_a_part_that_is_not_taken_discards_the_others(s3, monkeypatch, operation, skip):
    refused = answered("InternalError", 500)
    with monkeypatch.context() as patch:
        patch.setattr(s3, "_client", Broken(s3._client, operation, refused, times=9, skip=skip * (operation[0] == "u")))
        with pytest.raises(Transient):
            s3.write_stream("a", [bytes(PART_BYTES)] * 3, "text/plain")
    assert unfinished(s3) == []
    with pytest.raises(Missing):
        s3.open("a")


def test_a_store_that_takes_nothing_any_more_says_so_all_the_same(s3, monkeypatch):
    with monkeypatch.context() as patch:
        refused = Broken(s3._client, "upload_part", answered("InternalError", 500), times=9)
        patch.setattr(s3, "_client", Broken(refused, "abort_multipart_upload", answered("SlowDown", 503), times=9))
        with pytest.raises(Transient, match="500"):
            s3.write_stream("a", [bytes(PART_BYTES)] * 2, "text/plain")


def test_credentials_may_be_rotated_between_two_parts(s3, secret, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(secret, "_values", [keys(), keys("new")])
        refused = Broken(s3._client, "upload_part", answered("ExpiredToken", 403), skip=1)
        patch.setattr(s3, "_client", refused)
        s3.write_stream("a", [bytes(PART_BYTES)] * 3, "text/plain")
    assert s3.open("a").size == 3 * PART_BYTES


def test_what_comes_in_chunks_has_its_content_type_and_parts_of_one_size(s3):
    s3.write_stream("a", [b"x" * 5_000_000] * 5, "application/octet-stream")
    first = s3._client.head_object(Bucket="datasets", Key="a", PartNumber=1)
    assert first["ContentLength"] == PART_BYTES
    head = s3._client.head_object(Bucket="datasets", Key="a")
    assert head["ContentType"] == "application/octet-stream"
    assert head["ETag"].endswith('-3"')


def test_an_object_is_read_in_chunks(s3):
    body = bytes(range(256)) * (CHUNK_BYTES // 256) + b"rest"
    s3.put("a", body)
    assert [len(chunk) for chunk in s3.open("a").chunks] == [CHUNK_BYTES, 4]


def test_a_result_has_its_content_type(s3):
    s3.write("a", b"{}", "application/json")
    assert s3._client.head_object(Bucket="datasets", Key="a")["ContentType"] == "application/json"


@pytest.mark.parametrize("text", ["", "AKIA", "[]", '"x"', '{"access_key_id": "id"}'])
def test_credentials_that_cannot_be_read_say_what_they_should_be(s3, secret, monkeypatch, text):
    with monkeypatch.context() as patch:
        patch.setattr(secret, "_values", [text])
        with pytest.raises(Unauthorised, match="access_key_id"):
            s3.open("a")


def test_credentials_are_not_asked_for_before_they_are_needed():
    S3Bucket("datasets", ENDPOINT, Broken(FakeSecret("x"), "value", AssertionError()))


def answered(code, status):
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation")


REFUSALS = ["InvalidAccessKeyId", "SignatureDoesNotMatch", "Unauthorized", "ExpiredToken"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered("NoSuchKey", 404), Missing),
        (answered("404", 404), Missing),
        (answered("PreconditionFailed", 412), Superseded),
        (answered("412", 412), Superseded),
        *((answered(code, 403), Unauthorised) for code in REFUSALS),
        (answered("AccessDenied", 403), Denied),
        (answered("403", 403), Denied),
        (answered("InternalError", 500), Transient),
        (answered("SlowDown", 503), Transient),
        (EndpointConnectionError(endpoint_url=ENDPOINT), Transient),
        (ReadTimeoutError(endpoint_url=ENDPOINT), Transient),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:60],
)
@pytest.mark.parametrize("operation", ["get_object", "put_object"])
def test_what_goes_wrong_is_translated(s3, monkeypatch, error, kind, operation):
    s3.put("a", b"one")
    monkeypatch.setattr(s3, "_client", Broken(s3._client, operation, error, times=9))
    with pytest.raises(kind):
        s3.open("a") if operation == "get_object" else s3.write("a", b"", "text/plain")


@pytest.mark.parametrize("operation", ["get_object", "put_object"])
def test_rotated_credentials_are_fetched_once_more(s3, secret, monkeypatch, operation):
    s3.put("a", b"one")
    monkeypatch.setattr(secret, "_values", [keys("old"), keys("new")])
    broken = Broken(s3._client, operation, answered("InvalidAccessKeyId", 403))
    with monkeypatch.context() as patch:
        patch.setattr(s3, "_client", broken)
        s3.open("a") if operation == "get_object" else s3.write("a", b"two", "text/plain")
    assert read(s3.open("a")) == (b"one" if operation == "get_object" else b"two")
    assert secret.fetched == 1


@pytest.mark.parametrize("values", [("old", "new", "newer"), ("old", "old")])
def test_credentials_that_stay_refused_are_fetched_no_more_than_once(s3, secret, monkeypatch, values):
    monkeypatch.setattr(secret, "_values", [keys(value) for value in values])
    broken = Broken(s3._client, "get_object", answered("InvalidAccessKeyId", 403), times=9)
    monkeypatch.setattr(s3, "_client", broken)
    with pytest.raises(Unauthorised):
        s3.open("a")
    assert secret.fetched == 1


def test_each_request_carries_the_newest_credentials(s3, secret, monkeypatch):
    monkeypatch.setattr(secret, "_values", [keys("AKIAOLD"), keys("AKIANEW")])
    sent = []
    note = lambda request, **_: sent.append(request.headers["Authorization"])  # noqa: E731
    s3._client.meta.events.register("before-send.s3", note)
    s3.write("a", b"one", "text/plain")
    secret.value(fresh=True)
    s3.write("a", b"two", "text/plain")
    s3._client.meta.events.unregister("before-send.s3", note)
    assert [b"AKIAOLD" in bytes(sent[0]), b"AKIANEW" in bytes(sent[1])] == [True, True]


class Body:
    def __init__(self, chunks, error=None):
        self._chunks, self._error = chunks, error

    def iter_chunks(self, size):
        yield from self._chunks
        if self._error:
            raise self._error


@pytest.mark.parametrize("body", [Body([b"on"]), Body([b"on"], ReadTimeoutError(endpoint_url=ENDPOINT))])
def test_reading_that_breaks_off_is_transient(body):
    with pytest.raises(Transient, match="after 2 of 3 bytes"):
        list(_chunks(body, "a", 3))
