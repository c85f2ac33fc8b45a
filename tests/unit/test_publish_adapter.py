"""Publishing: the step with the real client against the emulated Workers AI."""

import json

import pytest
from tunedrop import publish_adapter as module
from tunedrop.errors import Denied, Duplicate, Missing, Rejected, Superseded, Transient, UnknownOutcome
from tunedrop.publish_adapter import finetune_name, publish_adapter
from tunedrop.runs import CONFIG, DEPLOYMENT, WEIGHTS, Run, RunRequest
from tunedrop.steps import Done, Wait, take

from local.adapter import config, shapes, small_adapter, weights
from tests.local.workers_ai_support import ACCOUNT, BASE, CREATION, MODEL, TOKEN
from tests.unit.fakes import Broken

ASSETS = ("POST", "/finetunes/*/finetune-assets")


@pytest.fixture
def drop(bucket, ledger):
    """Drops an adapter and begins the run of its weights."""
    numbers = iter("0123456789abcdef")

    def drop(name="orchard", files=None, **request):
        for file, body in (small_adapter(BASE) if files is None else files).items():
            bucket.put(f"adapters/{name}/{file}", body)
        key = f"adapters/{name}/{WEIGHTS}"
        run_id, size = next(numbers) * 32, len(bucket.objects[key])
        return ledger.begin(Run.of(RunRequest(run_id, "datasets", key, bucket.etag(key), size)))

    return drop


@pytest.fixture
def publish(workers_ai, bucket, ledger):
    """Takes the step, as the state machine does: with the run as the ledger holds it."""

    def publish(run, **others):
        parts = {"bucket": bucket, "workers_ai": workers_ai.client, "ledger": ledger, "smoke_test": True} | others
        return publish_adapter(ledger.get(run.run_id), **parts)

    return publish


@pytest.fixture
def to_the_end(publish, clock):
    """Takes the step again and again, as long as it wants to be asked again or fails in a way that passes."""

    def to_the_end(run, **others):
        for _ in range(100):
            try:
                outcome = publish(run, **others)
            except (Transient, UnknownOutcome):
                outcome = Wait(5, "uploading")
            if isinstance(outcome, Done):
                return outcome
            clock.advance(outcome.seconds)
        raise AssertionError("it never came to an end")

    return to_the_end


def kept(workers_ai):
    return workers_ai.ledger()["finetunes"]


def creations(workers_ai):
    return [r for r in workers_ai.ledger()["requests"] if r["method"] == "POST" and r["path"].endswith("/finetunes")]


def report(bucket, run):
    return json.loads(bucket.objects[f"results/{run.run_id}/report.json"])


# What works


def test_an_adapter_becomes_a_finetune_that_answers(drop, publish, workers_ai, bucket, ledger):
    run = drop("Orchard Desk")
    assert publish(run) == Done("succeeded", "orchard-desk")
    (finetune,) = kept(workers_ai)
    assert (finetune["name"], finetune["model"], finetune["public"]) == ("orchard-desk", MODEL, False)
    assert finetune["assets"][CONFIG]["config"] == {**config(BASE), "model_type": "mistral"}
    assert finetune["assets"][WEIGHTS]["size"] == len(bucket.objects[run.key])
    known = ledger.get(run.run_id)
    assert (known.model, known.fine_tuned_model, known.finetune_id) == (MODEL, "orchard-desk", finetune["id"])
    assert known.result_keys == (f"results/{run.run_id}/report.json",)
    assert '"lora": "orchard-desk"' in known.next_step
    told = report(bucket, run)
    assert (told["valid"], told["finetune"]["id"]) == (True, finetune["id"])
    assert [warning["code"] for warning in told["warnings"]] == ["model_type_added"]
    assert told["smoke_test"]["answer"].endswith(told["smoke_test"]["prompt"])


def test_the_weights_are_sent_first(drop, publish, workers_ai, bucket, ledger):
    sent = []

    class Recording:
        finetunes, create, ask = workers_ai.client.finetunes, workers_ai.client.create, workers_ai.client.ask

        def upload(self, finetune_id, asset):
            sent.append((asset.name, b"".join(asset.open())))
            workers_ai.client.upload(finetune_id, asset)

    run = drop()
    publish(run, workers_ai=Recording())
    assert [name for name, _ in sent] == [WEIGHTS, CONFIG]
    assert sent[0][1] == bucket.objects[run.key]


def test_no_prompt_is_asked_where_none_is_wished(drop, publish, workers_ai, bucket):
    run = drop()
    assert publish(run, smoke_test=False) == Done("succeeded", "orchard")
    assert "smoke_test" not in report(bucket, run)
    assert not [request for request in workers_ai.ledger()["requests"] if "/run/" in request["path"]]


def test_only_the_header_is_read_before_all_is_known_to_be_well(drop, publish, bucket):
    class Reluctant:
        peek, write = bucket.peek, bucket.write

        def open(self, key, etag=None):
            raise AssertionError("the whole file was read")

    files = small_adapter(BASE) | {CONFIG: json.dumps(config(BASE, rank=64)).encode()}
    with pytest.raises(Rejected):
        publish(drop(files=files), bucket=Reluctant())


def test_a_header_that_is_longer_than_the_first_look_is_read(drop, publish, monkeypatch):
    monkeypatch.setattr(module, "PEEK_BYTES", 16)
    assert publish(drop()) == Done("succeeded", "orchard")


# The name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("orchard", "orchard"),
        ("Orchard Desk (new)", "orchard-desk-new"),
        ("a" * 80, "a" * 54),
        ("a" * 53 + " b", "a" * 53),
        ("日本", "adapter"),
        ("cf-public-orchard", "adapter-cf-public-orchard"),
        ("..", "adapter"),
        ("949cc904ae5f387bcd88be99ca40d81b", "949cc904ae5f387bcd88be99ca40d81b"),
    ],
)
def test_the_name_is_made_to_fit(name, wanted):
    assert finetune_name(name) == wanted


def test_another_adapter_of_a_name_that_is_taken_gets_a_suffix(drop, publish, workers_ai):
    publish(drop())
    other = publish(drop(files=small_adapter(BASE, seed=1)))
    assert other.fine_tuned_model.startswith("orchard-")
    assert len(other.fine_tuned_model) == len("orchard-") + 8
    assert len(kept(workers_ai)) == 2


def test_the_same_adapter_under_the_same_name_is_a_duplicate(drop, publish, workers_ai, ledger):
    first, again = drop(), drop()
    publish(first)
    ledger.finish(first.run_id, "succeeded", None)
    with pytest.raises(Duplicate, match=first.run_id):
        publish(again)
    assert len(kept(workers_ai)) == 1


def test_the_same_adapter_under_another_name_is_another_finetune(drop, publish, workers_ai):
    publish(drop("orchard"))
    publish(drop("garden"))
    assert [finetune["name"] for finetune in kept(workers_ai)] == ["orchard", "garden"]


def test_a_finetune_that_the_ledger_has_forgotten_is_adopted(drop, publish, workers_ai, ledger):
    first, again = drop(), drop()
    publish(first)
    ledger.finish(first.run_id, "succeeded", None)
    ledger._claims.clear()
    assert publish(again) == Done("succeeded", "orchard")
    assert len(kept(workers_ai)) == 1
    assert ledger.get(again.run_id).finetune_id == kept(workers_ai)[0]["id"]


def test_a_run_that_failed_can_be_dropped_again_and_finds_what_it_left(drop, publish, workers_ai, ledger):
    first, again = drop(), drop()
    workers_ai.fault(*ASSETS, {"status": 400}, times=1)
    with pytest.raises(Rejected):
        publish(first)
    ledger.finish(first.run_id, "rejected", None)
    assert publish(again) == Done("succeeded", "orchard")
    assert len(creations(workers_ai)) == 1


# The run that has trained it


def test_the_run_that_has_trained_it_is_named_and_names_the_finetune(drop, publish, ledger, workers_ai):
    source = ledger.begin(Run.of(RunRequest("abcd" * 8, "datasets", "shop/orders.jsonl", "e1", 100)))
    ledger.note(source.run_id, DEPLOYMENT, {"workers_ai": True, "name": "Orders Desk"})
    run = drop(source.run_id)
    assert publish(run) == Done("succeeded", "orders-desk")
    assert ledger.get(run.run_id).source_run_id == source.run_id


def test_a_folder_that_looks_like_a_runs_id_needs_no_run(drop, publish, ledger):
    run = drop("abcd" * 8)
    assert publish(run) == Done("succeeded", "abcd" * 8)
    assert ledger.get(run.run_id).source_run_id is None


# The files


def test_a_configuration_that_comes_late_is_waited_for(drop, publish, bucket, clock):
    run = drop(files={WEIGHTS: weights(shapes())})
    first = publish(run)
    assert (first.state, first.seconds) == ("received", 5)
    clock.advance(600)
    assert isinstance(publish(run), Wait)
    bucket.put(f"adapters/orchard/{CONFIG}", small_adapter(BASE)[CONFIG])
    assert publish(run) == Done("succeeded", "orchard")


def test_a_configuration_that_never_comes_ends_the_run(drop, to_the_end, clock, workers_ai):
    began, run = clock.time(), drop(files={WEIGHTS: weights(shapes())})
    with pytest.raises(Missing, match="15 minutes") as caught:
        to_the_end(run)
    assert caught.value.code == "config_missing"
    assert clock.time() - began == 900
    assert workers_ai.ledger()["requests"] == []


def test_weights_that_were_overwritten_or_are_gone_are_not_published(drop, publish, bucket, workers_ai):
    run = drop()
    bucket.put(run.key, weights(shapes(), seed=9))
    with pytest.raises(Superseded):
        publish(run)
    bucket.delete(run.key)
    with pytest.raises(Missing):
        publish(run)
    assert workers_ai.ledger()["requests"] == []


def test_weights_that_are_overwritten_while_they_are_sent_do_not_arrive(drop, publish, bucket, workers_ai):
    run = drop()
    with pytest.raises(Superseded):
        publish(run, bucket=Broken(bucket, "open", Superseded("object_changed", "overwritten")))
    assert kept(workers_ai)[0]["assets"] == {}


def test_an_invalid_adapter_is_rejected_before_anything_is_asked(drop, publish, workers_ai, bucket):
    files = {CONFIG: json.dumps(config("Qwen/Qwen3-8B", rank=64)).encode(), WEIGHTS: weights(shapes(rank=64))}
    run = drop(files=files)
    with pytest.raises(Rejected) as caught:
        publish(run)
    assert caught.value.code == "rank_too_large"
    assert f"results/{run.run_id}/report.json" in caught.value.message
    assert "1 more error" in caught.value.message
    assert [error["code"] for error in report(bucket, run)["errors"]] == ["rank_too_large", "unsupported_base"]
    assert workers_ai.ledger()["requests"] == []


def test_a_stack_that_has_lost_its_account_says_so(drop, publish):
    with pytest.raises(Denied, match="WorkersAiAccountId"):
        publish(drop(), workers_ai=None)


# Once

TROUBLE = [
    {"status": 500},
    {"status": 502, "after": True},
    {"reset": "before"},
    {"reset": "after"},
    {"html": 200, "after": True},
    {"truncate": 10},
    {"status": 500, "after": True, "delay_listing": 300},
    {"delay_listing": 300},
]


@pytest.mark.parametrize("fault", TROUBLE, ids=str)
def test_a_creation_comes_about_once_whatever_becomes_of_its_answer(drop, to_the_end, workers_ai, clock, fault):
    workers_ai.service._clock = clock.time
    workers_ai.fault(*CREATION, fault)
    assert to_the_end(drop()) == Done("succeeded", "orchard")
    assert len(kept(workers_ai)) == 1
    assert workers_ai.faults() == []


def test_after_an_unknown_outcome_nothing_is_created_before_the_last_look(drop, publish, workers_ai, clock):
    run = drop()
    workers_ai.fault(*CREATION, {"reset": "before"})
    with pytest.raises(UnknownOutcome):
        publish(run)
    clock.advance(899)
    assert isinstance(publish(run), Wait)
    assert len(creations(workers_ai)) == 1
    clock.advance(2)
    assert publish(run) == Done("succeeded", "orchard")
    assert len(creations(workers_ai)) == 2


def test_a_step_that_died_after_creating_finds_the_finetune(drop, publish, workers_ai, ledger):
    run = drop()
    with pytest.raises(Transient):
        publish(run, ledger=Broken(ledger, "note", Transient("away")))
    assert publish(run) == Done("succeeded", "orchard")
    assert len(creations(workers_ai)) == 1


@pytest.mark.parametrize("skip", [0, 1], ids=["weights", "configuration"])
@pytest.mark.parametrize("fault", [{"status": 500}, {"reset": "after"}, {"html": 502, "after": True}], ids=str)
def test_a_file_whose_outcome_is_unknown_is_sent_again(drop, to_the_end, workers_ai, skip, fault):
    workers_ai.fault(*ASSETS, fault, after_skipping=skip)
    assert to_the_end(drop()) == Done("succeeded", "orchard")
    assert kept(workers_ai)[0]["assets"].keys() == {WEIGHTS, CONFIG}


def test_what_was_sent_is_not_sent_again(drop, publish, workers_ai):
    run = drop()
    workers_ai.fault(*ASSETS, {"status": 500}, after_skipping=1)
    with pytest.raises(Transient):
        publish(run)
    publish(run)
    sent = [request for request in workers_ai.ledger()["requests"] if request["path"].endswith("finetune-assets")]
    assert len(sent) == 3  # the weights once, the configuration twice


@pytest.mark.parametrize("status", [400, 403, 429])
def test_a_refused_creation_leaves_no_intent(drop, publish, workers_ai, ledger, status):
    run = drop()
    workers_ai.fault(*CREATION, {"status": status})
    answer = take(lambda: publish(run), ledger.get(run.run_id), 168)
    assert ledger.intend(run.run_id, module.EFFECT) is None
    assert kept(workers_ai) == []
    assert ("wait_seconds" in answer) == (status == 429)


def test_a_full_account_is_told_before_anything_is_created(drop, publish, workers_ai, monkeypatch):
    monkeypatch.setattr(module, "MAX_ADAPTERS", 1)
    publish(drop())
    with pytest.raises(Denied) as caught:
        publish(drop("garden"))
    assert caught.value.code == "too_many_adapters"
    assert len(creations(workers_ai)) == 1


# What is seen of it


def test_a_finetune_that_is_never_listed_fails_the_run(drop, to_the_end, workers_ai, clock):
    workers_ai.service._clock = clock.time
    workers_ai.fault(*CREATION, {"delay_listing": 10_000})
    with pytest.raises(Denied) as caught:
        to_the_end(drop())
    assert caught.value.code == "not_listed"
    assert len(creations(workers_ai)) == 1


NOT_FOUND = {"status": 400, "body": {"success": False, "errors": [{"code": 3037, "message": "Finetune not found"}]}}


def test_a_finetune_that_is_not_ready_yet_is_asked_again(drop, to_the_end, workers_ai):
    workers_ai.fault("POST", "/run/", NOT_FOUND, times=3)
    assert to_the_end(drop()) == Done("succeeded", "orchard")
    assert workers_ai.faults() == []


def test_a_finetune_that_never_answers_fails_the_run(drop, to_the_end, workers_ai, ledger):
    workers_ai.fault("POST", "/run/", NOT_FOUND, times=None)
    run = drop()
    with pytest.raises(Denied) as caught:
        to_the_end(run)
    assert caught.value.code == "finetune_not_found"
    assert "orchard is there" in caught.value.message
    assert ledger.get(run.run_id).fine_tuned_model is None


@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        ({"status": 429, "body": {"errors": [{"code": 3036, "message": "daily free allocation"}]}}, False),
        ({"status": 403, "body": {"errors": [{"code": 5016, "message": "terms"}]}}, False),
        ({"status": 500}, True),
        ({"status": 429}, True),
    ],
    ids=["allocation", "terms", "500", "429"],
)
def test_what_says_nothing_of_the_finetune_leaves_the_publication_as_it_is(
    drop, to_the_end, workers_ai, bucket, clock, fault, waits
):
    workers_ai.fault("POST", "/run/", fault, times=None)
    began, run = clock.time(), drop()
    assert to_the_end(run) == Done("succeeded", "orchard")
    assert "error" in report(bucket, run)["smoke_test"]
    assert (clock.time() - began >= 900) == waits


def test_nothing_of_the_adapter_and_no_token_is_in_the_ledger(drop, publish, ledger):
    run = drop()
    publish(run)
    left = json.dumps([ledger.get(run.run_id).document(), ledger.noted(run.run_id, module.NOTE)])
    assert TOKEN not in left
    assert ACCOUNT not in left
    assert "lora_A" not in left
