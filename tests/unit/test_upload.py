import dataclasses
import itertools
import json
from datetime import UTC, date, datetime

import pytest
from msgspec.structs import replace
from tunedrop import transfer
from tunedrop.errors import (
    Duplicate,
    Missing,
    NotYet,
    OverBudget,
    Rejected,
    Superseded,
    Throttled,
    Transient,
    Unauthorised,
    UnknownOutcome,
)
from tunedrop.ledger import CREATE_JOB
from tunedrop.provider import ProviderModel
from tunedrop.providers import PROFILES
from tunedrop.runs import DEPLOYMENT, FINAL, Run, RunRequest, swept_run_id
from tunedrop.settings import UploadSettings
from tunedrop.smoke_test import DEFAULT_PROMPT
from tunedrop.steps import Done, Wait
from tunedrop.upload import upload_dataset

from tests.local.provider_support import chats
from tests.unit.fakes import Broken, MemoryProvider, MemoryRegistry

KEY = "shop/orders.jsonl"
MODEL = "gpt-4.1-mini-2025-04-14"
SETTINGS = UploadSettings(default_model=MODEL, max_cost_usd=0)
MARK = b"\xef\xbb\xbf"


@pytest.fixture
def drop(bucket, ledger):
    """Drops a dataset and begins its run."""
    numbers = iter("0123456789abcdef")

    def drop(content=None, key=KEY):
        etag = bucket.put(key, chats() if content is None else content)
        return ledger.begin(Run.of(RunRequest(next(numbers) * 32, "datasets", key, etag, len(bucket.objects[key]))))

    return drop


@pytest.fixture
def upload(bucket, provider, ledger):
    """Takes the step, as the state machine does: with the run as the ledger holds it."""

    def upload(run, settings=SETTINGS, **others):
        default = others.pop("provider", provider)
        parts = {"bucket": bucket, "providers": MemoryRegistry(openai=default), "ledger": ledger} | others
        return upload_dataset(ledger.get(run.run_id), settings, **parts)

    return upload


def specify(bucket, key="shop/orders.job.json", **specification):
    bucket.put(key, json.dumps(specification).encode())


def uploads(provider, run):
    return provider.files_named(f"{run.run_id}.jsonl")


def test_a_dataset_is_uploaded_under_the_runs_id(drop, upload, provider, ledger):
    run = drop()
    assert upload(run) == Done("waiting")
    [file] = uploads(provider, run)
    assert provider.contents[file.id] == chats()
    assert (ledger.get(run.run_id).state, ledger.get(run.run_id).file_id) == ("waiting", file.id)


def test_the_run_tells_what_was_found_out(drop, upload, bucket, ledger):
    run = drop()
    upload(run)
    known = ledger.get(run.run_id)
    assert (known.provider, known.model, known.method, known.examples) == ("openai", MODEL, "supervised", 12)
    assert known.tokens > 0
    assert known.estimated_cost_usd > 0
    assert known.result_keys == (f"results/{run.run_id}/report.json",)


def test_the_report_is_left_in_the_bucket(drop, upload, bucket):
    run = drop()
    upload(run)
    report = json.loads(bucket.objects[f"results/{run.run_id}/report.json"])
    assert (report["valid"], report["examples"]) == (True, 12)


def test_the_run_can_be_found_by_its_object(drop, upload, ledger, clock):
    run = drop()
    upload(run)
    assert ledger.withdraw("datasets", KEY, clock.at + 1) == [(run.run_id, None)]


def test_a_duplicate_does_not_take_the_object_from_the_run_that_trains_on_it(drop, upload, ledger, clock):
    first, second = drop(), drop()
    upload(first)
    with pytest.raises(Duplicate):
        upload(second)
    assert ledger.withdraw("datasets", KEY, clock.at + 1) == [(first.run_id, None)]


@pytest.mark.parametrize(("wish", "prompt"), [(True, DEFAULT_PROMPT), ("What does ü cost?", "What does ü cost?")])
def test_the_wish_for_a_smoke_test_is_kept_in_the_report_alone(drop, upload, bucket, ledger, wish, prompt):
    specify(bucket, smoke_test=wish)
    run = drop()
    upload(run)
    report = json.loads(bucket.objects[f"results/{run.run_id}/report.json"])
    assert (report["valid"], report["smoke_test"]) == (True, {"prompt": prompt})
    assert prompt not in json.dumps([ledger.get(run.run_id).document(), ledger.planned(run.run_id)])


@pytest.mark.parametrize("specification", [{}, {"smoke_test": False}])
def test_a_report_wishes_no_smoke_test_by_itself(drop, upload, bucket, specification):
    specify(bucket, **specification)
    run = drop()
    upload(run)
    assert "smoke_test" not in json.loads(bucket.objects[f"results/{run.run_id}/report.json"])


class GivingAdapters(MemoryProvider):
    """A service that hands out adapters."""

    profile = PROFILES["nebius"]


LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
WITH_ACCOUNT = UploadSettings(default_model=MODEL, max_cost_usd=0, workers_ai_account_id="0123")
DEPLOYED = {"workers_ai": True}


@pytest.mark.parametrize(
    ("settings", "service", "specification", "code", "words"),
    [
        (WITH_ACCOUNT, MemoryProvider, {}, "unsupported", "openai hands out no adapter"),
        (SETTINGS, GivingAdapters, {}, "unsupported", "WorkersAiAccountId"),
        (WITH_ACCOUNT, GivingAdapters, {"model": "Qwen/Qwen3-32B"}, "unsupported_base", "llama-3.3-70b-instruct"),
        (
            WITH_ACCOUNT,
            GivingAdapters,
            {"extra_body": {"hyperparameters": {"lora": False}}},
            "unsupported",
            "without LoRA",
        ),
        (
            WITH_ACCOUNT,
            GivingAdapters,
            {"extra_body": {"hyperparameters": {"lora_r": 64}}},
            "invalid_value",
            "rank up to 32",
        ),
    ],
    ids=["no adapters", "no account", "no such base", "no LoRA", "rank"],
)
def test_a_deployment_that_cannot_be_is_refused_before_anything_is_paid(
    drop, upload, bucket, clock, settings, service, specification, code, words
):
    specify(bucket, **{"deploy": DEPLOYED, "model": LLAMA, **specification})
    run, provider = drop(), service()
    with pytest.raises(Rejected) as caught:
        upload(run, settings, provider=provider)
    assert (caught.value.code, words in caught.value.message) == (code, True), caught.value.message
    assert "deploy.workers_ai" in caught.value.message or "lora_r" in caught.value.message
    assert uploads(provider, run) == []


@pytest.mark.parametrize(
    ("wish", "noted"),
    [
        (True, {"workers_ai": True}),
        ({}, {"workers_ai": True}),
        ({"name": "orders"}, {"workers_ai": True, "name": "orders"}),
        (False, {}),
    ],
)
def test_a_wish_for_a_deployment_is_kept_for_the_end_of_the_run(drop, upload, bucket, ledger, clock, wish, noted):
    specify(bucket, model=LLAMA, deploy={"workers_ai": wish})
    run = drop()
    assert upload(run, WITH_ACCOUNT, provider=GivingAdapters()) == Done("waiting")
    assert ledger.noted(run.run_id, DEPLOYMENT) == noted


def test_who_wants_no_deployment_may_say_so(drop, upload, bucket):
    specify(bucket, deploy={"workers_ai": False})
    assert upload(drop()) == Done("waiting")


def test_the_job_is_planned_in_the_words_of_the_api(drop, upload, bucket, provider, ledger):
    specify(bucket, model="gpt-4.1-nano-2025-04-14", suffix="orders", seed=7, metadata={"team": "shop"})
    run = drop()
    upload(run)
    assert ledger.planned(run.run_id) == {
        "model": "gpt-4.1-nano-2025-04-14",
        "suffix": "orders",
        "seed": 7,
        "metadata": {"team": "shop", "run_id": run.run_id},
        "training_file": uploads(provider, run)[0].id,
    }


def test_a_step_that_is_done_is_not_done_again(drop, upload, provider):
    run = drop()
    upload(run)
    assert upload(run, bucket=None) == Done("waiting")
    assert len(uploads(provider, run)) == 1


def test_a_byte_order_mark_is_not_uploaded(drop, upload, provider):
    run = drop(MARK + chats())
    upload(run)
    [file] = uploads(provider, run)
    assert (provider.contents[file.id], file.size) == (chats(), len(chats()))


# A validation set


def test_a_validation_set_is_uploaded_with_its_dataset(drop, upload, bucket, provider, ledger):
    bucket.put("shop/orders.validation.jsonl", MARK + chats(40)[len(chats(30)) :])
    run = drop()
    upload(run)
    [file] = provider.files_named(f"{run.run_id}.validation.jsonl")
    assert provider.contents[file.id] == chats(40)[len(chats(30)) :]
    assert ledger.get(run.run_id).validation_file_id == file.id
    assert ledger.planned(run.run_id)["validation_file"] == file.id


def test_a_key_that_leaves_no_room_for_another_beside_it_has_none(drop, upload, ledger):
    run = drop(key="x" * 1018 + ".jsonl")
    upload(run)
    assert ledger.get(run.run_id).state == "waiting"


def test_a_broken_validation_set_rejects_the_run(drop, upload, bucket, provider):
    bucket.put("shop/orders.validation.jsonl", chats(2) + b"{\n")
    run = drop()
    with pytest.raises(Rejected, match="line 3 of the validation set"):
        upload(run)
    assert uploads(provider, run) == []


def test_a_validation_set_that_changes_meanwhile_is_checked_again(drop, upload, bucket):
    bucket.put("shop/orders.validation.jsonl", chats(40)[len(chats(30)) :])
    # The job specification is looked for, then the dataset, the validation set, the dataset once more, and that again.
    with pytest.raises(Transient, match="validation set changed"):
        upload(drop(), bucket=Broken(bucket, "open", Superseded("c", "m"), skip=4))


# What is not uploaded


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "the file"),
        (chats(9), "the file"),
        (chats() + b"{\n", "line 13"),
        (chats() + b"\xff\n", "line 13"),
        (chats() + b'{"messages": []}\n', "line 13, messages"),
        (b"PK\x03\x04 a zip", "the file"),
    ],
)
def test_a_broken_dataset_is_rejected_says_where_and_leaves_its_report(
    drop, upload, bucket, provider, ledger, content, place
):
    run = drop(content)
    with pytest.raises(Rejected) as caught:
        upload(run)
    assert caught.value.message.startswith(f"{place}")
    assert f"results/{run.run_id}/report.json" in caught.value.message
    assert json.loads(bucket.objects[f"results/{run.run_id}/report.json"])["errors"][0]["code"] == caught.value.code
    assert ledger.get(run.run_id).result_keys == (f"results/{run.run_id}/report.json",)
    assert uploads(provider, run) == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [(1, "more error"), (2, "There is 1 more error. All"), (1200, "There are 1,199 more errors. All")],
)
def test_a_rejection_counts_the_errors_and_quotes_nothing(drop, upload, broken, said):
    with pytest.raises(Rejected) as caught:
        upload(drop(chats() + b"{secret words\n" * broken))
    assert caught.value.message.count(said) == (broken > 1)
    assert "secret words" not in caught.value.message


@pytest.mark.parametrize(
    "specification", [b"", b"{", b"[]", b'{"modle": "x"}', b'{"seed": "x"}', b'{"provider": "other"}', b" " * (2 << 20)]
)
def test_an_invalid_job_specification_rejects_the_run(drop, upload, bucket, provider, specification):
    bucket.put("shop/orders.job.json", specification)
    run = drop()
    with pytest.raises(Rejected, match=r"^the job specification"):
        upload(run)
    assert uploads(provider, run) == []


def test_another_datasets_specification_is_not_read(drop, upload, bucket):
    bucket.put("shop/other.job.json", b"{")
    bucket.put("orders.job.json", b"{")
    assert upload(drop()) == Done("waiting")


def test_a_dataset_that_is_gone_is_missing(drop, upload, bucket):
    run = drop()
    bucket.delete(KEY)
    with pytest.raises(Missing):
        upload(run)


def test_a_dataset_that_was_overwritten_is_superseded(drop, upload, bucket, provider):
    run = drop()
    bucket.put(KEY, chats(20))
    with pytest.raises(Superseded):
        upload(run)
    assert provider.contents == {}


def test_a_dataset_that_is_overwritten_between_check_and_upload_is_superseded(drop, upload, bucket, provider):
    bucket.put("shop/orders.job.json", b'{"refuse_sensitive": true}')  # or it would be read but once
    with pytest.raises(Superseded):
        upload(drop(), bucket=Broken(bucket, "open", Superseded("c", "m"), skip=3))
    assert provider.contents == {}


# Budget


@pytest.mark.parametrize(
    ("own", "stacks"), [(0.000001, 0), (None, 0.000001), (100, 0.000001), (0.000001, 100)], ids=str
)
def test_a_run_over_the_smaller_limit_is_not_uploaded(drop, upload, bucket, provider, own, stacks):
    if own is not None:
        specify(bucket, max_cost_usd=own)
    run = drop()
    with pytest.raises(OverBudget, match="USD"):
        upload(run, UploadSettings(default_model=MODEL, max_cost_usd=stacks))
    assert uploads(provider, run) == []


def test_a_run_within_its_limits_is_uploaded(drop, upload, bucket):
    specify(bucket, max_cost_usd=100)
    assert upload(drop(), UploadSettings(default_model=MODEL, max_cost_usd=50)) == Done("waiting")


# Duplicates


def test_the_same_dataset_dropped_again_is_a_duplicate_of_the_first_run(drop, upload, provider):
    first, second = drop(), drop()
    upload(first)
    with pytest.raises(Duplicate, match=first.run_id):
        upload(second)
    assert uploads(provider, second) == []


def test_a_run_that_may_have_a_job_unseen_is_no_reason_to_pay_again_unless_that_is_wanted(
    drop, upload, provider, ledger, bucket
):
    first, second = drop(), drop()
    upload(first)
    ledger.intend(first.run_id, CREATE_JOB)
    ledger.finish(first.run_id, "timed_out", None)
    with pytest.raises(Duplicate, match=f"{first.run_id}.*before it was known.*force"):
        upload(second)
    specify(bucket, force=True)
    assert upload(second) == Done("waiting")


def test_a_rejected_run_claims_nothing(drop, upload, bucket):
    specify(bucket, max_cost_usd=0.000001)
    with pytest.raises(OverBudget):
        upload(drop())
    bucket.delete("shop/orders.job.json")
    assert upload(drop()) == Done("waiting")


@pytest.mark.parametrize("state", ["failed", "cancelled", "timed_out"])
def test_after_a_run_that_did_not_succeed_its_dataset_may_be_dropped_again(drop, upload, ledger, state):
    first, second = drop(), drop()
    upload(first)
    ledger.finish(first.run_id, state, None)
    assert upload(second) == Done("waiting")


def test_with_force_the_same_dataset_is_trained_again(drop, upload, bucket):
    upload(drop())
    specify(bucket, force=True)
    assert upload(drop()) == Done("waiting")


@pytest.mark.parametrize("change", [{"model": "gpt-4.1-nano-2025-04-14"}, {"suffix": "x"}, {"seed": 1}], ids=str)
def test_another_specification_makes_no_duplicate(drop, upload, bucket, change):
    upload(drop())
    specify(bucket, **change)
    assert upload(drop()) == Done("waiting")


def test_another_validation_set_makes_no_duplicate(drop, upload, bucket):
    upload(drop())
    bucket.put("shop/orders.validation.jsonl", chats(40)[len(chats(30)) :])
    assert upload(drop()) == Done("waiting")


def test_the_same_content_under_another_key_is_a_duplicate(drop, upload, bucket):
    specify(bucket, suffix="x")
    specify(bucket, key="elsewhere/copy.job.json", suffix="x", metadata={"team": "another"})
    for key in ("shop/orders", "elsewhere/copy"):
        bucket.put(f"{key}.validation.jsonl", chats(40)[len(chats(30)) :])
    upload(drop())
    with pytest.raises(Duplicate):
        upload(drop(key="elsewhere/copy.jsonl"))


class InParts:
    """A bucket that tells of each object as one that was put in parts: its eTag is no sum of its content."""

    def __init__(self, bucket):
        self._bucket, self._number = bucket, itertools.count()

    def open(self, key, etag=None):
        return dataclasses.replace(self._bucket.open(key), etag=f"{next(self._number)}-2")

    def write(self, *arguments):
        self._bucket.write(*arguments)


def test_a_validation_set_that_was_put_in_another_way_is_the_same(drop, upload, bucket, provider):
    bucket.put("shop/orders.validation.jsonl", chats(40)[len(chats(30)) :])
    upload(drop(), bucket=bucket)
    second = drop()
    with pytest.raises(Duplicate):
        upload(second, bucket=InParts(bucket))
    assert uploads(provider, second) == []


def test_another_service_makes_no_duplicate(drop, upload, bucket, provider):
    upload(drop())
    lab = MemoryProvider()
    lab.profile = replace(PROFILES["openai"], name="lab")
    specify(bucket, provider="lab", model=MODEL)
    assert upload(drop(), providers=MemoryRegistry(openai=provider, lab=lab)) == Done("waiting")


def test_what_was_trained_on_by_force_is_known_afterwards(drop, upload, bucket):
    specify(bucket, force=True)
    upload(drop())
    bucket.delete("shop/orders.job.json")
    with pytest.raises(Duplicate):
        upload(drop())


def test_force_leaves_the_content_to_the_run_that_has_it(drop, upload, bucket, ledger):
    first, forced = drop(), drop()
    upload(first)
    specify(bucket, force=True)
    upload(forced)
    ledger.finish(forced.run_id, "failed", None)
    bucket.delete("shop/orders.job.json")
    with pytest.raises(Duplicate, match=first.run_id):
        upload(drop())


def test_a_step_that_is_taken_again_is_no_duplicate_of_itself(drop, upload, provider, ledger):
    run = drop()
    with pytest.raises(Transient):
        upload(run, ledger=Broken(ledger, "plan", Transient("the ledger was away")))
    assert upload(run) == Done("waiting")
    assert upload(run) == Done("waiting")
    assert len(uploads(provider, run)) == 1


# Deleted, and put again


def test_the_same_content_put_again_waits_for_the_end_of_the_run_whose_object_was_deleted(drop, upload, ledger, clock):
    first = drop()
    upload(first)
    clock.advance(10)
    assert ledger.withdraw("datasets", KEY, clock.at)
    again = drop()
    assert upload(again) == Wait(30, "uploading")
    ledger.finish(first.run_id, "cancelled", None)
    assert upload(again) == Done("waiting")


def test_the_same_content_put_again_is_a_duplicate_of_a_deleted_one_that_succeeded_all_the_same(
    drop, upload, ledger, clock
):
    first = drop()
    upload(first)
    clock.advance(10)
    ledger.withdraw("datasets", KEY, clock.at)
    ledger.finish(first.run_id, "succeeded", None)
    with pytest.raises(Duplicate):
        upload(drop())


def test_a_deletion_that_arrives_after_the_same_content_was_put_again_cancels_nothing(drop, upload, ledger, clock):
    first = drop()
    upload(first)
    clock.advance(10)
    deleted_at = clock.at
    clock.advance(10)
    with pytest.raises(Duplicate):
        upload(drop())
    assert ledger.withdraw("datasets", KEY, deleted_at) == []
    assert not ledger.withdrawn(first.run_id)
    assert ledger.withdraw("datasets", KEY, clock.at + 1) == [(first.run_id, None)], "the later one was deleted, too"


def test_a_dataset_that_was_moved_is_trained_on(drop, upload, ledger, clock):
    first = drop()
    upload(first)
    with pytest.raises(Duplicate):
        upload(drop(key="elsewhere/moved.jsonl"))
    clock.advance(10)
    assert ledger.withdraw("datasets", KEY, clock.at) == []


# Trouble on the way


def test_a_file_whose_upload_was_not_answered_is_adopted(drop, upload, provider, ledger):
    run = drop()
    with pytest.raises(UnknownOutcome):
        upload(run, provider=Broken(provider, "upload", UnknownOutcome("reset"), after=True))
    assert upload(run) == Done("waiting")
    [file] = uploads(provider, run)
    assert ledger.get(run.run_id).file_id == file.id


def test_a_file_that_was_not_recorded_is_adopted(drop, upload, provider, ledger):
    run = drop()
    with pytest.raises(Transient):
        upload(run, ledger=Broken(ledger, "plan", Transient("away")))
    upload(run)
    assert len(uploads(provider, run)) == 1


def test_of_two_files_the_oldest_is_kept_and_the_other_deleted(drop, upload, provider, ledger, clock):
    run = drop()
    first = provider.upload(f"{run.run_id}.jsonl", [chats()], len(chats()))
    clock.advance(1)
    provider.upload(f"{run.run_id}.jsonl", [chats()], len(chats()))
    upload(run)
    assert uploads(provider, run) == [first]
    assert ledger.get(run.run_id).file_id == first.id


def test_half_a_file_of_that_name_is_not_adopted(drop, upload, provider, ledger):
    run = drop()
    half = provider.upload(f"{run.run_id}.jsonl", [chats()[:50]], 50)
    upload(run)
    assert ledger.get(run.run_id).file_id != half.id


@pytest.mark.parametrize("error", [Transient("x"), Throttled("x", 5), Unauthorised("x")], ids=repr)
@pytest.mark.parametrize(
    ("what", "method"), [("bucket", "open"), ("bucket", "write"), ("provider", "files_named"), ("provider", "upload")]
)
def test_trouble_that_passes_leaves_nothing_behind_that_the_next_attempt_stumbles_over(
    drop, upload, bucket, provider, ledger, clock, what, method, error
):
    run = drop()
    whole = {"bucket": bucket, "provider": provider}[what]
    with pytest.raises(type(error)):
        upload(run, **{what: Broken(whole, method, error)})
    clock.advance(getattr(error, "wait_seconds", 0))
    assert upload(run) == Done("waiting")
    assert len(uploads(provider, run)) == 1


# Several services


class Lab(MemoryProvider):
    profile = replace(PROFILES["nebius"], name="lab", default_model="llama-8b")


@pytest.fixture
def lab(clock):
    return Lab()


@pytest.fixture
def both(provider, lab):
    return MemoryRegistry(openai=provider, lab=lab)


def test_the_service_that_the_specification_names_gets_the_file_and_the_ledger_says_so(
    drop, upload, bucket, provider, lab, both, ledger
):
    specify(bucket, provider="lab", model="llama-70b")
    run = drop()
    upload(run, providers=both)
    assert (len(uploads(lab, run)), len(uploads(provider, run))) == (1, 0)
    assert (ledger.get(run.run_id).provider, ledger.get(run.run_id).model) == ("lab", "llama-70b")


def test_hyperparameters_go_where_the_service_knows_them(drop, upload, bucket, lab, both, ledger):
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    own = {"hyperparameters": {"lora_r": 16}, "tier": "low"}
    specify(bucket, provider="lab", model="llama-70b", method=method, extra_body=own)
    run = drop()
    upload(run, providers=both)
    assert ledger.planned(run.run_id) == {
        "model": "llama-70b",
        "hyperparameters": {"lora": True, "lora_r": 16, "n_epochs": 2},
        "extra_body": {"tier": "low"},
        "training_file": uploads(lab, run)[0].id,
    }


def test_a_service_has_a_default_model_of_its_own(drop, upload, bucket, both, ledger):
    specify(bucket, provider="lab")
    run = drop()
    upload(run, providers=both)
    assert ledger.get(run.run_id).model == "llama-8b"


def test_the_stacks_default_model_is_not_meant_for_another_service(drop, upload, bucket, lab, both):
    lab.profile = replace(lab.profile, default_model="")
    specify(bucket, provider="lab")
    with pytest.raises(Rejected, match="DefaultModel is not meant for lab") as caught:
        upload(drop(), providers=both)
    assert caught.value.code == "missing_model"


def test_a_service_that_is_not_configured_is_refused_with_those_that_are(drop, upload, bucket, provider, lab, both):
    specify(bucket, provider="azure", suffix="x")
    with pytest.raises(Rejected, match="there are lab, openai") as caught:
        upload(drop(), providers=both)
    assert caught.value.code == "unknown_provider"
    assert provider.contents == lab.contents == {}


def test_where_one_service_is_configured_its_name_may_be_said(drop, upload, bucket):
    specify(bucket, provider="openai")
    assert upload(drop()) == Done("waiting")


@pytest.mark.parametrize(
    ("wish", "code"),
    [({"metadata": {"team": "shop"}}, "unrecognized_key"), ({"method": "dpo"}, "wrong_method")],
    ids=str,
)
def test_a_wish_that_the_service_has_no_words_for_is_refused(drop, upload, bucket, lab, both, wish, code):
    specify(bucket, provider="lab", model="m", **wish)
    run = drop()
    with pytest.raises(Rejected, match=r"^the job specification.*lab"):
        upload(run, providers=both)
    report = json.loads(bucket.objects[f"results/{run.run_id}/report.json"])
    assert code in {error["code"] for error in report["errors"]}
    assert lab.contents == {}


# What the service says of the model


def test_a_model_that_the_service_does_not_have_is_refused_before_anything_is_sent(drop, upload, provider):
    run = drop()
    gone = Broken(provider, "model", Rejected("model_not_found", "no such model."))
    with pytest.raises(Rejected) as caught:
        upload(run, provider=gone)
    assert caught.value.code == "model_not_found"
    assert uploads(provider, run) == []


def test_a_model_that_the_service_does_not_train_is_refused(drop, upload, provider):
    provider.models[MODEL] = ProviderModel(tunable=False)
    with pytest.raises(Rejected) as caught:
        upload(drop())
    assert caught.value.code == "model_not_tunable"


@pytest.mark.parametrize("at_home", [True, False])
def test_the_models_end_that_the_service_tells_wins_over_the_table(drop, upload, provider, clock, at_home):
    provider.at_home = at_home
    clock.at = datetime(2027, 3, 1, tzinfo=UTC).timestamp()  # the table says that it has ended
    provider.models[MODEL] = ProviderModel(tells_end=True, end=None)
    assert upload(drop()) == Done("waiting")
    provider.models[MODEL] = ProviderModel(tells_end=True, end=date(2027, 2, 1))
    with pytest.raises(Rejected, match="2027-02-01") as caught:
        upload(drop(chats(13)))
    assert caught.value.code == "model_shut_down"


def test_while_the_service_cannot_be_asked_for_the_model_nothing_is_sent(drop, upload, provider):
    run = drop()
    with pytest.raises(Transient):
        upload(run, provider=Broken(provider, "model", Transient("away")))
    assert uploads(provider, run) == []
    assert upload(run) == Done("waiting")


# Limits


@pytest.fixture
def used_up(drop, upload, provider):
    """A service that takes one file an hour, and has taken it."""
    provider.profile = replace(provider.profile, files_per_hour=1)
    upload(drop(chats(13), "first.jsonl"))


@pytest.mark.parametrize("whole", [transfer.WHOLE_BYTES, 100], ids=["at the end", "as it is read"])
def test_a_valid_dataset_waits_for_its_turn_and_is_sent_then(
    drop, upload, provider, clock, used_up, monkeypatch, whole
):
    monkeypatch.setattr(transfer, "WHOLE_BYTES", whole)
    run = drop()
    with pytest.raises(NotYet) as caught:
        upload(run)
    assert uploads(provider, run) == []
    assert 3600 < caught.value.wait_seconds < 3600 * 1.03
    clock.advance(caught.value.wait_seconds)
    assert upload(run) == Done("waiting")
    assert len(uploads(provider, run)) == 1


def test_a_dataset_is_not_read_again_before_its_turn(drop, upload, bucket, clock, used_up, monkeypatch):
    run = drop()
    with pytest.raises(NotYet) as caught:
        upload(run)
    clock.advance(caught.value.wait_seconds / 2)
    with monkeypatch.context() as patch:
        patch.setattr("tunedrop.upload.preflight", None)
        with pytest.raises(NotYet):
            upload(run)
    bucket.objects.clear()
    with pytest.raises(Missing):
        upload(run)


@pytest.mark.parametrize("whole", [transfer.WHOLE_BYTES, 100], ids=["at the end", "as it is read"])
def test_what_is_wrong_with_a_dataset_does_not_wait_for_its_turn(drop, upload, used_up, monkeypatch, whole):
    monkeypatch.setattr(transfer, "WHOLE_BYTES", whole)
    with pytest.raises(Rejected):
        upload(drop(chats() + b"{}\n"))


def test_a_dataset_that_is_rejected_takes_nobodys_turn(drop, upload, provider, clock):
    provider.profile = replace(provider.profile, files_per_hour=1)
    with pytest.raises(Rejected):
        upload(drop(b"{}\n"))
    assert upload(drop()) == Done("waiting")


# Events that come after the sweeper has missed them


@pytest.fixture
def swept(bucket, ledger, clock):
    """The run that the sweeper starts on the object that is there."""

    def swept(key=KEY):
        etag, size = bucket.etag(key), len(bucket.objects[key])
        run_id = swept_run_id("datasets", key, etag, bucket.modified[key])
        return ledger.begin(Run.of(RunRequest(run_id, "datasets", key, etag, size)))

    return swept


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("state", [None, "succeeded"])
def test_an_event_that_comes_late_trains_on_nothing_twice(
    drop, upload, swept, bucket, provider, ledger, clock, force, state
):
    specify(bucket, force=force)
    late = drop()
    first = swept()
    upload(first)
    if state:
        ledger.finish(first.run_id, state, None)
    clock.advance(3600)
    with pytest.raises(Duplicate, match=first.run_id) as caught:
        upload(late)
    assert caught.value.code == "late_event"
    assert uploads(provider, late) == []


@pytest.mark.parametrize("state", [state for state in FINAL if state != "succeeded"])
def test_an_event_that_comes_after_the_sweepers_run_failed_runs(drop, upload, swept, ledger, state):
    late = drop()
    ledger.finish(swept().run_id, state, None)
    assert upload(late) == Done("waiting")


def test_the_same_content_dropped_again_is_not_late(drop, upload, swept, bucket, provider, clock):
    specify(bucket, force=True)
    drop()
    upload(swept())
    clock.advance(60)
    again = drop()
    assert upload(again) == Done("waiting")
