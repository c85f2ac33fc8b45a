"""The bucket as any S3 client sees it, and what it tells of each operation: R2's own messages.

Emulated in Python, and as miniflare has it, whose messages go through its queue and the real forwarder in workerd.
"""

import contextlib
import hashlib
import io
import re
from pathlib import Path

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from tunedrop.clock import seconds

from local import npm
from tests.local.provider_support import lines
from tests.workflow.running import RunningStack, chat

MIB = 1 << 20
NO_DATASET = b"no dataset\n"


@pytest.fixture(scope="module", params=["python", "workerd"])
def stack(request):
    if request.param == "workerd":
        try:
            npm.node()
        except npm.NoNode as missing:
            pytest.skip(str(missing))
    with RunningStack("--cloudflare", request.param) as stack:
        yield stack


@pytest.fixture(scope="module")
def s3(stack):
    """A client that knows the endpoint and the keys and nothing else, as the AWS command line does."""
    return boto3.client(
        "s3",
        endpoint_url=stack.address["s3"],
        region_name="auto",
        aws_access_key_id=stack.address["access_key_id"],
        aws_secret_access_key=stack.address["secret_access_key"],
    )


def assert_r2(message, action, key):
    assert message.keys() >= {"account", "action", "bucket", "object", "eventTime"}
    assert re.fullmatch(r"[0-9a-f]{32}", message["account"])
    assert (message["action"], message["bucket"], message["object"]["key"]) == (action, "datasets", key)
    assert message["eventTime"].endswith("Z")
    assert seconds(message["eventTime"]) > 0


def test_a_put_is_told(stack, s3):
    etag = s3.put_object(Bucket="datasets", Key="put.jsonl", Body=NO_DATASET)["ETag"].strip('"')
    delivery = stack.delivery("put.jsonl")

    assert_r2(delivery["message"], "PutObject", "put.jsonl")
    assert delivery["message"]["object"] == {"key": "put.jsonl", "size": len(NO_DATASET), "eTag": etag}
    assert "copySource" not in delivery["message"]
    assert delivery["status"] == 202
    run_id = delivery["answer"]["accepted"][0]["run_id"]
    assert stack.ended(run_id).run["etag"] == etag


def test_a_copy_is_told_with_its_source(stack, s3):
    s3.put_object(Bucket="datasets", Key="source ü+.jsonl", Body=NO_DATASET)
    source = {"Bucket": "datasets", "Key": "source ü+.jsonl"}
    s3.copy_object(Bucket="datasets", Key="copy.jsonl", CopySource=source)
    delivery = stack.delivery("copy.jsonl")

    assert_r2(delivery["message"], "CopyObject", "copy.jsonl")
    assert delivery["message"]["copySource"] == {"bucket": "datasets", "object": "source ü+.jsonl"}
    assert delivery["message"]["object"]["size"] == len(NO_DATASET)
    assert stack.ended(delivery["answer"]["accepted"][0]["run_id"]).state == "rejected"


def test_a_multipart_upload_is_told_once_it_is_complete(stack, s3):
    body = NO_DATASET * (11 * MIB // len(NO_DATASET))
    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    s3.upload_fileobj(io.BytesIO(body), "datasets", "multipart.jsonl", Config=parts)
    delivery = stack.delivery("multipart.jsonl")

    assert_r2(delivery["message"], "CompleteMultipartUpload", "multipart.jsonl")
    assert delivery["message"]["object"]["size"] == len(body)
    assert re.fullmatch(r"[0-9a-f]{32}-3", delivery["message"]["object"]["eTag"])
    assert len(stack.deliveries("multipart.jsonl")) == 1
    ended = stack.ended(delivery["answer"]["accepted"][0]["run_id"])
    assert ended.state == "rejected", "its eTag, which is no MD5, holds for reading it"


def peak_kilobytes(process):
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def test_a_large_object_comes_back_as_it_was_and_is_not_kept_in_memory(stack, s3):
    parts = [bytes([number]) * (8 * MIB) for number in range(1, 16)] + [b"the end"]
    upload = {"Bucket": "datasets", "Key": "large.data"}
    upload_id = s3.create_multipart_upload(**upload)["UploadId"]
    tags = [
        s3.upload_part(**upload, UploadId=upload_id, PartNumber=number, Body=part)["ETag"]
        for number, part in enumerate(parts, 1)
    ]
    process = stack.address["pid"]
    before = peak_kilobytes(process)
    named = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
    s3.complete_multipart_upload(**upload, UploadId=upload_id, MultipartUpload={"Parts": named})

    assert s3.get_object(**upload)["Body"].read() == b"".join(parts)
    assert peak_kilobytes(process) - before < 60 * 1024, "half of it"
    md5s = b"".join(hashlib.md5(part).digest() for part in parts)
    assert s3.head_object(**upload)["ETag"] == f'"{hashlib.md5(md5s).hexdigest()}-{len(parts)}"'


@pytest.mark.parametrize(
    ("sizes", "named", "code"),
    [((5 * MIB, 1), (1, 3), "InvalidPart"), ((1, 1), (1, 2), "EntityTooSmall"), ((1,), (), "MalformedXML")],
)
def test_parts_that_make_no_object_are_refused(s3, sizes, named, code):
    upload = {"Bucket": "datasets", "Key": "refused.data"}
    upload_id = s3.create_multipart_upload(**upload)["UploadId"]
    tags = [
        s3.upload_part(**upload, UploadId=upload_id, PartNumber=number, Body=bytes(size))["ETag"]
        for number, size in enumerate(sizes, 1)
    ]
    parts = [{"PartNumber": number, "ETag": tag} for number, tag in zip(named, tags, strict=False)]
    with pytest.raises(ClientError) as refused:
        s3.complete_multipart_upload(**upload, UploadId=upload_id, MultipartUpload={"Parts": parts})
    assert refused.value.response["Error"]["Code"] == code


def test_a_multipart_upload_that_is_given_up_is_not_told(stack, s3):
    upload = s3.create_multipart_upload(Bucket="datasets", Key="given-up.jsonl")["UploadId"]
    s3.upload_part(Bucket="datasets", Key="given-up.jsonl", UploadId=upload, PartNumber=1, Body=NO_DATASET)
    s3.abort_multipart_upload(Bucket="datasets", Key="given-up.jsonl", UploadId=upload)
    s3.put_object(Bucket="datasets", Key="after.txt", Body=b"")

    stack.delivery("after.txt")
    assert stack.deliveries("given-up.jsonl") == []


def test_a_deletion_is_told_and_starts_nothing(stack, s3):
    s3.put_object(Bucket="datasets", Key="delete.txt", Body=NO_DATASET)
    s3.delete_object(Bucket="datasets", Key="delete.txt")
    delivery = stack.delivery("delete.txt", before=1)

    assert_r2(delivery["message"], "DeleteObject", "delete.txt")
    assert delivery["message"]["object"] == {"key": "delete.txt"}, "R2 tells neither size nor eTag of what is gone"
    assert delivery["answer"]["accepted"] == []
    assert delivery["answer"]["ignored"][0]["reason"] == "no object was created"


def test_every_deletion_of_many_is_told(stack, s3):
    keys = ["many/a & b.txt", "many/<c>.txt", "many/日本.txt"]
    for key in keys:
        s3.put_object(Bucket="datasets", Key=key, Body=NO_DATASET)
    s3.delete_objects(Bucket="datasets", Delete={"Objects": [{"Key": key} for key in keys]})

    for key in keys:
        assert_r2(stack.delivery(key, before=1)["message"], "DeleteObject", key)


def test_what_fails_is_not_told(stack, s3):
    with pytest.raises(s3.exceptions.ClientError):
        s3.copy_object(Bucket="datasets", Key="of-nothing.jsonl", CopySource={"Bucket": "datasets", "Key": "not there"})
    with pytest.raises(s3.exceptions.NoSuchBucket):
        s3.put_object(Bucket="another", Key="of-nothing.jsonl", Body=b"")
    s3.put_object(Bucket="datasets", Key="after-failures.txt", Body=b"")

    stack.delivery("after-failures.txt")
    assert stack.deliveries("of-nothing.jsonl") == []


def test_reading_listing_and_tagging_tell_nothing(stack, s3):
    s3.put_object(Bucket="datasets", Key="read.txt", Body=NO_DATASET)
    s3.get_object(Bucket="datasets", Key="read.txt")
    s3.head_object(Bucket="datasets", Key="read.txt")
    s3.list_objects_v2(Bucket="datasets")
    with contextlib.suppress(s3.exceptions.ClientError):  # R2 has no tags
        s3.put_object_tagging(Bucket="datasets", Key="read.txt", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    s3.put_object(Bucket="datasets", Key="after-reading.txt", Body=b"")

    stack.delivery("after-reading.txt")
    assert len(stack.deliveries("read.txt")) == 1


def test_reading_under_a_condition_is_as_r2_has_it(stack, s3):
    first = s3.put_object(Bucket="datasets", Key="condition.txt", Body=b"first")["ETag"]
    s3.put_object(Bucket="datasets", Key="condition.txt", Body=b"second")

    with pytest.raises(s3.exceptions.ClientError, match="PreconditionFailed"):
        s3.get_object(Bucket="datasets", Key="condition.txt", IfMatch=first)


@pytest.mark.parametrize(
    "key",
    ["a+b, 100% %2B/ü/日本語 🍎/'\"<&>; =?#[]{}|\\//two  spaces\tand a tab ~!@$^*().jsonl", "x" * 1018 + ".jsonl"],
    ids=["every kind of character", "1,024 bytes"],
)
def test_dataset_of_any_name_becomes_a_model(stack, s3, key):
    s3.put_object(Bucket="datasets", Key=key, Body=lines(chat(key[:30], example) for example in range(10)))
    assert_r2(stack.delivery(key)["message"], "PutObject", key)
    ended = stack.ended(stack.started(key))
    assert (ended.state, ended.run["key"]) == ("succeeded", key)


def test_dataset_of_many_parts_is_read_in_ranges(stack, s3):
    """The upload reads it by ranges under its eTag, and writes results of its own."""
    body = lines(chat("ranges " + "x" * 20_000, example) for example in range(600))
    assert len(body) > 11 * MIB
    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    s3.upload_fileobj(io.BytesIO(body), "datasets", "ranges.jsonl", Config=parts)
    ended = stack.ended(stack.started("ranges.jsonl"))
    assert ended.state == "succeeded"
    assert [file["bytes"] for file in ended.files] == [len(body)]
