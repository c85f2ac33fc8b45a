import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tunedrop import events
from tunedrop.events import MalformedEvent, ObjectEvent

AT = "2026-03-01T10:00:00.000Z"


def s3_record(key="a.jsonl", **stored):
    return {
        "eventName": "ObjectCreated:Put",
        "eventTime": AT,
        "s3": {"bucket": {"name": "datasets"}, "object": {"key": key, "size": 10, "eTag": "e1"} | stored},
    }


def r2_message(key="a.jsonl", action="PutObject", **stored):
    return {
        "account": "acc",
        "action": action,
        "bucket": "datasets",
        "object": {"key": key, "size": 10, "eTag": "e1"} | stored,
        "eventTime": AT,
    }


def parse(value):
    """The events of a notification of which nothing is malformed; raises what is."""
    found = events.parse(json.dumps(value).encode())
    for malformed in found:
        if isinstance(malformed, MalformedEvent):
            raise malformed
    return found


def eventbridge_event(key="a.jsonl", kind="Object Created", **stored):
    return {
        "version": "0",
        "detail-type": kind,
        "source": "aws.s3",
        "time": AT,
        "detail": {"bucket": {"name": "datasets"}, "object": {"key": key, "size": 10, "etag": "e1"} | stored},
    }


def by_sns(notification):
    return {"Type": "Notification", "TopicArn": "arn:aws:sns:eu-central-1:1:t", "Message": json.dumps(notification)}


def by_sqs(*notifications):
    return {"Records": [{"eventSource": "aws:sqs", "body": json.dumps(each)} for each in notifications]}


def changed(value, path, new):
    """``value`` with the item at ``path`` replaced, or removed where ``new`` is ``...``."""
    value = json.loads(json.dumps(value))
    *way, last = path
    holder = value
    for step in way:
        holder = holder[step]
    if new is ...:
        del holder[last]
    else:
        holder[last] = new
    return value


# Forms

EVENT = ObjectEvent("datasets", "a.jsonl", "e1", 10, AT, created=True)


@pytest.mark.parametrize(
    ("notification", "found"),
    [
        pytest.param({"Records": [s3_record()]}, [EVENT], id="S3"),
        pytest.param(
            {"EventName": "s3:ObjectCreated:Put", "Key": "datasets/a.jsonl", "Records": [s3_record()]},
            [EVENT],
            id="MinIO",
        ),
        pytest.param(r2_message(), [EVENT], id="R2"),
        pytest.param([r2_message(), {"Records": [s3_record(), s3_record()]}], [EVENT] * 3, id="list"),
        pytest.param({"Records": [s3_record()] * 2}, [EVENT] * 2, id="several records"),
        pytest.param(eventbridge_event(), [EVENT], id="EventBridge"),
        pytest.param(by_sns({"Records": [s3_record()] * 2}), [EVENT] * 2, id="SNS"),
        pytest.param(by_sqs({"Records": [s3_record()] * 2}, {"Records": [s3_record()]}), [EVENT] * 3, id="SQS"),
        pytest.param(by_sqs(by_sns({"Records": [s3_record()]})), [EVENT], id="SNS to SQS"),
        pytest.param(by_sqs(eventbridge_event()), [EVENT], id="EventBridge to SQS"),
        pytest.param(by_sqs({"Service": "Amazon S3", "Event": "s3:TestEvent"}), [], id="test event by SQS"),
        pytest.param({"Records": []}, [], id="no records"),
        pytest.param([], [], id="empty list"),
        pytest.param({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "datasets"}, [], id="test event"),
    ],
)
def test_every_form_becomes_the_same_events(notification, found):
    assert parse(notification) == found


@pytest.mark.parametrize("action", ["PutObject", "CopyObject", "CompleteMultipartUpload"])
def test_an_r2_creation_is_one(action):
    assert parse(r2_message(action=action))[0].created


@pytest.mark.parametrize("name", ["ObjectCreated:Copy", "s3:ObjectCreated:CompleteMultipartUpload"])
def test_an_s3_creation_is_one(name):
    assert parse({"Records": [s3_record() | {"eventName": name}]})[0].created


@pytest.mark.parametrize(("action", "at"), [("DeleteObject", AT), ("LifecycleDeletion", AT), ("SomethingNew", "")])
def test_an_r2_message_of_another_action_is_no_creation_and_needs_no_etag(action, at):
    message = r2_message(action=action)
    message["object"] = {"key": "a.jsonl"}
    assert parse(message) == [ObjectEvent("datasets", "a.jsonl", "", None, AT, created=False, deleted_at=at)]


def test_an_s3_removal_is_no_creation_and_needs_no_etag():
    record = s3_record() | {"eventName": "ObjectRemoved:Delete"}
    record["s3"]["object"] = {"key": "a.jsonl", "sequencer": "05"}
    assert parse({"Records": [record]}) == [
        ObjectEvent("datasets", "a.jsonl", "", None, "05", created=False, deleted_at=AT)
    ]


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(("ObjectRemoved:DeleteMarkerCreated", AT), ("s3:ObjectRemoved:Delete", AT)),
        *(("LifecycleExpiration:Delete", AT), ("ObjectRestore:Completed", ""), ("ObjectCreated:Put", "")),
    ],
)
def test_a_deletion_has_a_time_and_nothing_else_has(name, at):
    assert parse({"Records": [s3_record() | {"eventName": name}]})[0].deleted_at == at


def test_a_deletion_on_eventbridge_needs_no_etag():
    event = changed(eventbridge_event(kind="Object Deleted", sequencer="05"), ["detail", "object", "etag"], ...)
    assert parse(event) == [ObjectEvent("datasets", "a.jsonl", "", 10, "05", created=False, deleted_at=AT)]


def test_another_event_on_eventbridge_is_neither():
    (event,) = parse(eventbridge_event(kind="Object Tags Added"))
    assert (event.created, event.deleted_at) == (False, "")


@pytest.mark.parametrize("time", [None, 7, ...])
def test_a_deletion_that_does_not_tell_its_time_has_none(time):
    record = changed(s3_record(sequencer="05") | {"eventName": "ObjectRemoved:Delete"}, ["eventTime"], time)
    assert not parse({"Records": [record]})[0].deletes_dataset


@pytest.mark.parametrize(
    ("key", "deletes"),
    [("a.jsonl", True), *((k, False) for k in ("a.job.json", "a.validation.jsonl", "results/a.jsonl", "a.png"))],
)
def test_only_the_deletion_of_a_dataset_is_one(key, deletes):
    assert parse(r2_message(key, action="DeleteObject"))[0].deletes_dataset is deletes
    assert not parse(r2_message(key))[0].deletes_dataset


def test_the_sequencer_goes_before_the_time():
    assert parse({"Records": [s3_record(sequencer="0055AED6DCD90281E5")]})[0].occurred == "0055AED6DCD90281E5"


def test_quotes_around_an_etag_are_no_part_of_it():
    assert parse(r2_message(eTag='"e1-3"'))[0].etag == "e1-3"


@pytest.mark.parametrize("size", [None, -1, True, "10", 1.5, 2**63, 10**40])
def test_a_size_that_is_none_is_unknown(size):
    assert parse(r2_message(size=size))[0].size is None


# Keys

KEYS = [
    "100% wörk+life.jsonl",
    "a b.jsonl",
    "日本/データ.jsonl",
    "../..//x.jsonl",
    'it\'s "quoted".jsonl',
    "line\nbreak\ttab\x00nul.jsonl",
    "a=1&b=2?c#d.jsonl",
    "%41%2B.jsonl",
    "\U0001f600.jsonl",
    "x" * 1018 + ".jsonl",
    "日" * 339 + "!.jsonl",
]


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_s3_are_form_encoded(key):
    assert parse({"Records": [s3_record(quote_plus(key, safe="/"))]})[0].key == key


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_minio_are_encoded_with_their_slashes(key):
    assert parse({"Records": [s3_record(quote(key, safe=""))]})[0].key == key


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_r2_and_eventbridge_are_as_they_are(key):
    assert parse(r2_message(key))[0].key == key
    assert parse(eventbridge_event(key))[0].key == key


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=200))
def test_any_key_comes_through_its_encoding(key):
    assert parse({"Records": [s3_record(quote_plus(key))]})[0].key == key


@pytest.mark.parametrize("key", ["", "x" * 1025, "日" * 342, "\ud800"])
def test_a_key_that_no_object_can_have_is_malformed(key):
    with pytest.raises(MalformedEvent, match=r"^\$\.object\.key: "):
        parse(r2_message(key))


# Malformed


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b'{"Records": [}', "{}".encode("utf-16")[:3]]
)
def test_what_is_no_json_is_malformed(body):
    with pytest.raises(MalformedEvent, match="no JSON text"):
        events.parse(body)


@pytest.mark.parametrize(
    ("notification", "path"),
    [
        (None, "$"),
        (1, "$"),
        ("text", "$"),
        ({}, "$"),
        ({"Records": None}, "$"),
        ({"Records": {}}, "$"),
        ({"action": "PutObject"}, "$"),
        ([r2_message(), 1], "$[1]"),
        ([[]], "$[0]"),
        ({"Records": [1]}, "$.Records[0].s3"),
        ({"Records": [s3_record(), []]}, "$.Records[1].s3"),
        ([{"Records": [s3_record(), {}]}], "$[0].Records[1].s3"),
        ({"Records": [s3_record("%ff")]}, "$.Records[0].s3.object.key"),
        ({"Records": [s3_record("%ED%A0%80")]}, "$.Records[0].s3.object.key"),
        ({"Records": [s3_record("")]}, "$.Records[0].s3.object.key"),
        (by_sqs(1), "$.Records[0].body"),
        (by_sqs({"Records": [s3_record("")]}), "$.Records[0].body.Records[0].s3.object.key"),
        ({"Records": [{"eventSource": "aws:sqs", "body": "{"}]}, "$.Records[0].body"),
        ({"Records": [{"eventSource": "aws:sqs"}]}, "$.Records[0].body"),
        ({"Type": "Notification", "Message": "["}, "$.Message"),
        ({"Type": "Notification", "Message": {}}, "$.Message"),
        ({"Type": "SubscriptionConfirmation", "Message": "You have chosen to subscribe"}, "$"),
        ({"source": "aws.s3"}, "$.detail"),
        (changed(eventbridge_event(), ["time"], ...), "$.time"),
        (changed(eventbridge_event(), ["detail-type"], ...), "$.detail-type"),
        (changed(eventbridge_event(), ["detail", "bucket"], ...), "$.detail.bucket"),
        (changed(eventbridge_event(), ["detail", "object", "etag"], ...), "$.detail.object.etag"),
    ],
)
def test_a_malformed_notification_says_where(notification, path):
    with pytest.raises(MalformedEvent) as caught:
        parse(notification)
    assert str(caught.value).split(": ")[0] == path


def test_a_malformed_event_takes_no_others_with_it():
    first, malformed, last = events.parse(json.dumps([r2_message("a.jsonl"), {}, r2_message("b.jsonl")]).encode())
    assert (first.key, last.key) == ("a.jsonl", "b.jsonl")
    assert str(malformed).startswith("$[1]: ")


@pytest.mark.parametrize("new", [..., None, 1, [], {}, "\ud800"], ids=repr)
@pytest.mark.parametrize(
    "path",
    [
        *(("eventName",), ("eventTime",), ("s3", "bucket", "name"), ("s3", "object", "key"), ("s3", "object", "eTag")),
        *(("s3",), ("s3", "bucket"), ("s3", "object")),
    ],
    ids=".".join,
)
def test_an_s3_record_without_what_it_needs_is_malformed(path, new):
    with pytest.raises(MalformedEvent) as caught:
        parse({"Records": [changed(s3_record(), path, new)]})
    assert str(caught.value).startswith("$.Records[0]." + ".".join(path))


@pytest.mark.parametrize("new", [..., None, 1, [], {}, "\ud800"], ids=repr)
@pytest.mark.parametrize(
    "path", [("bucket",), ("eventTime",), ("object", "key"), ("object", "eTag")], ids=lambda path: ".".join(path)
)
def test_an_r2_message_without_what_it_needs_is_malformed(path, new):
    with pytest.raises(MalformedEvent) as caught:
        parse(changed(r2_message(), path, new))
    assert str(caught.value).startswith("$." + ".".join(path))


@pytest.mark.parametrize("sequencer", [1, [1], {"a": 1}, "\ud800"], ids=repr)
def test_a_sequencer_that_is_no_text_is_malformed(sequencer):
    with pytest.raises(MalformedEvent, match=r"^\$\.Records\[0\]\.s3\.object\.sequencer: "):
        parse({"Records": [s3_record(sequencer=sequencer)]})


@pytest.mark.parametrize("etag", ["", '""'])
def test_a_creation_with_an_empty_etag_is_malformed_for_it_could_not_be_read_conditionally(etag):
    with pytest.raises(MalformedEvent, match=r"^\$\.object\.eTag: "):
        parse(r2_message(eTag=etag))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
_PATHS = [
    ("Records", 0, *path)
    for path in [
        *((), ("s3",), ("eventName",), ("eventTime",), ("s3", "object"), ("s3", "bucket", "name")),
        *(("s3", "object", name) for name in ("key", "eTag", "size", "sequencer")),
    ]
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(_PATHS), _JSON)
@example(_PATHS[-1], "\ud800")
def test_arbitrary_json_anywhere_makes_events_or_is_malformed_and_raises_nothing_else(path, junk):
    envelope = {"Records": [s3_record(sequencer="05")]}
    for value in (
        junk,
        changed(envelope, path, junk),
        {"action": junk, "object": junk},
        by_sqs(junk),
        {"source": "aws.s3", "detail": junk},
        changed(eventbridge_event(), ["detail", "object"], junk),
        r2_message() | {"action": junk},
    ):
        try:
            found = parse(value)
        except MalformedEvent:
            continue
        for event in found:
            event.why_ignored("datasets", "a", "b")
            event.run_request().to_input()


# What an event starts

OTHERS_OF_AN_ADAPTER = "an adapter's file; only adapters/NAME/adapter_model.safetensors starts anything"


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("a.jsonl", None),
        ("deep/er/a.b.jsonl", None),
        ("my-results/a.jsonl", None),
        ("results/0123/events.jsonl", "a result of Tunedrop's own"),
        ("adapters/0123/adapter_config.json", "an adapter's configuration; it is read with its weights"),
        ("adapters/mine/data.jsonl", OTHERS_OF_AN_ADAPTER),
        ("adapters/adapter_model.safetensors", OTHERS_OF_AN_ADAPTER),
        ("adapters//adapter_model.safetensors", OTHERS_OF_AN_ADAPTER),
        ("adapters/a/b/adapter_model.safetensors", OTHERS_OF_AN_ADAPTER),
        ("adapters/a/adapter_model.safetensors.tmp", OTHERS_OF_AN_ADAPTER),
        ("adapters/a/xadapter_model.safetensors", OTHERS_OF_AN_ADAPTER),
        ("mine/adapters/a/adapter_model.safetensors", "the key does not end in .jsonl"),
        ("results/0123/adapter_model.safetensors", "a result of Tunedrop's own"),
        ("a.validation.jsonl", "a validation set; it is read with its dataset"),
        ("a.job.json", "a job specification; it is read with its dataset"),
        ("a.json", "the key does not end in .jsonl"),
        ("a.JSONL", "the key does not end in .jsonl"),
        ("a.jsonl.gz", "the key does not end in .jsonl"),
    ],
)
def test_only_datasets_start_a_run(key, reason):
    (event,) = parse(r2_message(key))
    assert (event.why_ignored("datasets"), event.brings_adapter) == (reason, False)


@pytest.mark.parametrize("name", ["mine", "0" * 32, "Ä b+c", ".."])
def test_the_weights_of_an_adapter_start_its_publication(name):
    (event,) = parse(r2_message(f"adapters/{name}/adapter_model.safetensors"))
    assert (event.why_ignored("datasets"), event.brings_adapter) == (None, True)


def test_a_deleted_adapter_is_no_deleted_dataset():
    (event,) = parse(r2_message("adapters/mine/adapter_model.safetensors", action="DeleteObject"))
    assert not event.deletes_dataset
    assert event.why_ignored("datasets") == "no object was created"


@pytest.mark.parametrize(
    ("prefix", "suffix", "reason"),
    [
        ("", "", None),
        ("train/", "", None),
        ("", ".train.jsonl", None),
        ("train/", ".train.jsonl", None),
        ("other/", "", "the key does not begin with other/"),
        ("", ".test.jsonl", "the key does not end in .test.jsonl"),
    ],
)
def test_a_stack_may_have_rules_for_keys(prefix, suffix, reason):
    assert parse(r2_message("train/a.train.jsonl"))[0].why_ignored("datasets", prefix, suffix) == reason


def test_another_buckets_events_start_nothing():
    assert parse(r2_message())[0].why_ignored("other") == "another bucket"


def test_a_deletion_starts_nothing():
    assert parse(r2_message(action="DeleteObject"))[0].why_ignored("datasets") == "no object was created"


def run_id(notification):
    return parse(notification)[0].run_request().run_id


def test_the_same_notification_twice_is_the_same_run():
    assert run_id(r2_message()) == run_id(r2_message())


def test_the_same_event_is_the_same_run_in_every_form():
    envelope = {"Records": [s3_record("a+b.jsonl")]}
    ids = {
        run_id(form) for form in (r2_message("a b.jsonl"), envelope, by_sqs(envelope), eventbridge_event("a b.jsonl"))
    }
    assert len(ids) == 1


@pytest.mark.parametrize(
    "other",
    [
        r2_message() | {"bucket": "other"},
        r2_message("b.jsonl"),
        r2_message(eTag="e2"),
        r2_message() | {"eventTime": "2026-03-01T10:00:00.001Z"},
        r2_message("a.jsonle", eTag="1"),  # reads the same when joined
    ],
)
def test_whatever_differs_makes_another_run(other):
    assert run_id(other) != run_id(r2_message())


def test_a_runs_id_can_name_an_execution_and_a_file():
    assert len(run_id(r2_message())) == 32
    assert run_id(r2_message()).isalnum()


@pytest.mark.parametrize("etag", ["x" * 129, "a\r\nb", "é", "x" * 500_000])
def test_an_etag_that_no_store_makes_is_malformed(etag):
    with pytest.raises(MalformedEvent, match="eTag"):
        parse(r2_message(eTag=etag))
