"""The upload step, with the emulated service behind it: what becomes a file there, and what does not."""

import dataclasses
import itertools
import json

import pytest
from msgspec.structs import replace
from tunedrop.errors import Denied, Duplicate, OverBudget, Rejected, Superseded, Transient
from tunedrop.provider import OpenAIProvider
from tunedrop.providers import PROFILES
from tunedrop.runs import Run, RunRequest
from tunedrop.settings import UploadSettings
from tunedrop.steps import Done, Wait
from tunedrop.transfer import ATTEMPTS_WITHOUT_TIME, BYTE_ORDER_MARK, RESERVE_SECONDS
from tunedrop.upload import upload_dataset

from tests.local.provider_support import KEY, Provider, chats
from tests.unit.fakes import FakeSecret, MemoryRegistry

PROFILE = replace(PROFILES["openai"], uploads_above=5_000, part_bytes=2_000)
SETTINGS = UploadSettings("gpt-4.1-mini", 0)
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def service():
    service = Provider.start(time_scale=1)
    yield service
    service.stop()


@pytest.fixture
def provider(service):
    return OpenAIProvider(PROFILE, service.url, FakeSecret(KEY))


@pytest.fixture(params=[20, 100], ids=["one call", "parts"])
def body(request):
    return chats(request.param)


@pytest.fixture
def drop(bucket, ledger):
    """Drops a dataset: its run."""

    def dropped(body, **beside):
        key = f"{next(NUMBERS)}/a.jsonl"
        for name, content in beside.items():
            ending = {"job": ".job.json", "validation": ".validation.jsonl"}[name]
            bucket.put(key.removesuffix(".jsonl") + ending, content)
        request = RunRequest(f"{next(NUMBERS):032}", "datasets", key, bucket.put(key, body), len(body))
        return ledger.begin(Run.of(request))

    return dropped


@pytest.fixture
def step(bucket, provider, ledger):
    def take(run, **options):
        parts = {"bucket": bucket, "providers": MemoryRegistry(openai=provider), "ledger": ledger}
        return upload_dataset(run, SETTINGS, **parts | options)

    return take


def files(service, run):
    return [f["filename"] for f in service.order("GET", "/ledger")["files"] if run.run_id in f["filename"]]


def posts(service):
    return sum(request["method"] == "POST" for request in service.order("GET", "/ledger")["requests"])


def parts(service):
    return sum(request["path"].endswith("/parts") for request in service.order("GET", "/ledger")["requests"])


def pending(service, run):
    told = service.order("GET", "/ledger")["uploads"]
    return [upload for upload in told if run.run_id in upload["filename"] and upload["status"] == "pending"]


def test_a_valid_dataset_and_its_validation_set_become_files(service, ledger, drop, step, body):
    run = drop(BYTE_ORDER_MARK + body, validation=BYTE_ORDER_MARK + chats(150))
    assert step(run) == Done("waiting")
    assert files(service, run) == [f"{run.run_id}.jsonl", f"{run.run_id}.validation.jsonl"]
    told = {f["id"]: f["bytes"] for f in service.order("GET", "/ledger")["files"]}
    run = ledger.get(run.run_id)
    assert told[run.file_id] == len(body)
    assert told[run.validation_file_id] == len(chats(150))


def test_a_dataset_that_is_invalid_in_its_last_line_becomes_no_file(service, drop, step, body):
    run = drop(body + b"{not JSON\n")
    with pytest.raises(Rejected):
        step(run)
    assert files(service, run) == []
    assert not pending(service, run)


@pytest.mark.parametrize(
    ("beside", "kind"),
    [
        ({"validation": b"{}\n"}, Rejected),
        ({"job": b'{"max_cost_usd": 1e-9}'}, OverBudget),
    ],
)
def test_what_is_found_out_last_keeps_it_from_becoming_a_file(service, drop, step, body, beside, kind):
    run = drop(body, **beside)
    with pytest.raises(kind):
        step(run)
    assert files(service, run) == []
    assert not pending(service, run)


def test_a_duplicate_becomes_no_file(service, drop, step, body):
    first, second = drop(body), drop(body)
    step(first)
    with pytest.raises(Duplicate):
        step(second)
    assert files(service, second) == []


@pytest.mark.parametrize(
    "job", [b'{"refuse_sensitive": true}', b'{"unknown": 1}', b"{", b'{"model": "of-nobody"}', b'{"provider": "lab"}']
)
def test_what_may_have_to_stay_leaves_nothing_before_the_verdict(service, drop, step, body, job):
    run, before = drop(body + b"{not JSON\n", job=job), posts(service)
    with pytest.raises(Rejected):
        step(run)
    assert posts(service) == before


def test_what_had_to_be_checked_first_is_sent_all_the_same(service, drop, step, body):
    run = drop(body, job=b'{"refuse_sensitive": true}')
    assert step(run) == Done("waiting")
    assert files(service, run) == [f"{run.run_id}.jsonl"]


def test_a_dataset_over_every_limit_is_refused_with_the_figures_before_a_byte_is_sent(
    service, provider, drop, step, body
):
    provider.profile = replace(PROFILE, uploads_limit=len(body) - 1)
    run, before = drop(body), posts(service)
    with pytest.raises(Rejected, match=f"{len(body):,} bytes; openai takes at most {len(body) - 1:,}") as refused:
        step(run)
    assert refused.value.code == "dataset_too_large"
    assert posts(service) == before


class Failing:
    """A bucket one of whose objects changes after so many chunks."""

    def __init__(self, bucket, ending, error, after=3):
        self._bucket, self._ending, self._error, self._after = bucket, ending, error, after

    def open(self, key, etag=None):
        stored = self._bucket.open(key, etag)
        return dataclasses.replace(stored, chunks=self._chunks(stored)) if key.endswith(self._ending) else stored

    def write(self, *arguments):
        self._bucket.write(*arguments)

    def _chunks(self, stored):
        yield from itertools.islice(stored.chunks, self._after)
        raise self._error


@pytest.mark.parametrize("error", [Superseded("object_changed", "it is another"), Transient("it broke off")])
@pytest.mark.parametrize("after", [0, 1, 285, 286, 571, 572, 857, 858, 1143, 1144])  # about each part's boundary
def test_a_dataset_that_cannot_be_read_to_its_end_becomes_no_file(service, bucket, drop, step, body, error, after):
    run = drop(body)
    with pytest.raises(type(error)):
        step(run, bucket=Failing(bucket, "a.jsonl", error, after))
    assert files(service, run) == []
    assert not pending(service, run) or isinstance(error, Transient)
    if isinstance(error, Transient):
        assert step(run) == Done("waiting")
        assert files(service, run) == [f"{run.run_id}.jsonl"]


def test_a_validation_set_that_changes_in_mid_read_does_not_end_the_run(service, bucket, drop, step, body):
    run = drop(body, validation=chats(20))
    with pytest.raises(Transient):
        step(run, bucket=Failing(bucket, ".validation.jsonl", Superseded("object_changed", "it is another")))
    assert step(run) == Done("waiting")
    assert len(files(service, run)) == 2


def test_a_step_that_is_short_of_time_asks_to_be_taken_again(service, drop, step):
    run = drop(chats(200))
    left = itertools.count(2060, -1)
    assert step(run, seconds_left=lambda: next(left)) == Wait(1, "uploading")
    assert files(service, run) == []
    assert step(run) == Done("waiting")
    assert files(service, run) == [f"{run.run_id}.jsonl"]
    assert not pending(service, run)


class Slow:
    """A bucket that takes a second for each chunk, read by a function that has so many seconds."""

    def __init__(self, bucket, seconds):
        self._bucket, self.seconds = bucket, seconds

    def open(self, key, etag=None):
        stored = self._bucket.open(key, etag)
        return replace(stored, chunks=self._chunks(stored))

    def write(self, *arguments):
        self._bucket.write(*arguments)

    def seconds_left(self):
        return self.seconds

    def _chunks(self, stored):
        for chunk in stored.chunks:
            self.seconds -= 1
            yield chunk


@pytest.mark.parametrize("beside", [{}, {"job": b'{"refuse_sensitive": true}'}], ids=["at once", "checked first"])
def test_a_step_that_is_always_short_of_time_comes_to_a_clear_end(service, bucket, drop, step, body, beside):
    run = drop(body, **beside)

    def attempt():
        slow = Slow(bucket, RESERVE_SECONDS + len(body) // 14)  # enough for half of it
        try:
            return step(run, bucket=slow, seconds_left=slow.seconds_left)
        finally:
            assert slow.seconds >= RESERVE_SECONDS - 1, "it goes on when the time is over"

    for _ in range(ATTEMPTS_WITHOUT_TIME - 1):
        assert attempt() == Wait(1, "uploading")
    with pytest.raises(Denied, match="give UploadFunction more memory"):
        attempt()
    assert files(service, run) == []
    assert not pending(service, run)


def test_a_validation_set_that_takes_too_long_asks_to_be_taken_again(service, bucket, drop, step, body):
    run = drop(body, validation=chats(1000))
    slow = Slow(bucket, RESERVE_SECONDS + len(body) // 7 + 1000)
    assert step(run, bucket=slow, seconds_left=slow.seconds_left) == Wait(1, "uploading")
    assert slow.seconds >= RESERVE_SECONDS - 1
    assert files(service, run) == []
    assert step(run) == Done("waiting")
    assert len(files(service, run)) == 2


@pytest.mark.parametrize("broken", [1, 20, 80, 200])
def test_after_the_first_error_nothing_more_is_sent_and_all_errors_are_listed(service, bucket, drop, step, broken):
    lines = chats(200).splitlines(keepends=True)
    lines.insert(broken - 1, b"{not JSON\n")
    run = drop(b"".join([*lines, b"[]\n"]))
    before = parts(service)
    with pytest.raises(Rejected):
        step(run)
    assert parts(service) - before <= sum(map(len, lines[:broken])) // PROFILE.part_bytes
    assert not pending(service, run)
    report = json.loads(bucket.objects[f"results/{run.run_id}/report.json"])
    assert [error["line"] for error in report["errors"]] == [broken, 202]


def test_the_report_is_there_whatever_becomes_of_it(bucket, drop, step, body):
    run = drop(body + b"[]\n")
    with pytest.raises(Rejected):
        step(run)
    assert json.loads(bucket.objects[f"results/{run.run_id}/report.json"])["valid"] is False
