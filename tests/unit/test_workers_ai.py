"""The real client against the emulated service: what works, and what each fault comes out as."""

import traceback
import tracemalloc

import pytest
from tunedrop import workers_ai as module
from tunedrop.errors import Denied, Rejected, Throttled, Transient, Unauthorised, UnknownOutcome
from tunedrop.runs import CONFIG, WEIGHTS
from tunedrop.secret_store import KnownSecret
from tunedrop.workers_ai import Asset, CloudflareWorkersAi, connect

from local.adapter import header, shapes, small_adapter
from tests.local.workers_ai_support import ACCOUNT, BASE, CREATION, LISTING, MODEL, TOKEN
from tests.unit.fakes import FakeSecret

FILES = small_adapter(BASE)
FILES[CONFIG] = FILES[CONFIG].replace(b"{", b'{"model_type": "mistral",', 1)


@pytest.fixture
def client(workers_ai):
    return workers_ai.client


def asset(name):
    return Asset(name, len(FILES[name]), lambda: [FILES[name]])


@pytest.fixture
def published(client):
    finetune = client.create(MODEL, "orchard", "of a test")
    for name in (WEIGHTS, CONFIG):
        client.upload(finetune.id, asset(name))
    return finetune


# What works


def test_a_finetune_is_created_and_listed(client, workers_ai):
    created = client.create(MODEL, "orchard", "of a test")
    assert client.finetunes() == [created]
    assert (created.name, created.model, created.description) == ("orchard", MODEL, "of a test")
    assert workers_ai.ledger()["finetunes"][0]["public"] is False


def test_its_files_arrive_byte_for_byte(client, workers_ai, published):
    (kept,) = workers_ai.ledger()["finetunes"]
    assert {name: found["size"] for name, found in kept["assets"].items()} == {n: len(b) for n, b in FILES.items()}
    assert kept["assets"][CONFIG]["config"]["model_type"] == "mistral"


def test_it_answers_a_prompt_by_its_name_and_by_its_id(client, published):
    for lora in (published.name, published.id):
        assert client.ask(MODEL, lora, "What about pears?", 50).endswith("What about pears?")


def test_a_file_that_is_there_already_stays(client, workers_ai, published):
    client.upload(published.id, asset(WEIGHTS))
    assert len(workers_ai.ledger()["finetunes"][0]["assets"]) == 2


def test_nothing_is_listed_in_a_new_account(client):
    assert client.finetunes() == []


@pytest.mark.parametrize("page_size", [1, 2, 3, 4, 10])
def test_a_listing_that_is_paged_is_read_to_its_end(client, workers_ai, page_size):
    names = [f"adapter-{number}" for number in range(7)]
    for name in names:
        client.create(MODEL, name, "")
    workers_ai.service.page_size = page_size
    assert sorted(finetune.name for finetune in client.finetunes()) == names


def test_a_listing_that_repeats_its_pages_comes_to_an_end(client, workers_ai):
    client.create(MODEL, "orchard", "")
    item = workers_ai.call("GET", "/finetunes").json()["result"][0]
    page = {"success": True, "result": [item], "result_info": {"total_pages": 1000}}
    workers_ai.fault(*LISTING, {"status": 200, "body": page}, times=5)
    assert len(client.finetunes()) == 1
    assert len(workers_ai.faults()) == 1


def test_a_list_in_a_list_is_read_too(client, workers_ai):
    """As the page about adapters has it."""
    items = [{"id": "1", "name": "a", "model": MODEL, "description": "x"}, {"id": "2", "name": "b", "model": MODEL}]
    workers_ai.fault(*LISTING, {"status": 200, "body": {"success": True, "result": [items]}})
    assert [(found.id, found.name, found.description) for found in client.finetunes()] == [
        ("1", "a", "x"),
        ("2", "b", ""),
    ]


def test_memory_does_not_grow_with_the_file(client, workers_ai):
    chunk, count = bytes(1 << 20), 40
    tensors = shapes(side=160, layers=1)
    start = header({name: (8, 160 * 1024) if "lora_A" in name else (160 * 1024, 8) for name in tensors})
    size = len(start) + 4 * 4 * 8 * 160 * 1024
    finetune = client.create(MODEL, "large", "")

    def chunks():
        yield start
        left = size - len(start)
        while left:
            yield chunk[:left]
            left -= min(left, len(chunk))

    assert size > 20 << 20
    assert size < count << 20
    tracemalloc.start()
    client.upload(finetune.id, Asset(WEIGHTS, size, chunks))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert workers_ai.ledger()["finetunes"][0]["assets"][WEIGHTS]["size"] == size
    assert peak < 16 << 20  # of which the emulation keeps what it looks at


# What is refused


@pytest.mark.parametrize(
    ("status", "code", "words", "error", "ours"),
    [
        (403, 10000, "Authentication error", Denied, "permission_denied"),
        (403, 9109, "Unauthorized to access requested resource", Denied, "permission_denied"),
        (405, 5005, "The model @cf/x does not support LoRa inference", Rejected, "unsupported_model"),
        (400, 5007, "No such model @cf/x or task", Rejected, "unsupported_model"),
        (404, 3042, "The model name is invalid", Rejected, "unsupported_model"),
        (400, 1000, "MODEL_NOT_SUPPORTED", Rejected, "unsupported_model"),
        (403, 5018, "The account is not allowed to access this model", Denied, "model_not_allowed"),
        (403, 5016, "User has not agreed to Llama3.2 model terms", Denied, "model_terms"),
        (403, 3023, "Service unavailable for account", Denied, "account_blocked"),
        (429, 3036, "You have used up your daily free allocation", Denied, "daily_allocation_used"),
        (400, 1000, "the limit of 100 finetunes was reached", Denied, "too_many_adapters"),
        (400, 1000, "Too many LoRA adapters", Denied, "too_many_adapters"),
        (400, 1000, "a finetune of that name already exists", Rejected, "name_taken"),
        (400, 3037, "AiError: Finetune x not found", Rejected, "finetune_not_found"),
        (400, 3039, "Finetune is missing required files", Rejected, "finetune_incomplete"),
        (413, 3006, "Request is too large", Rejected, "too_large"),
        (400, 1234, "never heard of", Rejected, "http_400"),
    ],
)
def test_a_refusal_is_a_sentence_with_its_code(client, workers_ai, status, code, words, error, ours):
    body = {"success": False, "errors": [{"code": code, "message": words}], "messages": [], "result": None}
    workers_ai.fault(*CREATION, {"status": status, "body": body})
    with pytest.raises(error) as caught:
        client.create(MODEL, "orchard", "")
    assert caught.value.code == ours
    assert words in caught.value.message
    assert str(code) in caught.value.message
    assert client.finetunes() == []


def test_the_emulation_refuses_what_the_documentation_rules_out(client, workers_ai):
    workers_ai.service.limit = 1
    with pytest.raises(Rejected, match="does not serve adapters"):
        client.create("@cf/qwen/qwen3-8b", "orchard", "")
    finetune = client.create(MODEL, "orchard", "")
    with pytest.raises(Rejected) as taken:
        client.create(MODEL, "orchard", "")
    with pytest.raises(Denied) as many:
        client.create(MODEL, "another", "")
    assert (taken.value.code, many.value.code) == ("name_taken", "too_many_adapters")
    with pytest.raises(Rejected) as incomplete:
        client.ask(MODEL, "orchard", "?", 9)
    with pytest.raises(Rejected) as unknown:
        client.ask(MODEL, "nobody", "?", 9)
    assert (incomplete.value.code, unknown.value.code) == ("finetune_incomplete", "finetune_not_found")
    with pytest.raises(Rejected, match="model_type"):
        client.upload(finetune.id, Asset(CONFIG, 2, lambda: [b"{}"]))
    with pytest.raises(Rejected, match="exactly"):
        client.upload(finetune.id, Asset("config.json", 2, lambda: [b"{}"]))
    assert workers_ai.call("DELETE", f"/finetunes/{finetune.id}").status_code in (404, 405)


@pytest.mark.parametrize("secret", [KnownSecret("another"), KnownSecret("ä"), KnownSecret("with\nbreak")])
def test_a_token_that_is_not_accepted_is_for_the_operator(workers_ai, secret):
    client = CloudflareWorkersAi(workers_ai.url, ACCOUNT, secret)
    for call in (client.finetunes, lambda: client.create(MODEL, "orchard", "")):
        with pytest.raises(Unauthorised):
            call()


def test_a_token_that_was_replaced_is_fetched_once_more(workers_ai):
    secret = FakeSecret("old", TOKEN)
    client = CloudflareWorkersAi(workers_ai.url, ACCOUNT, secret)
    finetune = client.create(MODEL, "orchard", "")
    assert secret.fetched == 1
    client = CloudflareWorkersAi(workers_ai.url, ACCOUNT, FakeSecret("old", TOKEN))
    client.upload(finetune.id, asset(WEIGHTS))  # what was sent of it is sent again
    assert WEIGHTS in workers_ai.ledger()["finetunes"][0]["assets"]


def test_the_token_is_in_no_sentence(client, workers_ai):
    body = {"success": False, "errors": [{"code": 1, "message": f"your token {TOKEN} is odd"}]}
    workers_ai.fault(*CREATION, {"status": 400, "body": body})
    with pytest.raises(Rejected) as caught:
        client.create(MODEL, "orchard", "")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "7"}, 7), ({}, 30), ({"retry-after": "soon"}, 30), ({"retry-after": "1e9"}, 3600)],
)
def test_a_pause_is_asked_for(client, workers_ai, headers, seconds):
    body = {"success": False, "errors": [{"code": 3040, "message": "No more data centers"}]}
    workers_ai.fault(*CREATION, {"status": 429, "headers": headers, "body": body})
    with pytest.raises(Throttled) as caught:
        client.create(MODEL, "orchard", "")
    assert caught.value.wait_seconds == seconds
    assert client.finetunes() == []


# What nobody can know

UNKNOWN = [
    {"status": 500},
    {"status": 502, "body": "upstream"},
    {"status": 503, "after": True},
    {"html": 200, "after": True},
    {"html": 502},
    {"status": 200, "body": "", "after": True},
    {"status": 200, "body": {"success": True, "result": None}, "after": True},
    {"status": 200, "body": {"success": False, "errors": []}, "after": True},
    {"status": 200, "body": [1], "after": True},
    {"status": 409, "after": True},
    {"status": 408},
    {"reset": "before"},
    {"reset": "after"},
    {"truncate": 20},
    {"truncate": 20, "whole_length": True},
    {"hang": 1.5, "after": True},
]


@pytest.fixture
def impatient(monkeypatch, workers_ai):
    monkeypatch.setattr(module, "CALL_SECONDS", 0.5)
    return CloudflareWorkersAi(workers_ai.url, ACCOUNT, KnownSecret(TOKEN))


@pytest.mark.parametrize("fault", UNKNOWN, ids=str)
def test_a_creation_whose_outcome_is_unknown_is_never_repeated_here(workers_ai, impatient, fault):
    workers_ai.fault(*CREATION, fault)
    with pytest.raises(UnknownOutcome):
        impatient.create(MODEL, "orchard", "")
    posts = [request for request in workers_ai.ledger()["requests"] if request["method"] == "POST"]
    assert len(posts) == 1
    assert workers_ai.faults() == []


@pytest.mark.parametrize("fault", UNKNOWN, ids=str)
def test_a_listing_that_fails_is_asked_for_again_and_never_looks_empty(workers_ai, impatient, fault):
    workers_ai.client.create(MODEL, "orchard", "")
    workers_ai.fault(*LISTING, fault)
    with pytest.raises(Transient):
        impatient.finetunes()
    assert [finetune.name for finetune in impatient.finetunes()] == ["orchard"]


@pytest.mark.parametrize(
    "body",
    [
        {"success": True},
        {"success": True, "result": {}},
        {"success": True, "result": [{}]},
        {"success": True, "result": [{"id": ""}]},
        {"success": True, "result": "none"},
        {"success": "true", "result": []},
        {"result": []},
    ],
    ids=str,
)
def test_what_is_no_list_is_not_taken_for_an_empty_one(client, workers_ai, body):
    workers_ai.fault(*LISTING, {"status": 200, "body": body})
    with pytest.raises(Transient):
        client.finetunes()


@pytest.mark.parametrize("fault", [{"status": 500}, {"reset": "before"}, {"reset": "after"}, {"html": 502}], ids=str)
def test_a_file_whose_outcome_is_unknown_is_sent_again(client, workers_ai, fault):
    finetune = client.create(MODEL, "orchard", "")
    workers_ai.fault("POST", "*/finetune-assets", fault)
    with pytest.raises(Transient):
        client.upload(finetune.id, asset(WEIGHTS))
    client.upload(finetune.id, asset(WEIGHTS))
    assert workers_ai.ledger()["finetunes"][0]["assets"].keys() == {WEIGHTS}


@pytest.mark.parametrize("body", [b"short", b"x" * 100_000])
def test_a_file_of_another_size_than_was_told_does_not_arrive(client, workers_ai, body):
    finetune = client.create(MODEL, "orchard", "")
    with pytest.raises(Transient, match="size"):
        client.upload(finetune.id, Asset(WEIGHTS, 1000, lambda: [body]))
    assert workers_ai.ledger()["finetunes"][0]["assets"] == {}


@pytest.mark.parametrize(
    "body", [{"success": True, "result": {}}, {"success": True, "result": {"response": 7}}], ids=str
)
def test_an_answer_that_is_none_is_not_told_as_one(client, workers_ai, published, body):
    workers_ai.fault("POST", "/run", {"status": 200, "body": body})
    with pytest.raises(Transient):
        client.ask(MODEL, published.name, "?", 9)


def test_a_stack_without_an_account_has_no_workers_ai():
    environment = {
        "WORKERS_AI_SECRET_ARN": "arn",
        "WORKERS_AI_BASE_URL": "https://example.com",
        "SMOKE_TEST_ADAPTERS": "true",
    }
    assert connect(environment) is None
