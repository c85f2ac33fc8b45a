"""The ledger's contract, on tables and on the double that other tests use in its place.

moto answers as DynamoDB does, but looks and writes in two steps; dynalite is atomic, but does not answer a write whose
condition fails with what is there.
"""

import itertools
import subprocess
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError
from tunedrop.errors import Transient
from tunedrop.ledger import CREATE_JOB, DynamoLedger, UnknownRun
from tunedrop.limits import HOUR, Limit, Slot, milliseconds
from tunedrop.runs import FINAL, Failure, Run, RunRequest

from local import npm
from local.deploy import ROOT
from tests.unit.fakes import Broken, MemoryLedger
from tests.world.table import Table

THREADS = 24
A, B, C = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture(scope="module")
def client(aws):
    return boto3.client("dynamodb")


@pytest.fixture(scope="module")
def dynalite_server():
    """The address of a server of its own."""
    try:
        program = npm.node()
    except npm.NoNode as missing:
        pytest.skip(str(missing))
    command = [program, npm.PACKAGES / "dynalite" / "cli.js", "--host", "127.0.0.1", "--port", "0"]
    instantly = ["--createTableMs", "0", "--deleteTableMs", "0"]
    process = subprocess.Popen([*command, *instantly], stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().split()[-1]
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def dynalite_client(dynalite_server):
    return boto3.client(
        "dynamodb",
        endpoint_url=dynalite_server,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(max_pool_connections=THREADS, retries={"total_max_attempts": 1}),
    )


def make_table(client, name):
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    client.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 0, "MaxAttempts": 1000})


@pytest.fixture
def table(client):
    make_table(client, "ledger")
    yield client
    client.delete_table(TableName="ledger")


@pytest.fixture
def atomic(clock, dynalite_client):
    """The ledger on a store whose writes are atomic, for many at the same time."""
    name = f"ledger-{uuid.uuid4()}"  # deleting one takes a while
    make_table(dynalite_client, name)
    return DynamoLedger(dynalite_client, name)


@pytest.fixture(params=["memory", "table", "moto", "dynalite"])
def ledger(request, clock):
    if request.param == "memory":
        return MemoryLedger()
    if request.param == "table":
        return DynamoLedger(Table(), "ledger")
    if request.param == "dynalite":
        return request.getfixturevalue("atomic")
    return DynamoLedger(request.getfixturevalue("table"), "ledger")


def a_run(run_id=A):
    return Run.of(RunRequest(run_id, "datasets", "shop/ürders.jsonl", "e1", 10))


@pytest.fixture
def run(ledger):
    return ledger.begin(a_run())


def item(table, run_id=A):
    return table.get_item(TableName="ledger", Key={"id": {"S": f"run#{run_id}"}})["Item"]


# Runs


def test_a_run_reads_back_as_it_began(ledger, run):
    assert run == a_run()
    assert ledger.get(A) == run


def test_a_run_begins_once(ledger, run, clock):
    ledger.update(A, state="uploading")
    clock.advance(60)
    assert ledger.begin(a_run()).state == "uploading"
    assert ledger.get(A).created_at == run.created_at


def test_an_update_sets_the_fields_given_and_the_time(ledger, run, clock):
    clock.advance(1.5)
    updated = ledger.update(A, state="waiting", examples=12, estimated_cost_usd=0.1, result_keys=["k"], model=None)
    assert (updated.state, updated.examples, updated.estimated_cost_usd) == ("waiting", 12, 0.1)
    assert updated.result_keys == ("k",)
    assert updated.updated_at > run.updated_at == updated.created_at
    assert ledger.get(A) == updated


@pytest.mark.parametrize("state", FINAL)
def test_a_run_is_finished_in_any_final_state(ledger, run, clock, state):
    clock.advance(60)
    finished = ledger.finish(A, state, Failure("c", "a sentence"), fine_tuned_model="ft:x")
    assert (finished.state, finished.error, finished.fine_tuned_model) == (state, Failure("c", "a sentence"), "ft:x")
    assert finished.finished_at == finished.updated_at > run.created_at
    assert ledger.get(A) == finished


def test_numbers_read_back_as_they_were(ledger, run):
    finished = ledger.finish(A, "succeeded", None, trained_tokens=123_456_789, loss_curve=[1.25, 0.1, 1e-7])
    assert ledger.get(A).loss_curve == finished.loss_curve == (1.25, 0.1, 1e-7)
    assert ledger.get(A).trained_tokens == 123_456_789


def test_a_final_state_stands(ledger, run, clock):
    finished = ledger.finish(A, "succeeded", None)
    clock.advance(60)
    assert ledger.finish(A, "failed", Failure("c", "m"), job_id="j") == finished
    assert ledger.update(A, state="training") == finished
    assert ledger.get(A) == finished


def test_a_state_that_is_not_final_finishes_nothing(ledger, run):
    with pytest.raises(ValueError, match="training"):
        ledger.finish(A, "training", None)
    assert not ledger.get(A).is_final


@pytest.mark.parametrize(
    "ask",
    [
        lambda ledger: ledger.get(A),
        lambda ledger: ledger.update(A, state="waiting"),
        lambda ledger: ledger.finish(A, "failed", None),
        lambda ledger: ledger.delivered(A),
        lambda ledger: ledger.deliver(A, "d"),
    ],
)
def test_a_run_that_never_began_is_unknown(ledger, ask):
    with pytest.raises(UnknownRun):
        ask(ledger)


# Claims


def test_the_first_run_claims_a_content(ledger, run):
    assert ledger.claim("x", A) == A


def test_a_claim_may_be_repeated(ledger, run):
    ledger.claim("x", A)
    assert ledger.claim("x", A) == A


@pytest.mark.parametrize("state", [None, "succeeded"])
def test_a_run_under_way_or_succeeded_keeps_its_content(ledger, run, state):
    ledger.claim("x", A)
    if state:
        ledger.finish(A, state, None)
    ledger.begin(a_run(B))
    assert ledger.claim("x", B) == A


@pytest.mark.parametrize("state", sorted(set(FINAL) - {"succeeded"}))
def test_a_run_that_ended_otherwise_gives_its_content_up(ledger, run, state):
    ledger.claim("x", A)
    ledger.finish(A, state, None)
    ledger.begin(a_run(B))
    ledger.begin(a_run(C))
    assert ledger.claim("x", B) == B
    assert ledger.claim("x", C) == B


@pytest.mark.parametrize("state", ["failed", "timed_out"])
def test_a_run_that_may_have_a_job_unknown_keeps_its_content_until_there_is_known_to_be_none(ledger, run, state):
    ledger.claim("x", A)
    ledger.intend(A, CREATE_JOB)
    ledger.finish(A, state, None)
    ledger.begin(a_run(B))
    assert ledger.claim("x", B) == A
    ledger.abandon(A, CREATE_JOB)
    assert ledger.claim("x", B) == B


def test_a_run_whose_job_is_known_to_have_failed_gives_its_content_up(ledger, run):
    ledger.claim("x", A)
    ledger.intend(A, CREATE_JOB)
    ledger.update(A, job_id="ftjob-1")
    ledger.finish(A, "failed", None)
    ledger.begin(a_run(B))
    assert ledger.claim("x", B) == B


def test_another_content_is_free(ledger, run):
    ledger.claim("x", A)
    ledger.begin(a_run(B))
    assert ledger.claim("y", B) == B


# Intents


def test_an_intent_is_noted_once_and_keeps_its_time(ledger, run, clock):
    at = clock.at
    assert ledger.intend(A, "create_job") is None
    clock.advance(30)
    assert ledger.intend(A, "create_job") == at
    assert ledger.intend(A, "create_job") == at


def test_an_intent_that_came_to_nothing_is_noted_anew_by_one_alone(ledger, run, clock):
    lost = clock.at
    ledger.intend(A, "create_job")
    clock.advance(900)
    assert ledger.intend(A, "create_job", lost) is None
    assert ledger.intend(A, "create_job", lost) == lost + 900


def test_an_intent_taken_back_may_be_noted_again(ledger, run):
    ledger.intend(A, "create_job")
    ledger.abandon(A, "create_job")
    assert ledger.intend(A, "create_job") is None


def test_an_intent_belongs_to_its_run_and_effect(ledger, run):
    ledger.begin(a_run(B))
    ledger.intend(A, "create_job")
    assert ledger.intend(B, "create_job") is None
    assert ledger.intend(A, "something_else") is None


def test_taking_back_what_was_not_noted_is_harmless(ledger, run):
    ledger.abandon(A, "create_job")
    assert ledger.get(A) == run


# Plans and deliveries


def test_a_plan_reads_back_as_it_was(ledger, run):
    plan = {"model": "m", "seed": 0, "method": {"type": "dpo", "dpo": {"beta": 0.1, "n": 1.0}}, "metadata": {"ü": ""}}
    ledger.plan(A, {"model": "other"})
    ledger.plan(A, plan)
    assert ledger.planned(A) == plan
    assert isinstance(ledger.planned(A)["method"]["dpo"]["n"], float)


def test_a_note_reads_back_as_it_was_written_last(ledger, run):
    assert ledger.noted(A, "a.jsonl") == {}
    ledger.note(A, "a.jsonl", {"at": 1.5, "parts": {"0": "part_1"}})
    ledger.note(A, "a.jsonl", {"at": 2.5, "parts": {"0": "part_1", "1": "part_2"}})
    assert ledger.noted(A, "a.jsonl") == {"at": 2.5, "parts": {"0": "part_1", "1": "part_2"}}
    assert ledger.noted(A, "b.jsonl") == {}


def test_deliveries_are_remembered(ledger, run):
    assert ledger.delivered(A) == frozenset()
    for destination in ("d", "e", "d"):
        ledger.deliver(A, destination)
    assert ledger.delivered(A) == {"d", "e"}


def test_a_final_run_remembers_deliveries_too(ledger, run):
    ledger.finish(A, "failed", None)
    ledger.deliver(A, "d")
    assert ledger.delivered(A) == {"d"}
    assert ledger.get(A).state == "failed"


# The table


def test_a_run_expires_once_it_is_final_and_not_before(table, clock):
    ledger = DynamoLedger(table, "ledger")
    ledger.begin(a_run())
    assert "expires_at" not in item(table)
    ledger.finish(A, "failed", None)
    assert int(item(table)["expires_at"]["N"]) == clock.at + 400 * 86_400


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "ProvisionedThroughputExceededException"}}, "UpdateItem"),
        ClientError({"Error": {"Code": "InternalServerError"}}, "UpdateItem"),
        EndpointConnectionError(endpoint_url="https://x"),
    ],
)
def test_what_passes_is_transient(table, clock, error):
    DynamoLedger(table, "ledger").begin(a_run())
    with pytest.raises(Transient):
        DynamoLedger(Broken(table, "update_item", error), "ledger").update(A, state="waiting")


def test_what_no_repetition_mends_is_raised_as_it_is(table, clock):
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        DynamoLedger(table, "other").begin(a_run())


# Callbacks


@pytest.fixture
def wait(ledger):
    """What the state machine does between two polls: leaves its token under a condition; whether it waits then."""
    if isinstance(ledger, MemoryLedger):
        return ledger.wait
    table = ledger._client
    machine = yaml.safe_load((ROOT / "statemachine/finetune.asl.yaml").read_text())
    asked = machine["States"]["Wait for the job"]["Parameters"]

    def leave(run_id, token):
        try:
            table.update_item(
                TableName=ledger._table,
                Key={"id": {"S": f"run#{run_id}"}},
                ConditionExpression=asked["ConditionExpression"],
                UpdateExpression=asked["UpdateExpression"],
                ExpressionAttributeValues={":token": {"S": token}},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            return False
        return True

    return leave


def test_a_callback_finds_the_token_of_the_run_that_waits(ledger, run, wait):
    ledger.join("openai/ftjob-1", A)
    assert wait(A, "token")
    assert ledger.call_back("openai/ftjob-1") == "token"


def test_a_callback_before_the_wait_leaves_nothing_to_wait_for(ledger, run, wait):
    ledger.join("openai/ftjob-1", A)
    assert ledger.call_back("openai/ftjob-1") is None
    assert not wait(A, "token")


def test_a_callback_before_its_job_is_known_leaves_nothing_to_wait_for(ledger, run, wait):
    assert ledger.call_back("openai/ftjob-1") is None
    ledger.join("openai/ftjob-1", A)
    assert not wait(A, "token")


def test_who_listens_anew_waits_again(ledger, run, wait):
    ledger.join("openai/ftjob-1", A)
    ledger.call_back("openai/ftjob-1")
    ledger.listen(A)
    assert wait(A, "token")
    assert ledger.call_back("openai/ftjob-1") == "token"


def test_a_token_is_forgotten_with_its_wait(ledger, run, wait):
    ledger.join("openai/ftjob-1", A)
    wait(A, "token")
    ledger.listen(A)
    assert ledger.call_back("openai/ftjob-1") is None


def test_a_job_is_its_providers(ledger, run, wait):
    ledger.join("openai/ftjob-1", A)
    ledger.call_back("nebius/ftjob-1")
    assert wait(A, "token")


def test_a_callback_of_a_run_that_the_ledger_has_forgotten_wakes_nobody(ledger, run, wait):
    ledger.join("openai/ftjob-1", B)
    assert ledger.call_back("openai/ftjob-1") is None


# Deleted objects

KEY = "shop/ürders.jsonl"


def later(clock, seconds=60):
    return clock.at + seconds


def test_a_deletion_finds_the_run_that_trains_on_the_object_and_its_token(ledger, run, wait, clock):
    ledger.hold(A, "datasets", KEY)
    assert not ledger.withdrawn(A)
    wait(A, "token")
    assert ledger.withdraw("datasets", KEY, later(clock)) == [(A, "token")]
    assert ledger.withdrawn(A)


def test_a_deletion_before_the_wait_leaves_nothing_to_wait_for(ledger, run, wait, clock):
    ledger.hold(A, "datasets", KEY)
    assert ledger.withdraw("datasets", KEY, later(clock)) == [(A, None)]
    assert not wait(A, "token")
    ledger.listen(A)
    assert ledger.withdrawn(A), "a look does not forget it"


def test_a_deletion_finds_all_runs_on_the_object_that_began_before_it(ledger, run, clock):
    ledger.hold(A, "datasets", KEY)
    clock.advance(60)
    ledger.begin(a_run(B))
    ledger.hold(B, "datasets", KEY)
    assert ledger.withdraw("datasets", KEY, clock.at - 30) == [(A, None)], "what is told late is of the earlier one"
    assert not ledger.withdrawn(B)
    assert ledger.withdraw("datasets", KEY, later(clock)) == [(A, None), (B, None)]
    assert ledger.withdrawn(B)


def test_a_deletion_passes_over_runs_that_are_released(ledger, run, clock):
    ledger.begin(a_run(B))
    for run_id in (A, B):
        ledger.hold(run_id, "datasets", KEY)
    ledger.release(A)
    assert ledger.withdraw("datasets", KEY, later(clock)) == [(B, None)]


@pytest.mark.parametrize(("bucket", "key", "after"), [("x", KEY, 60), ("datasets", "x", 60), ("datasets", KEY, 0)])
def test_a_deletion_of_something_else_or_of_what_was_there_before_finds_nothing(ledger, run, clock, bucket, key, after):
    ledger.hold(A, "datasets", KEY)
    assert ledger.withdraw(bucket, key, later(clock, after)) == []
    assert not ledger.withdrawn(A)


def test_a_deletion_after_the_end_finds_nothing(ledger, run, clock):
    ledger.hold(A, "datasets", KEY)
    ledger.finish(A, "succeeded", None)
    assert ledger.withdraw("datasets", KEY, later(clock)) == []


def test_a_deletion_of_a_run_that_the_ledger_has_forgotten_finds_nothing(ledger, clock):
    ledger.hold(B, "datasets", KEY)
    assert ledger.withdraw("datasets", KEY, later(clock)) == []


def test_a_run_that_is_spared_is_not_withdrawn_by_earlier_deletions(ledger, run, clock):
    ledger.hold(A, "datasets", KEY)
    assert ledger.spare(A, later(clock))
    assert ledger.spare(A, later(clock, 30)), "the later one holds"
    assert ledger.withdraw("datasets", KEY, later(clock)) == []
    assert not ledger.withdrawn(A)
    assert ledger.withdraw("datasets", KEY, later(clock, 61)) == [(A, None)]


def test_a_run_that_is_withdrawn_is_not_spared(ledger, run, clock):
    ledger.hold(A, "datasets", KEY)
    ledger.withdraw("datasets", KEY, later(clock))
    assert not ledger.spare(A, later(clock, 600))
    assert ledger.withdrawn(A)


def test_an_unknown_run_is_not_spared(ledger):
    with pytest.raises(UnknownRun):
        ledger.spare(B, 1e11)


def test_whether_an_unknown_run_is_withdrawn_is_not_known(ledger):
    with pytest.raises(UnknownRun):
        ledger.withdrawn(B)


# Limits

JOBS = Limit.hourly("openai/gpt-4.1/jobs", 3)
CALL = 150_000


def runs(ledger, count):
    """So many runs, which have begun."""
    return [ledger.begin(a_run(f"{number:032x}")).run_id for number in range(count)]


def call(ledger, clock, run_id, limit, seconds=2):
    """Makes a call, now: when it was over, or None where it is not its turn."""
    slot = ledger.reserve(run_id, "job", limit)
    over = milliseconds(clock.at) + CALL
    if slot.at > milliseconds(clock.at) or ledger.admit(run_id, "job", slot, limit, over):
        return None
    clock.advance(seconds)
    ledger.settle(slot, limit, over, milliseconds(clock.at))
    return milliseconds(clock.at)


def test_as_many_slots_as_the_limit_has_are_free_at_once_and_then_one_after_the_other(ledger, clock):
    slots = [ledger.reserve(run_id, "job", JOBS) for run_id in runs(ledger, 7)]
    now = milliseconds(clock.at)
    assert [slot.at for slot in slots] == [now] * 3 + [now + JOBS.spacing] * 3 + [now + 2 * JOBS.spacing]
    assert len(set(slots)) == 7


def test_a_run_has_one_slot_however_often_it_asks_and_one_for_each_of_its_calls(ledger, run, clock):
    slot = ledger.reserve(A, "job", JOBS)
    clock.advance(30)
    assert ledger.reserve(A, "job", JOBS) == slot
    assert ledger.reserve(A, "another", JOBS) != slot


def test_a_slot_is_used_up_by_its_call(ledger, run, clock):
    assert ledger.reserved(A, "job") is None
    slot = ledger.reserve(A, "job", JOBS)
    assert ledger.reserved(A, "job") == slot
    assert ledger.reserved(A, "another") is None
    call(ledger, clock, A, JOBS)
    assert ledger.reserved(A, "job") is None
    assert ledger.reserve(A, "job", JOBS).cell != 1


def test_a_cell_opens_an_hour_after_its_call_was_over(ledger, clock):
    one = Limit.hourly("p/m/jobs", 1)
    first, second = runs(ledger, 2)
    over = call(ledger, clock, first, one, seconds=100)
    slot = ledger.reserve(second, "job", one)
    clock.at = slot.at / 1000
    again = ledger.admit(second, "job", slot, one, milliseconds(clock.at) + CALL)
    assert again == over + one.period >= over + HOUR + 1000, "clocks differ"
    clock.at = again / 1000 - 0.001
    assert ledger.admit(second, "job", slot, one, milliseconds(clock.at) + CALL) == again
    clock.at = again / 1000
    assert ledger.admit(second, "job", slot, one, milliseconds(clock.at) + CALL) == 0


def test_a_call_that_was_never_settled_counts_as_the_longest_that_there_may_be(ledger, clock):
    one = Limit.hourly("p/m/jobs", 1)
    first, second = runs(ledger, 2)
    over = milliseconds(clock.at) + CALL
    assert ledger.admit(first, "job", ledger.reserve(first, "job", one), one, over) == 0
    slot = ledger.reserve(second, "job", one)
    clock.at = slot.at / 1000
    assert ledger.admit(second, "job", slot, one, over) == over + one.period


def test_a_slot_given_back_is_the_next_to_be_taken(ledger, clock):
    first, *others, late, latest = runs(ledger, 9)
    for run_id in (first, *others):
        ledger.reserve(run_id, "job", JOBS)
    slot = ledger.reserve(others[3], "job", JOBS)
    ledger.release(others[3])
    ledger.release(others[3])
    assert ledger.reserve(late, "job", JOBS) == slot
    assert ledger.reserve(latest, "job", JOBS).at > slot.at


def test_a_slot_given_back_is_good_later_too_while_nobody_is_behind_it(ledger, clock):
    one = Limit.hourly("p/m/jobs", 1)
    first, second, third = runs(ledger, 3)
    call(ledger, clock, first, one)
    slot = ledger.reserve(second, "job", one)
    ledger.release(second)
    clock.at = slot.at / 1000 + 60
    assert ledger.reserve(third, "job", one) == Slot(one.name, 0, milliseconds(clock.at))


def test_a_slot_given_back_whose_time_is_over_is_not_taken_when_somebody_is_behind_it(ledger, clock):
    one = Limit.hourly("p/m/jobs", 1)
    first, second, third, fourth = runs(ledger, 4)
    ledger.reserve(first, "job", one)
    given, behind = (ledger.reserve(run_id, "job", one) for run_id in (second, third))
    ledger.release(second)
    clock.at = given.at / 1000 + 60
    assert ledger.reserve(fourth, "job", one).at == behind.at + one.spacing


def test_a_limit_that_is_closed_lets_nobody_in_until_it_opens(ledger, run, clock):
    until = milliseconds(clock.at) + 90_000
    ledger.close(JOBS, until)
    ledger.close(JOBS, until - 60_000)
    slot = ledger.reserve(A, "job", JOBS)
    assert ledger.closed_until(JOBS) == until
    assert ledger.admit(A, "job", slot, JOBS, until) == until
    clock.advance(90)
    assert ledger.admit(A, "job", slot, JOBS, until) == 0


def test_what_is_not_limited_can_be_closed_too(ledger):
    unlimited = Limit.hourly("p/m/jobs", None)
    assert ledger.closed_until(unlimited) == 0
    ledger.close(unlimited, 5)
    assert ledger.closed_until(unlimited) == 5


@pytest.mark.parametrize(("before", "after"), [(2, 5), (5, 2), (101, 2), (2, 101), (101, 201)])
def test_a_limit_that_changes_counts_what_was_called_before(ledger, clock, before, after):
    began = milliseconds(clock.at)
    was, limit = Limit.hourly("p/m/jobs", before), Limit.hourly("p/m/jobs", after)
    ids = iter(runs(ledger, 20))
    for run_id in itertools.islice(ids, min(before, 6)):
        assert call(ledger, clock, run_id, was)
    called = sum(call(ledger, clock, run_id, limit) is not None for run_id in ids)
    assert called <= max(after - min(before, 6), 0)
    assert milliseconds(clock.at) < began + HOUR
    clock.at = (began + 30 * HOUR) / 1000
    assert call(ledger, clock, ledger.begin(a_run(B)).run_id, limit), "it opens again"


def test_a_slot_of_a_cell_that_is_no_more_is_dealt_out_anew(ledger, clock):
    ids = runs(ledger, 4)
    for run_id in ids:
        ledger.reserve(run_id, "job", Limit.hourly("p/m/jobs", 4))
    smaller = Limit.hourly("p/m/jobs", 2)
    assert {ledger.reserve(run_id, "job", smaller).cell for run_id in ids} == {0, 1}


def test_places_are_given_back(ledger):
    first, second, third = runs(ledger, 3)
    assert [ledger.occupy(run_id, "azure", 2) for run_id in (first, second, third, first)] == [True, True, False, True]
    ledger.release(first)
    assert ledger.occupy(third, "azure", 2)
    assert not ledger.occupy(first, "azure", 2)
    assert ledger.occupy(first, "another", 2)


def test_a_run_that_ended_without_giving_its_place_back_loses_it(ledger):
    first, second = runs(ledger, 2)
    ledger.occupy(first, "azure", 1)
    ledger.finish(first, "failed", None)
    assert ledger.occupy(second, "azure", 1)


# Many at the same time


def at_once(work, arguments):
    """What the work answers to each, done by many threads that begin together."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, arguments))


@pytest.fixture
def crowd(atomic):
    return runs(atomic, 2 * THREADS)


def test_of_many_claims_one_wins(atomic, crowd):
    winners = at_once(lambda run_id: atomic.claim("x", run_id), crowd)
    assert len(set(winners)) == 1


def test_of_many_claims_on_what_a_run_has_given_up_one_wins(atomic, crowd):
    first, *others = crowd
    atomic.claim("x", first)
    atomic.finish(first, "failed", None)
    winners = at_once(lambda run_id: atomic.claim("x", run_id), others)
    assert len(set(winners)) == 1
    assert first not in winners


def test_of_many_intents_one_is_the_first(atomic, crowd):
    answers = at_once(lambda _: atomic.intend(crowd[0], CREATE_JOB), range(50))
    assert Counter(answer is None for answer in answers) == {True: 1, False: 49}


def test_of_many_ends_one_stands(atomic, crowd):
    ends = at_once(lambda one: atomic.finish(crowd[0], one[1], Failure(str(one[0]), "")), enumerate(FINAL * 5))
    assert len({(end.state, end.error) for end in ends}) == 1
    assert atomic.get(crowd[0]) == ends[0]


def test_of_many_reservations_each_has_a_slot_of_its_own_and_none_is_lost(atomic, clock):
    limit = Limit.hourly("p/m/jobs", 6)
    ids = runs(atomic, 180)
    slots = at_once(lambda run_id: atomic.reserve(run_id, "job", limit), ids)
    turns = {(slot.cell, (slot.at - milliseconds(clock.at)) / limit.spacing) for slot in slots}
    assert turns == set(itertools.product(range(6), range(30)))


def test_of_many_attempts_at_one_step_all_have_the_same_slot_and_the_others_are_given_back(atomic, crowd, clock):
    slots = at_once(lambda _: atomic.reserve(crowd[0], "job", JOBS), range(THREADS))
    assert len(set(slots)) == 1
    others = [atomic.reserve(run_id, "job", JOBS) for run_id in crowd[1 : 2 * JOBS.cells]]
    assert len({*others, slots[0]}) == 2 * JOBS.cells
    assert max(slot.at for slot in others) < milliseconds(clock.at) + (THREADS // JOBS.cells + 1) * JOBS.spacing


def test_never_301_of_300_are_admitted(atomic, clock):
    """With a wrong idea of their slots, all come at once: the store alone holds them to the limit."""
    limit = Limit.hourly("p/m/jobs", 300)  # a hundred cells, three times an hour each
    ids = runs(atomic, 5 * THREADS)
    atomic.reserve(ids[0], "job", limit)
    admitted = 0
    began = clock.at
    while clock.at < began + HOUR / 1000:
        over = milliseconds(clock.at)
        asked = [(run_id, Slot(limit.name, cell % limit.cells, 0)) for cell, run_id in enumerate(ids)]
        admitted += at_once(lambda one: atomic.admit(one[0], "job", one[1], limit, over), asked).count(0)  # noqa: B023
        clock.advance(601)
    assert admitted == 300


def test_of_many_that_want_a_place_as_many_get_one_as_there_are(atomic, crowd):
    assert at_once(lambda run_id: atomic.occupy(run_id, "azure", 5), crowd).count(True) == 5


def test_a_slot_given_back_is_taken_by_one(atomic, crowd, clock):
    first, *others = crowd
    one = Limit.hourly("p/m/jobs", 1)
    atomic.reserve(others.pop(), "job", one)
    slot = atomic.reserve(first, "job", one)
    atomic.release(first)
    slots = at_once(lambda run_id: atomic.reserve(run_id, "job", one), others)
    assert slots.count(slot) == 1
    assert len(set(slots)) == len(slots)


def test_a_limit_is_first_written_by_one(atomic, crowd):
    slots = at_once(lambda run_id: atomic.reserve(run_id, "job", JOBS), crowd)
    assert len(set(slots)) == len(crowd)


def test_a_limit_that_changes_while_it_is_used_admits_no_more_than_either(atomic, crowd, clock):
    def attempt(numbered):
        number, run_id = numbered
        limit = Limit.hourly("p/m/jobs", 5 if number % 2 else 8)
        try:
            slot = atomic.reserve(run_id, "job", limit)
            return slot.at <= milliseconds(clock.at) and not atomic.admit(run_id, "job", slot, limit, slot.at + CALL)
        except Transient:  # the limit changes too often for it
            return False

    assert at_once(attempt, enumerate(crowd)).count(True) <= 8
