"""The ledger's contract, on the table and on the double that other tests use in its place."""

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError, EndpointConnectionError
from tunedrop.errors import Transient
from tunedrop.ledger import CREATE_JOB, DynamoLedger, UnknownRun
from tunedrop.runs import FINAL, Failure, Run, RunRequest

from local.deploy import ROOT
from tests.unit.fakes import Broken, MemoryLedger
from tests.world.table import Table

A, B, C = "a" * 32, "b" * 32, "c" * 32


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


@pytest.fixture(params=["memory", "table", "dynamo"])
def ledger(request, clock):
    if request.param == "memory":
        return MemoryLedger()
    if request.param == "table":
        return DynamoLedger(Table(), "ledger")
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
                TableName="ledger",
                Key={"id": {"S": f"run#{run_id}"}},
                ConditionExpression=asked["ConditionExpression"],
                UpdateExpression=asked["UpdateExpression"],
                ExpressionAttributeValues={":token": {"S": token}},
            )
        except ClientError as error:
            assert error.response["Error"]["Code"] == "ConditionalCheckFailedException"
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


def test_whether_an_unknown_run_is_withdrawn_is_not_known(ledger):
    with pytest.raises(UnknownRun):
        ledger.withdrawn(B)
