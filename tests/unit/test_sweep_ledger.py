"""What the sweeper asks of the ledger, on the table and on the double that other tests use in its place."""

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from tunedrop.errors import Transient
from tunedrop.ledger import UnknownRun
from tunedrop.runs import Run, RunRequest
from tunedrop.sweep_ledger import DynamoSweepLedger, Unsettled

from tests.unit.fakes import Broken, MemoryLedger

A, B, C = "a" * 32, "b" * 32, "c" * 32
KEY = "shop/ürders.jsonl"


@pytest.fixture(scope="module")
def client(aws):
    return boto3.client("dynamodb")


@pytest.fixture
def table(client):
    client.create_table(
        TableName="ledger",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    yield client
    client.delete_table(TableName="ledger")


class SmallPages:
    """The table, read two items at a time: a page of a scan ends anywhere."""

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name):
        return getattr(self._client, name)

    def scan(self, **asked):
        return self._client.scan(Limit=2, **asked)


@pytest.fixture(params=["memory", "dynamo"])
def ledger(request, clock):
    if request.param == "memory":
        return MemoryLedger()
    return DynamoSweepLedger(SmallPages(request.getfixturevalue("table")), "ledger")


def begin(ledger, run_id=A, etag="e1", key=KEY):
    return ledger.begin(Run.of(RunRequest(run_id, "datasets", key, etag, 10)))


def unsettled(ledger):
    page = ledger.unsettled()
    found = list(page.items)
    while page.cursor is not None:
        page = ledger.unsettled(page.cursor)
        found += page.items
    return {each.run.run_id: each for each in found}


def test_one_sweep_at_a_time(ledger, clock):
    first = ledger.begin_sweep(60)
    assert ledger.begin_sweep(60) is None
    ledger.end_sweep(first)
    assert ledger.begin_sweep(60) is not None


def test_a_sweep_that_died_is_followed_when_its_time_is_over(ledger, clock):
    died = ledger.begin_sweep(60)
    clock.advance(60)
    assert ledger.begin_sweep(60) is None
    clock.advance(1)
    following = ledger.begin_sweep(60)
    assert following is not None
    died.cursors["x"] = "of the dead"
    ledger.end_sweep(died)
    assert ledger.begin_sweep(60) is None, "who ends late ends nothing of another's"
    ledger.end_sweep(following)
    assert ledger.begin_sweep(60).cursors == {}


def test_a_sweep_knows_when_the_first_one_was_and_what_the_last_one_left(ledger, clock):
    first = ledger.begin_sweep(60)
    assert (first.first_at, first.cursors, first.failing, first.pass_began, first.passed) == (clock.at, {}, [], 0, 0)
    first.cursors["jobs of openai"], first.failing = "ftjob-1", ["objects"]
    first.pass_began, first.passed = 12.5, 7.25
    ledger.end_sweep(first)
    clock.advance(3600)
    second = ledger.begin_sweep(60)
    assert second.first_at == clock.at - 3600
    assert (second.cursors, second.failing) == ({"jobs of openai": "ftjob-1"}, ["objects"])
    assert (second.pass_began, second.passed) == (12.5, 7.25)


def test_runs_are_unsettled_until_they_are_settled(ledger, clock):
    run = begin(ledger)
    begin(ledger, B)
    ledger.claim("x", A)
    ledger.join("openai/ftjob-1", A)
    ledger.hold(A, "datasets", KEY)
    ledger.begin_sweep(60)
    assert unsettled(ledger) == {A: Unsettled(run), B: Unsettled(ledger.get(B))}
    ledger.finish(A, "failed", None)
    assert unsettled(ledger).keys() == {A, B}
    ledger.close_run(A)
    assert unsettled(ledger).keys() == {B}


def test_every_page_has_its_runs(ledger):
    ids = {f"{number:032x}" for number in range(7)}
    for run_id in ids:
        begin(ledger, run_id)
    assert unsettled(ledger).keys() == ids


def test_an_unsettled_run_tells_its_executions_and_its_intent_to_create_a_job(ledger, clock):
    run = begin(ledger)
    ledger.next_execution(A, 1)
    ledger.intend(A, "tell_delayed")
    assert unsettled(ledger) == {A: Unsettled(run, 2, None)}
    ledger.intend(A, "create_job")
    assert unsettled(ledger) == {A: Unsettled(run, 2, clock.at)}
    ledger.abandon(A, "create_job")
    assert unsettled(ledger) == {A: Unsettled(run, 2, None)}


def test_of_two_that_count_executions_one_counts(ledger):
    begin(ledger)
    assert [ledger.next_execution(A, 1), ledger.next_execution(A, 1)] == [2, 2]
    assert [ledger.next_execution(A, 2), ledger.next_execution(A, 1)] == [3, 3]


@pytest.mark.parametrize("ask", [lambda ledger: ledger.close_run(A), lambda ledger: ledger.next_execution(A, 1)])
def test_a_run_that_never_began_is_unknown(ledger, ask):
    with pytest.raises(UnknownRun):
        ask(ledger)


def test_an_object_has_had_a_run_from_its_beginning_on(ledger, clock):
    assert ledger.arrived("datasets", KEY, "e1") is None
    begin(ledger)
    assert ledger.arrived("datasets", KEY, "e1") == clock.at
    assert ledger.arrived("datasets", KEY, "e2") is None
    assert ledger.arrived("others", KEY, "e1") is None
    assert ledger.arrived("datasets", "x.jsonl", "e1") is None


def test_of_several_runs_on_an_object_the_youngest_counts(ledger, clock):
    begin(ledger)
    clock.advance(60)
    begin(ledger, B)
    clock.advance(60)
    begin(ledger)  # a step of the first that is repeated
    assert ledger.arrived("datasets", KEY, "e1") == clock.at - 60


def test_a_beginning_that_was_cut_short_is_made_up_for(table, clock):
    error = EndpointConnectionError(endpoint_url="https://x")
    with pytest.raises(Transient):
        begin(DynamoSweepLedger(Broken(table, "put_item", error, skip=1), "ledger"))
    ledger = DynamoSweepLedger(table, "ledger")
    assert ledger.arrived("datasets", KEY, "e1") is None
    begin(ledger)
    assert ledger.arrived("datasets", KEY, "e1") == clock.at


def test_the_longest_key_of_an_object_is_none_too_long_for_the_ledger(ledger, clock):
    begin(ledger, key="ü" * 512, etag="e" * 128)
    assert ledger.arrived("datasets", "ü" * 512, "e" * 128) == clock.at


def test_a_recorded_job_tells_its_run(ledger):
    begin(ledger)
    assert ledger.run_of("openai/ftjob-1") is None
    ledger.call_back("openai/ftjob-1")
    assert ledger.run_of("openai/ftjob-1") is None
    ledger.join("openai/ftjob-1", A)
    assert ledger.run_of("openai/ftjob-1") == A


def test_what_tells_of_an_object_expires_some_day(table, clock):
    begin(DynamoSweepLedger(table, "ledger"))
    item = table.get_item(TableName="ledger", Key={"id": {"S": f"arrival#datasets/{KEY}/e1"}})["Item"]
    assert int(item["expires_at"]["N"]) == clock.at + 400 * 86_400
