"""The forwarder in workerd: what it posts, and what becomes of each message by what the webhook answers."""

import email.utils
import json
import threading
import time
from typing import Any

import pytest
from tunedrop import signatures
from werkzeug import Response

from local.cloudflare import forwarder
from tests.forwarder.world import AT, BUCKET, OLD_SECRET, SECRET, Webhook, World, event, message, until

CONFIG = {"first": 10, "longest": 10_800, "retries": 99}


def ids(*messages: dict[str, Any]) -> set[str]:
    return {each["id"] for each in messages}


# ------------------------------------------------------------------ what is posted


@pytest.mark.parametrize(
    ("action", "name"),
    [
        ("PutObject", "s3:ObjectCreated:Put"),
        ("CopyObject", "s3:ObjectCreated:Copy"),
        ("CompleteMultipartUpload", "s3:ObjectCreated:CompleteMultipartUpload"),
        ("DeleteObject", "s3:ObjectRemoved:Delete"),
        ("LifecycleDeletion", "s3:LifecycleExpiration:Delete"),
    ],
)
def test_event_becomes_a_record_of_s3(world: World, webhook: Webhook, action: str, name: str) -> None:
    told = event("deep/a b.jsonl", action)
    world.deliver(message(told | {"copySource": {"bucket": "b", "object": "o"}}))

    ((record,),) = [post.records for post in webhook.posts]
    assert (record["eventName"], record["eventTime"], record["eventSource"]) == (name, AT, "cloudflare:r2")
    assert record["userIdentity"] == {"principalId": told["account"]}
    assert record["s3"]["bucket"]["name"] == BUCKET
    assert record["s3"]["object"] == told["object"] | {"key": "deep/a+b.jsonl"}


def test_creations_start_runs_and_deletions_do_not(world: World, webhook: Webhook) -> None:
    actions = ["PutObject", "DeleteObject", "CopyObject", "LifecycleDeletion", "CompleteMultipartUpload", "NewThing"]
    messages = [message(event(f"{action}.jsonl", action)) for action in actions]

    outcome = world.deliver(*messages)

    assert outcome.acked == ids(*messages)
    assert webhook.keys == ["PutObject.jsonl", "CopyObject.jsonl", "CompleteMultipartUpload.jsonl"]
    (first, *_) = webhook.executions.started
    assert (first.bucket, first.etag, first.size) == (BUCKET, "e1", 10)


KEYS = [
    "a+b.jsonl",
    "100% sure.jsonl",
    "%2B%20%25%2f.jsonl",
    " two  spaces .jsonl",
    "für Ümläute, u\u0308 too.jsonl",
    "日本語/データ.jsonl",
    "emoji 🍎.jsonl",
    "/leading//double/../and/./dots.jsonl",
    'it\'s "quoted" `three` ways.jsonl',
    "line\nbreak\r\ttab\x00nul\x7f.jsonl",
    "a&b=c;d#e?f@g:h,i$j!k~l*(m)[n]{o}|p^q<r>s.jsonl",
    "back\\slash.jsonl",
    "\ufeff\u2028\u202e.jsonl",
    "x" * 1018 + ".jsonl",
    "日" * 339 + "!.jsonl",
    ".jsonl",
]


def test_keys_arrive_byte_for_byte(world: World, webhook: Webhook) -> None:
    world.deliver(*(message(event(key)) for key in KEYS))
    assert [key.encode() for key in webhook.keys] == [key.encode() for key in KEYS]


def test_keys_arrive_byte_for_byte_through_the_queue(world: World, webhook: Webhook) -> None:
    world.send(*map(event, KEYS))
    until(lambda: len(webhook.keys), lambda count: count >= len(KEYS))
    assert sorted(webhook.keys) == sorted(KEYS)


def test_batch_is_one_post(world: World, webhook: Webhook) -> None:
    outcome = world.deliver(*(message(event(f"{number}.jsonl")) for number in range(100)))
    assert len(outcome.acked) == len(webhook.keys) == 100
    assert len(webhook.posts) == 1


def test_largest_batch_is_within_what_the_webhook_takes(world: World, webhook: Webhook) -> None:
    world.deliver(*(message(event("ü" * 512, eTag=f"{number:032}-10000")) for number in range(100)))
    assert len(webhook.posts[0].body) < 1 << 20
    assert len(webhook.posts[0].records) == 100


@pytest.mark.parametrize("variant", ["forwarder", "rotating", "without_prefix"])
def test_signature_is_one_that_the_webhook_accepts(world: World, webhook: Webhook, variant: str) -> None:
    posted = message()
    assert world.deliver(posted, to=variant).acked == ids(posted)
    assert webhook.keys == ["a.jsonl"]


def test_both_secrets_sign_while_one_replaces_the_other(world: World, webhook: Webhook) -> None:
    world.deliver(message(), to="rotating")
    (post,) = webhook.posts
    for secret in (SECRET, OLD_SECRET):
        signatures.verify([secret], post.headers, post.body)


def test_attempts_of_the_same_messages_have_one_id_and_a_time_each(world: World, webhook: Webhook) -> None:
    webhook.answer(503)
    one, other, third = message(), message(), message()
    again = [each | {"attempts": 2} for each in (other, one)]

    world.deliver(one, other)
    time.sleep(1.1)
    world.deliver(*again)
    world.deliver(one, third)

    first, second, of_others = [post.headers for post in webhook.posts]
    assert first["webhook-id"] == second["webhook-id"] != of_others["webhook-id"]
    assert int(first["webhook-timestamp"]) < int(second["webhook-timestamp"])


# ------------------------------------------------------------------ what comes again


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(world: World, webhook: Webhook, status: int) -> None:
    webhook.answer(status)
    messages = [message(), message()]
    assert world.deliver(*messages).retried == dict.fromkeys(ids(*messages), CONFIG["first"])


@pytest.mark.parametrize("variant", ["without_webhook", "without_secret", "with_bad_secret"])
def test_what_an_operator_can_mend_is_tried_again(world: World, webhook: Webhook, variant: str) -> None:
    posted = message()
    assert world.deliver(posted, to=variant).retried == {posted["id"]: CONFIG["first"]}
    assert webhook.posts == []


def test_pauses_grow_up_to_three_hours(world: World, webhook: Webhook) -> None:
    webhook.always = lambda: Response("down", 503)
    messages = [message(attempts=attempts) for attempts in (*range(1, 13), 50, CONFIG["retries"])]

    pauses = list(world.deliver(*messages).retried.values())

    growing = [CONFIG["first"] * 2**number for number in range(11)]
    assert growing[-1] < CONFIG["longest"]
    assert pauses == [*growing, *[CONFIG["longest"]] * 3]


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("120", 120),
        ("3", CONFIG["first"]),
        ("0", CONFIG["first"]),
        ("soon", CONFIG["first"]),
        ("-5", CONFIG["first"]),
        ("Wed, 21 Oct 2015 07:28:00 GMT", CONFIG["first"]),
        ("1000000", 86_400),
        ("9" * 400, CONFIG["first"]),
    ],
)
def test_webhook_may_ask_for_a_longer_pause(world: World, webhook: Webhook, retry_after: str, pause: int) -> None:
    webhook.answer(429, headers={"retry-after": retry_after})
    posted = message()
    assert world.deliver(posted).retried == {posted["id"]: pause}


def test_webhook_may_ask_for_a_longer_pause_by_a_date(world: World, webhook: Webhook) -> None:
    webhook.answer(503, headers={"retry-after": email.utils.formatdate(time.time() + 600, usegmt=True)})
    (pause,) = world.deliver(message()).retried.values()
    assert 595 <= pause <= 600


def test_webhook_that_does_not_answer_in_time_is_asked_again_and_the_rest_waits_with_it(
    world: World, webhook: Webhook
) -> None:
    hang = threading.Event()
    webhook.script = [lambda: Response(str(hang.wait(20)))]
    first, rest = message(), message(attempts=3)
    began = time.monotonic()

    outcome = world.deliver(first, rest, to="hasty")

    took = time.monotonic() - began
    hang.set()
    assert outcome.retried == {first["id"]: CONFIG["first"], rest["id"]: 4 * CONFIG["first"]}
    assert 0.3 <= took < 5
    assert len(webhook.posts) == 1


def test_what_failed_in_company_is_posted_in_half_of_it_until_it_is_alone(world: World, webhook: Webhook) -> None:
    def sizes(attempts: int) -> list[int]:
        webhook.clean()
        world.deliver(*(message(event(f"{number}.jsonl"), attempts=attempts) for number in range(100)))
        return [len(post.records) for post in webhook.posts]

    assert sizes(2) == [50, 50]
    assert sizes(3) == [25] * 4
    assert sizes(7) == sizes(40) == [1] * 100


@pytest.mark.parametrize("status", [500, 400])
def test_message_that_breaks_the_webhook_holds_up_no_other(world: World, webhook: Webhook, status: int) -> None:
    """Whatever the answer to all that it is in: it alone waits on, or dies, and the rest arrives."""
    webhook.poison = (b"poison.jsonl", status)
    waiting = [message(event(f"{number}.jsonl")) for number in range(99)]
    waiting.insert(42, message(event("poison.jsonl")))

    for attempts in range(1, 9):
        outcome = world.deliver(*(each | {"attempts": attempts} for each in waiting))
        waiting = [each for each in waiting if each["id"] in outcome.retried]

    assert len(webhook.keys) == 99
    if status == 500:
        assert [each["body"]["object"]["key"] for each in waiting] == ["poison.jsonl"]
    else:
        assert waiting == []
        assert [letter["event"]["object"]["key"] for letter in world.dead(1)] == ["poison.jsonl"]


# ------------------------------------------------------------------ what dies


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410, 413, 422])
def test_what_is_refused_is_a_dead_letter_with_the_reason(world: World, webhook: Webhook, status: int) -> None:
    webhook.answer(status)
    posted = message()

    assert world.deliver(posted).acked == ids(posted)

    (letter,) = world.dead(1)
    assert letter["reason"] == f"the webhook answered {status}: because"
    assert letter["event"] == posted["body"]
    assert letter["attempts"] == 1
    assert letter["died"].startswith("20")


def test_webhook_that_has_moved_is_not_followed(world: World, webhook: Webhook) -> None:
    """Its new address is for the operator to say; a POST that is redirected becomes a GET."""
    webhook.answer(302, headers={"location": "/elsewhere"})
    world.deliver(message())
    (letter,) = world.dead(1)
    assert letter["reason"].startswith("the webhook answered 302: ")
    assert len(webhook.posts) == 1


def test_what_is_refused_for_anything_but_its_contents_dies_in_company_too(world: World, webhook: Webhook) -> None:
    webhook.answer(401)
    messages = [message(event(f"{number}.jsonl")) for number in range(100)]
    assert world.deliver(*messages).acked == ids(*messages)
    assert [letter["event"] for letter in world.dead(100)] == [each["body"] for each in messages]


@pytest.mark.parametrize("status", [400, 413])
def test_nothing_dies_for_what_it_was_in_company_with(world: World, webhook: Webhook, status: int) -> None:
    webhook.answer(status)
    messages = [message(), message()]
    assert world.deliver(*messages).retried == dict.fromkeys(ids(*messages), 0)


def test_what_the_webhook_takes_for_malformed_dies_alone(world: World, webhook: Webhook) -> None:
    good, malformed, last = message(event("a.jsonl")), message(event("b.jsonl", eTag=None)), message(event("c.jsonl"))

    assert world.deliver(good, malformed, last).acked == ids(good, malformed, last)

    assert webhook.keys == ["a.jsonl", "c.jsonl"]
    (letter,) = world.dead(1)
    assert letter["event"]["object"]["key"] == "b.jsonl"
    assert letter["reason"].startswith("$.Records[1].s3.object.eTag: ")


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (None, "action"),
        ("text", "action"),
        ([], "action"),
        (7, "action"),
        ({}, "action"),
        (event() | {"bucket": 1}, "bucket"),
        (event() | {"object": None}, "object.key"),
        (event(""), "object.key"),
        (event() | {"eventTime": ""}, "eventTime"),
        (event("x" * 1025), "object.key"),
        (event("日" * 342), "object.key"),
        (event("\ud800"), "object.key"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_event_dies_without_being_posted(world: World, webhook: Webhook, body: Any, missing: str) -> None:
    strange, good = message() | {"body": body}, message()

    assert world.deliver(strange, good).acked == ids(strange, good)

    assert webhook.keys == ["a.jsonl"]
    (letter,) = world.dead(1)
    assert letter["reason"].startswith(f"no event of R2: {missing} ")


def test_last_attempt_is_told_of(world: World, webhook: Webhook) -> None:
    webhook.answer(503)
    posted = message(attempts=CONFIG["retries"] + 1)
    assert world.deliver(posted).acked == ids(posted)
    (letter,) = world.dead(1)
    assert (letter["reason"], letter["attempts"]) == ("the webhook answered 503: because", 100)


def test_any_number_of_letters_of_any_size_arrives(world: World, webhook: Webhook) -> None:
    webhook.answer(401, body="日" * 10_000)
    keys = [f"{number:03}" + "ü" * 510 for number in range(100)]
    world.deliver(*(message(event(key, "CopyObject") | {"copySource": {"bucket": "b", "object": key}}) for key in keys))
    letters = world.dead(100)
    assert [letter["event"]["object"]["key"] for letter in letters] == keys
    assert all(len(letter["reason"]) == 500 for letter in letters)


def test_what_cannot_be_a_dead_letter_comes_again(world: World, webhook: Webhook) -> None:
    """As long as it may: then the queue itself makes it one."""
    huge = message({"noise": "x" * 130_000})
    assert world.deliver(huge).retried == {huge["id"]: CONFIG["first"]}


# ------------------------------------------------------------------ with the real queue: after 1 s, 2 s, then the end


def test_events_outlive_a_webhook_that_is_down_for_a_while(world: World, webhook: Webhook) -> None:
    webhook.answer(503, 502)
    world.send(*(event(f"{number}.jsonl") for number in range(3)))

    until(lambda: webhook.keys, lambda keys: len(keys) >= 3)

    assert sorted(webhook.keys) == ["0.jsonl", "1.jsonl", "2.jsonl"]
    first, second, third = [post.at for post in webhook.posts]
    assert second - first >= 1
    assert third - second >= 2
    assert len({post.headers["webhook-id"] for post in webhook.posts}) == 1


def test_events_that_no_attempt_gets_through_die_in_the_queue(world: World, webhook: Webhook) -> None:
    webhook.always = lambda: Response("down", 503)
    world.send(event("late.jsonl"))

    (letter,) = world.dead(1)

    assert letter["event"] == event("late.jsonl")
    assert (letter["reason"], letter["attempts"]) == ("the webhook answered 503: down", 3)
    assert len(webhook.posts) == 3


def test_configuration_is_as_the_worker_needs_it() -> None:
    worker = forwarder({})
    (queue,) = worker["queueConsumers"].values()
    variables = worker["bindings"]
    assert (variables["FIRST_DELAY_SECONDS"], variables["LONGEST_DELAY_SECONDS"]) == (
        CONFIG["first"],
        CONFIG["longest"],
    )
    assert variables["RETRIES"] == CONFIG["retries"] == queue["maxRetries"] - 1
    assert queue["maxRetries"] <= 100
    assert queue["maxBatchSize"] <= 100
    assert queue["deadLetterQueue"] in worker["queueProducers"].values()
    assert json.dumps(worker).count("WEBHOOK_SECRET") == 0
