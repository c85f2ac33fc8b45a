"""The real client against the emulated service: what works, and what each fault comes out as."""

import hashlib
import json
import traceback
import tracemalloc
from email.utils import formatdate
from time import time

import pytest
from tunedrop import provider as module
from tunedrop.adapters import find_adapter
from tunedrop.errors import Denied, Rejected, Superseded, Throttled, Transient, Unauthorised, UnknownOutcome
from tunedrop.provider import OpenAIProvider
from tunedrop.providers import PROFILES

from tests.local.provider_support import KEY, Provider, chats, until
from tests.unit.fakes import FakeSecret, MemoryProvider

MODEL = "gpt-4o-mini-2024-07-18"
CREATION = "/v1/fine_tuning/jobs$"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def service():
    running = Provider.start(time_scale=5000)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def made(service):
    """The adapter, and the secret that its key comes from."""
    secret = FakeSecret(KEY)
    return OpenAIProvider(PROFILES["openai"], service.url, secret), secret


@pytest.fixture
def provider(service, made):
    yield made[0]
    service.order("DELETE", "/faults")


@pytest.fixture
def secret(made, monkeypatch):
    monkeypatch.setattr(made[1], "fetched", 0)
    return made[1]


@pytest.fixture(scope="module")
def file_id(service):
    return service.upload().id


@pytest.fixture(scope="module")
def job_id(service, file_id):
    job = service.job(training_file=file_id)
    service.wait_for(job.id, "succeeded")
    return job.id


def created(service):
    return service.order("GET", "/ledger")["jobs_created"]


def requests_of(service, method, path):
    return [r for r in service.order("GET", "/ledger")["requests"] if (r["method"], r["path"]) == (method, path)]


# The contract, which the double keeps too


@pytest.fixture(params=["memory", "openai"])
def either(request):
    if request.param == "memory":
        request.getfixturevalue("clock")
        return MemoryProvider()
    return request.getfixturevalue("provider")


def uploaded(provider, name, content=None):
    content = content or chats()
    file = provider.upload(name, iter([content[:100], content[100:]]), len(content))
    return until(lambda: provider.file(file.id), lambda found: found.status == "processed")


def test_a_file_is_found_by_its_name(either):
    file = uploaded(either, "named.jsonl")
    assert either.files_named("named.jsonl") == [file]
    assert (file.name, file.size) == ("named.jsonl", len(chats()))
    assert either.files_named("other.jsonl") == []


def test_files_of_one_name_come_oldest_first(either):
    files = [uploaded(either, "twice.jsonl") for _ in range(2)]
    assert either.files_named("twice.jsonl") == sorted(files, key=lambda file: (file.created_at, file.id))


def test_a_deleted_file_is_gone_and_may_be_deleted_again(either):
    file = uploaded(either, "gone.jsonl")
    either.delete_file(file.id)
    either.delete_file(file.id)
    assert either.files_named("gone.jsonl") == []


def test_a_file_reads_back_as_it_was_sent(either):
    assert either.content(uploaded(either, "content.jsonl").id) == chats()


def test_a_file_reads_back_in_chunks_too(either):
    assert b"".join(either.chunks(uploaded(either, "chunks.jsonl").id)) == chats()


def test_a_model_answers_a_prompt(either):
    assert "How deep are apple seeds sown?" in either.ask(MODEL, "How deep are apple seeds sown?", 50)


def test_jobs_are_found_by_their_training_file(either):
    file, other = uploaded(either, "a.jsonl"), uploaded(either, "b.jsonl")
    jobs = [either.create_job(model=MODEL, training_file=file.id, seed=seed) for seed in (1, 2)]
    either.create_job(model=MODEL, training_file=other.id)
    found = either.jobs_on(file.id)
    assert [job.id for job in found] == [j.id for j in sorted(jobs, key=lambda job: (job.created_at, job.id))]
    assert {job.model for job in found} == {MODEL}


def test_a_cancelled_job_is_cancelled_and_may_be_cancelled_again(either):
    job = either.create_job(model=MODEL, training_file=uploaded(either, "c.jsonl").id)
    assert either.cancel_job(job.id).status == "cancelled"
    assert either.cancel_job(job.id).status == "cancelled"
    assert either.job(job.id).status == "cancelled"


def test_a_jobs_events_say_something(either):
    job = either.create_job(model=MODEL, training_file=uploaded(either, "e.jsonl").id)
    events = until(lambda: either.events(job.id), bool)
    assert all(event["message"] for event in events)


# What the emulated service shows beyond that


def test_a_job_that_succeeded_tells_its_model_tokens_and_results(provider, job_id):
    job = provider.job(job_id)
    assert job.status == "succeeded"
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:")
    assert job.trained_tokens > 0
    assert job.document["id"] == job_id
    assert provider.content(job.result_files[0]).startswith(b"step,")


def test_a_job_that_ended_stays_as_it_is_when_it_is_cancelled(provider, job_id):
    assert provider.cancel_job(job_id).status == "succeeded"


def test_events_come_oldest_first_and_all_of_them(provider, service, job_id, monkeypatch):
    monkeypatch.setattr(module, "PAGE", 3)
    events = provider.events(job_id)
    assert len(events) > 6
    assert [event["created_at"] for event in events] == sorted(event["created_at"] for event in events)
    assert events[0]["message"].startswith("Created fine-tuning job")


def test_checkpoints_come_oldest_first_with_whatever_the_service_tells_of_them(provider, service, job_id, monkeypatch):
    monkeypatch.setattr(module, "PAGE", 2)
    steps = [checkpoint["step_number"] for checkpoint in provider.checkpoints(job_id)]
    assert len(steps) == 3
    assert steps == sorted(steps)


def test_files_that_a_service_names_with_its_checkpoints_are_told(provider, service, file_id):
    service.order("PATCH", "/manners", {"adapter_files": True})
    try:
        job = service.job(training_file=file_id)
        service.wait_for(job.id, "succeeded")
    finally:
        service.order("PATCH", "/manners", {"adapter_files": False})
    adapter = find_adapter(provider.checkpoints(job.id), provider)
    weights = b"".join(provider.chunks(adapter["adapter_model.safetensors"]))
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    last = max(checkpoint["step_number"] for checkpoint in provider.checkpoints(job.id))
    assert header["__metadata__"]["step"] == str(last)


@pytest.mark.parametrize("whole_length", [False, True])
def test_a_file_that_breaks_off_while_it_is_read_does_not_end_quietly(provider, service, file_id, whole_length):
    service.fault("GET", f"/v1/files/{file_id}/content", {"truncate": 100, "whole_length": whole_length})
    if whole_length:
        with pytest.raises(Transient):
            b"".join(provider.chunks(file_id))
    else:  # nothing tells: what is read has to be looked at
        assert len(b"".join(provider.chunks(file_id))) == 100


@pytest.mark.parametrize("fault", [{"status": 500}, {"reset": "before"}, {"reset": "after"}], ids=str)
def test_a_file_that_is_not_answered_is_no_end_of_the_file(provider, service, file_id, fault):
    service.fault("GET", f"/v1/files/{file_id}/content", fault)
    with pytest.raises(Transient):
        b"".join(provider.chunks(file_id))


def test_a_file_is_read_with_the_key_that_replaced_another(provider, service, secret, file_id, monkeypatch):
    monkeypatch.setattr(secret, "_values", ["sk-old", KEY])
    assert b"".join(provider.chunks(file_id)) == chats()


def test_a_file_of_any_size_is_read_in_little_memory(provider, service):
    size = 64 << 20
    file = service.client.files.create(file=("large.bin", bytes(size)), purpose="batch")
    tracemalloc.start()
    try:
        assert sum(map(len, provider.chunks(file.id))) == size
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


# Asking a model


def test_a_model_that_is_not_known_is_rejected(provider):
    with pytest.raises(Rejected) as caught:
        provider.ask("ft:nobody", "Hello?", 10)
    assert caught.value.code == "model_not_found"


def test_a_service_that_knows_the_limit_by_its_former_name_alone_is_asked_so(provider, service):
    service.fault("POST", CHAT, {"status": 400, "body": {"error": {"message": "unknown: max_completion_tokens"}}})
    assert "Hello?" in provider.ask(MODEL, "Hello?", 10)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 200, "body": {}},
        {"status": 200, "body": {"id": "c", "choices": []}},
        {"status": 200, "body": {"id": "c", "choices": None}},
        {"html": 200},
        {"reset": "after"},
    ],
    ids=str,
)
def test_an_answer_that_says_nothing_is_none(provider, service, fault):
    service.fault("POST", CHAT, fault)
    with pytest.raises(Transient):
        provider.ask(MODEL, "Hello?", 10)


def test_every_page_of_a_listing_is_read(provider, service, monkeypatch):
    monkeypatch.setattr(module, "PAGE", 2)
    files = [service.client.files.create(file=("paged.jsonl", chats()), purpose="batch").id for _ in range(5)]
    assert {file.id for file in provider.files_named("paged.jsonl")} == set(files)


def test_jobs_on_every_page_are_compared(provider, service, file_id, monkeypatch):
    own = service.upload().id
    jobs = {service.job(training_file=own).id, *(service.job(training_file=file_id).id for _ in range(3))}
    oldest = service.job(training_file=own).id
    monkeypatch.setattr(module, "PAGE", 2)
    assert {job.id for job in provider.jobs_on(own)} == (jobs & {j.id for j in provider.jobs_on(own)}) | {oldest}
    assert len(provider.jobs_on(own)) == 2


def listing(*ids, **fields):
    jobs = [{"id": i, "status": "running", "model": "m", "training_file": "f", "created_at": 1} for i in ids]
    return {"status": 200, "body": {"object": "list", "data": jobs} | fields}


def test_a_service_that_repeats_its_pages_is_not_read_for_ever(provider, service):
    service.fault("GET", CREATION, listing("j1", "j2", has_more=True), times=50)
    assert [job.id for job in provider.jobs_on("f")] == ["j1", "j2"]


def test_pages_that_overlap_are_read_to_the_end(provider, service):
    for page in (listing("j4", "j3", has_more=True), listing("j3", "j2", has_more=True), listing("j1", has_more=False)):
        service.fault("GET", CREATION, page)
    assert [job.id for job in provider.jobs_on("f")] == ["j1", "j2", "j3", "j4"]


def test_of_two_jobs_in_one_second_the_smaller_id_is_the_older(provider, service):
    service.fault("GET", CREATION, listing("j3", "j1", "j2", has_more=False))
    assert [job.id for job in provider.jobs_on("f")] == ["j1", "j2", "j3"]


def test_a_job_is_created_with_the_words_of_the_api(provider, service, file_id):
    job = provider.create_job(model=MODEL, training_file=file_id, metadata={"run_id": "r"}, seed=7, suffix="mine")
    [entry] = [entry for entry in service.order("GET", "/ledger")["jobs"] if entry["id"] == job.id]
    assert entry["metadata"] == {"run_id": "r"}
    assert (job.document["seed"], job.training_file) == (7, file_id)


# Uploading


def test_an_upload_arrives_byte_by_byte_with_its_length_told_before(provider, service):
    size, piece = 24 << 20, bytes(range(256)) * 4096
    digest = hashlib.sha256()

    def chunks():
        for _ in range(size // len(piece)):
            digest.update(piece)
            yield piece

    tracemalloc.start()
    try:
        file = provider.upload("large.jsonl", chunks(), size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    [entry] = [entry for entry in service.order("GET", "/ledger")["files"] if entry["id"] == file.id]
    assert (entry["bytes"], entry["sha256"], entry["purpose"]) == (size, digest.hexdigest(), "fine-tune")
    assert peak < 4 << 20


@pytest.mark.parametrize("pieces", [[1] * 50, [7, 0, 0, 50], [100_000, 1], [1 << 16, 1 << 16]])
def test_an_upload_may_come_in_chunks_of_any_size(provider, service, pieces):
    content = bytes(sum(pieces))
    file = provider.upload("pieces.jsonl", (bytes(piece) for piece in pieces), len(content))
    [entry] = [entry for entry in service.order("GET", "/ledger")["files"] if entry["id"] == file.id]
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def breaking_off(error, after=300_000):
    yield bytes(after)
    raise error


@pytest.mark.parametrize("error", [Transient("the bucket broke off"), Superseded("object_changed", "overwritten")])
@pytest.mark.parametrize("after", [0, 10, 300_000])
def test_a_fault_of_the_bucket_in_mid_upload_surfaces_as_itself_and_leaves_no_file(provider, error, after):
    name = f"half-{type(error).__name__}-{after}.jsonl"
    with pytest.raises(type(error)) as caught:
        provider.upload(name, breaking_off(error, after), 600_000)
    assert caught.value is error
    assert provider.files_named(name) == []


@pytest.mark.parametrize("length", [0, 10, 300_000, 600_001, 900_000])
def test_an_upload_of_another_size_than_was_told_is_transient_and_leaves_no_file(provider, length):
    with pytest.raises(Transient, match="600000 bytes"):
        provider.upload("short.jsonl", iter([bytes(length)]), 600_000)
    assert provider.files_named("short.jsonl") == []


def test_after_a_broken_upload_the_next_one_works(provider):
    with pytest.raises(Transient):
        provider.upload("again.jsonl", breaking_off(Transient("x")), 600_000)
    assert uploaded(provider, "again.jsonl").size == len(chats())


# Faults. A creating call whose outcome is not certain must not be repeated; a reading one may be.


def create(provider, file_id, job_id):
    return provider.create_job(model=MODEL, training_file=file_id)


def upload(provider, file_id, job_id):
    return provider.upload("faulty.jsonl", iter([b"{}\n"]), 3)


CREATING = {create: ("POST", CREATION), upload: ("POST", "/v1/files$")}
READING = {
    "file": (lambda provider, file_id, job_id: provider.file(file_id), "GET", "/v1/files/*"),
    "files": (lambda provider, file_id, job_id: provider.files_named("x"), "GET", "/v1/files$"),
    "job": (lambda provider, file_id, job_id: provider.job(job_id), "GET", "/v1/fine_tuning/jobs/*"),
    "jobs": (lambda provider, file_id, job_id: provider.jobs_on(file_id), "GET", CREATION),
    "events": (lambda provider, file_id, job_id: provider.events(job_id), "GET", "/v1/fine_tuning/jobs/*/events"),
    "cancel": (lambda provider, file_id, job_id: provider.cancel_job(job_id), "POST", "/v1/fine_tuning/jobs/*"),
}
LISTING = ("files", "jobs", "events")
UNCERTAIN = {
    "500": {"status": 500},
    "502 HTML": {"html": 502},
    "503": {"status": 503, "headers": {"Retry-After": "1"}},
    "504 text": {"status": 504, "body": "upstream timed out"},
    "408": {"status": 408},
    "reset before": {"reset": "before"},
    "reset after": {"reset": "after"},
    "HTML with 200": {"html": 200},
    "cut": {"truncate": 20},
    "cut, length of the whole": {"truncate": 20, "whole_length": True},
    "empty": {"truncate": 0},
    "empty, length of the whole": {"truncate": 0, "whole_length": True},
    "empty object": {"status": 200, "body": {}},
    "null": {"status": 200, "body": None},
    "list": {"status": 200, "body": []},
    "text": {"status": 200, "body": "ok"},
    "an error with 200": {"status": 200, "body": {"error": {"message": "no"}}},
    "an id alone": {"status": 200, "body": {"id": "x"}},
}


@pytest.mark.parametrize("fault", UNCERTAIN.values(), ids=UNCERTAIN)
@pytest.mark.parametrize("call", CREATING)
def test_a_creation_without_a_certain_answer_has_an_unknown_outcome(provider, service, file_id, job_id, call, fault):
    service.fault(*CREATING[call], fault)
    with pytest.raises(UnknownOutcome):
        call(provider, file_id, job_id)


# A refusal to cancel what has ended is understood without its text.
AWAY = [(r, f) for r in READING for f in UNCERTAIN if (r, f) not in (("cancel", "cut"), ("cancel", "empty"))]


@pytest.mark.parametrize(("reading", "fault"), AWAY)
def test_a_reading_without_an_answer_is_transient(provider, service, file_id, job_id, reading, fault):
    call, method, path = READING[reading]
    service.fault(method, path, UNCERTAIN[fault])
    with pytest.raises(Transient):
        call(provider, file_id, job_id)


@pytest.mark.parametrize(
    ("call", "place", "kind"),
    [
        (create, CREATING[create], UnknownOutcome),
        (upload, CREATING[upload], UnknownOutcome),
        (READING["job"][0], READING["job"][1:], Transient),
        (READING["jobs"][0], READING["jobs"][1:], Transient),
    ],
)
def test_an_answer_that_does_not_come_is_not_waited_for(service, file_id, job_id, monkeypatch, call, place, kind):
    monkeypatch.setattr(module, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(module, "UPLOAD_SECONDS", 0.2)
    impatient = OpenAIProvider(PROFILES["openai"], service.url, FakeSecret(KEY))
    service.fault(*place, {"hang": 0.4})
    with pytest.raises(kind, match="did not answer"):
        call(impatient, file_id, job_id)
    service.order("DELETE", "/faults")


@pytest.mark.parametrize("reading", LISTING)
@pytest.mark.parametrize("data", [None, {}, [None], [{}], [{"object": "x"}], ["x"], "x"], ids=repr)
def test_a_listing_that_is_none_is_no_empty_listing(provider, service, file_id, job_id, reading, data):
    call, method, path = READING[reading]
    service.fault(method, path, {"status": 200, "body": {"object": "list", "data": data}})
    with pytest.raises(Transient):
        call(provider, file_id, job_id)


@pytest.mark.parametrize("fault", [{"status": 500}, {"reset": "before"}, {"html": 502}])
def test_content_that_does_not_come_is_transient(provider, service, job_id, fault):
    file = provider.job(job_id).result_files[0]
    service.fault("GET", "/v1/files/*/content", fault)
    with pytest.raises(Transient):
        provider.content(file)


def test_a_creation_is_posted_once_whatever_is_answered(provider, service, file_id):
    before = len(requests_of(service, "POST", "/v1/fine_tuning/jobs"))
    service.fault("POST", CREATION, {"status": 500}, times=5)
    with pytest.raises(UnknownOutcome):
        create(provider, file_id, None)
    assert len(requests_of(service, "POST", "/v1/fine_tuning/jobs")) == before + 1


def test_a_creation_whose_answer_is_lost_has_happened(provider, service, file_id):
    before = created(service)
    service.fault("POST", CREATION, {"reset": "after"})
    with pytest.raises(UnknownOutcome):
        create(provider, file_id, None)
    assert created(service) == before + 1


def error(status, code=None, message="Emulated.", kind="invalid_request_error", **headers):
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return {"status": status, "body": body, "headers": headers}


@pytest.mark.parametrize("call", CREATING)
@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        (error(400, "invalid_file"), Rejected, "invalid_file"),
        (error(400), Rejected, "invalid_request_error"),
        ({"status": 400, "body": "no"}, Rejected, "http_400"),
        (error(404, "model_not_found"), Rejected, "model_not_found"),
        (error(413), Rejected, "invalid_request_error"),
        (error(422, "x"), Rejected, "x"),
        (error(403, "insufficient_permissions"), Denied, "insufficient_permissions"),
        (error(404), Denied, "invalid_request_error"),
        (error(429, "insufficient_quota"), Denied, "insufficient_quota"),
        (error(429, None, kind="insufficient_quota"), Denied, "insufficient_quota"),
        (error(429, "billing_hard_limit_reached"), Denied, "billing_hard_limit_reached"),
    ],
    ids=str,
)
def test_a_creation_that_is_refused_for_certain_says_why(provider, service, file_id, job_id, call, fault, kind, code):
    service.fault(*CREATING[call], fault)
    with pytest.raises(kind) as caught:
        call(provider, file_id, job_id)
    assert caught.value.code == code


def test_a_conflicting_creation_has_an_unknown_outcome(provider, service, file_id):
    service.fault("POST", CREATION, error(409))
    with pytest.raises(UnknownOutcome):
        create(provider, file_id, None)


@pytest.mark.parametrize("reading", sorted(set(READING) - {"cancel"}))
@pytest.mark.parametrize(
    "fault", [error(400), error(403), error(404), error(413), error(429, "insufficient_quota")], ids=str
)
def test_a_reading_that_is_refused_is_no_fault_of_the_dataset(provider, service, file_id, job_id, reading, fault):
    call, method, path = READING[reading]
    service.fault(method, path, fault)
    with pytest.raises(Denied):
        call(provider, file_id, job_id)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 30),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "7.5"}, 7.5),
        ({"Retry-After-Ms": "2500"}, 2.5),
        ({"Retry-After-Ms": "2500", "Retry-After": "7"}, 2.5),
        ({"Retry-After-Ms": "soon", "Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": "-5"}, 1),
        ({"Retry-After": "nan"}, 30),
        ({"Retry-After": "inf"}, 30),
        ({"Retry-After": ""}, 30),
        ({"Retry-After": "soon"}, 30),
        ({"Retry-After": "999999"}, 3600),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 1),
    ],
    ids=str,
)
def test_a_throttled_call_carries_the_pause_that_was_asked_for(provider, service, job_id, headers, seconds):
    service.fault("GET", "/v1/fine_tuning/jobs/*", error(429, "rate_limit_exceeded", **headers))
    with pytest.raises(Throttled) as caught:
        provider.job(job_id)
    assert caught.value.wait_seconds == seconds


def test_a_pause_may_be_asked_for_by_a_date(provider, service, job_id):
    date = formatdate(time() + 120, usegmt=True)
    service.fault("GET", "/v1/fine_tuning/jobs/*", error(429, "rate_limit_exceeded", **{"Retry-After": date}))
    with pytest.raises(Throttled) as caught:
        provider.job(job_id)
    assert 110 < caught.value.wait_seconds <= 120


@pytest.mark.parametrize("call", CREATING)
def test_a_throttled_creation_has_not_happened(provider, service, file_id, job_id, call):
    service.fault(*CREATING[call], error(429, "rate_limit_exceeded"))
    with pytest.raises(Throttled):
        call(provider, file_id, job_id)


# Keys


def test_a_rotated_key_is_fetched_once_more(provider, service, secret, monkeypatch, job_id):
    monkeypatch.setattr(secret, "_values", ["sk-old", KEY])
    assert provider.job(job_id).id == job_id
    assert secret.fetched == 1


def test_a_job_is_created_once_with_a_rotated_key(provider, service, secret, monkeypatch, file_id):
    monkeypatch.setattr(secret, "_values", ["sk-old", KEY])
    before = created(service)
    create(provider, file_id, None)
    assert created(service) == before + 1


def test_an_upload_with_a_rotated_key_is_refused_and_the_next_one_has_the_new_key(
    provider, secret, monkeypatch, file_id
):
    monkeypatch.setattr(secret, "_values", ["sk-old", KEY])
    with pytest.raises(Unauthorised):
        upload(provider, None, None)
    assert upload(provider, None, None).size == 3


@pytest.mark.parametrize("values", [("sk-wrong",), ("sk-wrong", "sk-wrong-too", KEY)])
@pytest.mark.parametrize("call", [create, READING["job"][0]])
def test_a_key_that_stays_refused_is_fetched_no_more_than_once(
    provider, secret, monkeypatch, file_id, job_id, call, values
):
    monkeypatch.setattr(secret, "_values", list(values))
    with pytest.raises(Unauthorised):
        call(provider, file_id, job_id)
    assert secret.fetched == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ExpiredTokenException", "The security token included in the request is expired"),
        (None, "Authentication failed: Please make sure your API Key is valid."),
        (None, "Bearer Token has expired"),
        ("expired_api_key", ""),
        ("invalid_api_key", "Incorrect key."),
    ],
)
def test_a_key_that_is_refused_with_403_is_refused_all_the_same(provider, service, job_id, code, message):
    service.fault(*READING["job"][1:], error(403, code, message), times=2)
    with pytest.raises(Unauthorised):
        READING["job"][0](provider, None, job_id)


@pytest.mark.parametrize("key", ["sk-ü", "sk-a\nb", "sk a", "\x00"])
def test_a_key_that_cannot_be_sent_is_not_accepted(provider, secret, monkeypatch, file_id, key):
    monkeypatch.setattr(secret, "_values", [key])
    with pytest.raises(Unauthorised):
        create(provider, file_id, None)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
@pytest.mark.parametrize("creating", [True, False])
def test_the_key_is_never_in_the_message_even_where_the_service_quotes_it(
    provider, service, file_id, job_id, status, creating
):
    quoted = error(status, "insufficient_quota", f"Incorrect API key provided: {KEY}. Mend it.")
    call, *place = (create, *CREATING[create]) if creating else READING["job"]
    service.fault(*place, quoted, times=2)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call(provider, file_id, job_id)
    assert KEY not in str(caught.value)
    if status == 401:
        assert KEY not in "".join(traceback.format_exception(caught.value))
