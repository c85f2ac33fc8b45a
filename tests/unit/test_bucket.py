"""The bucket's contract, on emulated S3 and on the double that other tests use in its place."""

import json
import threading
import time

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError, ResponseStreamingError
from botocore.parsers import ResponseParserError
from tunedrop.bucket import (
    CHUNK_BYTES,
    PART_BYTES,
    RANGE_BYTES,
    RANGES_AHEAD,
    READ_ATTEMPTS,
    S3Bucket,
    _Version,
)
from tunedrop.errors import Denied, Missing, Superseded, Transient, Unauthorised

from tests.local.provider_support import until
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


def answered(code, status, message=""):
    told = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(told, "Operation")


REFUSALS = ["InvalidAccessKeyId", "SignatureDoesNotMatch", "Unauthorized", "ExpiredToken"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered("NoSuchKey", 404), Missing),
        (answered("404", 404), Missing),
        (answered("PreconditionFailed", 412), Superseded),
        (answered("412", 412), Superseded),
        *((answered(code, 403), Unauthorised) for code in REFUSALS),
        (answered("Unauthorized", 401), Unauthorised),
        (answered("InvalidArgument", 400, "Credential access key has length 20, should be 32"), Unauthorised),
        (answered("InvalidArgument", 400, "Part number must be an integer"), Transient),
        (ResponseParserError("unable to parse response, invalid XML received"), Transient),
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
    """An answer's body that ends, or breaks, after so many bytes."""

    def __init__(self, whole, keep, error):
        self._whole, self._keep, self._error = whole, keep, error

    def iter_chunks(self, size):
        content = b"".join(self._whole.iter_chunks(size))[: self._keep]
        yield from (content[at : at + size] for at in range(0, len(content), size))
        if self._error:
            raise self._error


class Flawed:
    """A client some of whose answers break off; ``before`` is called with the number of each request."""

    def __init__(self, client, breaks=(), *, keep=1000, error=None, before=lambda number: None):
        self._client, self._breaks, self._keep, self._error, self._before = client, breaks, keep, error, before
        self.asked = []

    def __getattr__(self, name):
        return getattr(self._client, name)

    def get_object(self, **named):
        number = len(self.asked)
        self.asked.append(named["Range"])
        self._before(number)
        answer = self._client.get_object(**named)
        if number in self._breaks:
            answer["Body"] = Body(answer["Body"], self._keep, self._error)
        return answer


def large(s3, ranges=7):
    """An object of so many ranges and a bit, each byte of it in its place: its content and its eTag."""
    body = b"".join(b"%015d\n" % at for at in range(0, ranges * RANGE_BYTES, 16)) + b"the end"
    return body, s3.put("large", body)


def flaw(s3, monkeypatch, *breaks, **options):
    client = Flawed(s3._client, breaks, **options)
    monkeypatch.setattr(s3, "_client", client)
    return client


def test_a_large_object_is_read_in_ranges_each_once_and_in_order(s3, monkeypatch):
    body, etag = large(s3)
    client = flaw(s3, monkeypatch)
    stored = s3.open("large", etag)
    assert (stored.size, stored.etag) == (len(body), etag)
    assert read(stored) == body
    assert len(set(client.asked)) == len(client.asked) == 8


def test_ranges_are_read_no_further_ahead_than_memory_allows(s3, monkeypatch):
    body, etag = large(s3)
    client = flaw(s3, monkeypatch)
    chunks = s3.open("large", etag).chunks
    next(chunks)
    time.sleep(0.5)  # a slow reader: what is read ahead has been read by then
    assert 1 < len(client.asked) <= 1 + RANGES_AHEAD
    assert b"".join(chunks) == body[CHUNK_BYTES:]


ENDS = [None, ReadTimeoutError(endpoint_url=ENDPOINT), ResponseStreamingError(error=ConnectionResetError())]


@pytest.mark.parametrize("error", ENDS, ids=["ends", "times out", "reset"])
@pytest.mark.parametrize("broken", [0, 1, 4, 7])
@pytest.mark.parametrize("keep", [0, CHUNK_BYTES + 3])
def test_a_range_that_breaks_off_goes_on_where_it_ended(s3, monkeypatch, broken, keep, error):
    body, etag = large(s3)
    flaw(s3, monkeypatch, broken, keep=keep, error=error)
    assert read(s3.open("large", etag)) == body


@pytest.mark.parametrize("error", ENDS, ids=["ends", "times out", "reset"])
@pytest.mark.parametrize("ranges", [0, 3])
def test_reading_that_never_gets_on_is_transient(s3, monkeypatch, ranges, error):
    _, etag = large(s3, ranges)
    client = flaw(s3, monkeypatch, *range(99), keep=0, error=error)
    with pytest.raises(Transient, match="after 0 of"):
        read(s3.open("large", etag))
    assert client.asked.count(client.asked[-1]) <= READ_ATTEMPTS


def test_an_answer_with_too_much_is_not_believed(s3, monkeypatch):
    _, etag = large(s3)
    client = Flawed(s3._client)
    get = client.get_object
    client.get_object = lambda **named: get(**named | {"Range": named["Range"].split("-")[0] + "-"})
    monkeypatch.setattr(s3, "_client", client)
    stored = s3.open("large", etag)
    monkeypatch.setattr(client, "get_object", lambda **named: get(**named | {"Range": "bytes=0-"}))
    with pytest.raises(Transient):
        list(s3._read(_Version("large", etag, stored.size), 5, 10))


def test_a_store_that_knows_no_ranges_is_read_all_the_same(s3, monkeypatch):
    body, etag = large(s3)
    client = Flawed(s3._client)
    get = s3._client.get_object
    client.get_object = lambda **named: get(**{name: value for name, value in named.items() if name != "Range"})
    monkeypatch.setattr(s3, "_client", client)
    assert read(s3.open("large", etag)) == body


@pytest.mark.parametrize("number", range(1, 8))
def test_an_object_overwritten_in_mid_read_is_superseded(s3, monkeypatch, number):
    body, etag = large(s3)
    real = s3._client

    def overwrite(at):
        if at == number:
            real.put_object(Bucket="datasets", Key="large", Body=body.replace(b"0", b"1"))

    flaw(s3, monkeypatch, before=overwrite)
    with pytest.raises(Superseded):
        read(s3.open("large", etag))


def test_an_object_deleted_in_mid_read_is_missing(s3):
    _, etag = large(s3)
    stored = s3.open("large", etag)
    s3.delete("large")
    with pytest.raises(Missing):
        read(stored)


def test_reading_that_is_given_up_leaves_no_thread_at_work(s3):
    _, etag = large(s3)
    chunks = s3.open("large", etag).chunks
    next(chunks)
    chunks.close()
    until(lambda: [t.name for t in threading.enumerate() if t.name.startswith("read")], lambda names: not names)
