"""Every file in events/ is a test case: the real handler, with the real adapters, answers it as documented."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tunedrop import clock
from tunedrop.runs import CONFIG, WEIGHTS, Failure, Run, RunRequest, run_id_of

from tests.functions.matchers import Holding, Saying, Within
from tests.functions.world import EVENTS, EXAMPLES, FUNCTIONS, SAMPLE_SECRET, World, sample

FILES = sorted(file.stem for file in EVENTS.glob("*.json"))
RUN = sample("upload.first")["run_id"]
ABORTED, ABORTED_ADAPTER = "ab07ed" + "0" * 26, "ab07ed" + "a" * 26
LOST_ADAPTER = f"adapters/lost/{WEIGHTS}"


def nothing(_: World, __: Any) -> None:
    """Neither to be prepared nor to be looked at."""


@dataclass(frozen=True)
class Case:
    """What a sample event finds, what the handler answers, and what is to be seen then."""

    answer: Any
    given: Callable[[World, Any], None] = nothing
    then: Callable[[World, Any], None] = nothing
    environment: Mapping[str, str] = field(default_factory=dict)
    """What differs from the template's own."""


# ------------------------------------------------------------------ what the events find


def dropped(example: str, key: str = "") -> Callable[[World, Any], None]:
    return lambda world, _: world.drop(example, key)


def uploaded(world: World, _: Any) -> None:
    world.drop("orchard.jsonl")
    world.drop("orchard.job.json")
    assert world.handle("upload.first")["state"] == "waiting"


def adapter_dropped(*files: str) -> Callable[[World, Any], None]:
    """An adapter, or as much of it, lies in the folder that the event is about."""

    def given(world: World, event: Any) -> None:
        for file in files:
            world.drop(f"orchard-adapter/{file}", event["key"].replace(WEIGHTS, file))

    return given


def invalid_adapter(world: World, event: Any) -> None:
    adapter_dropped(WEIGHTS)(world, event)
    config = json.loads((EXAMPLES / "orchard-adapter" / CONFIG).read_text()) | {"r": 64}
    key = event["key"].replace(WEIGHTS, CONFIG)
    world.client("s3").put_object(Bucket=world.bucket, Key=key, Body=json.dumps(config).encode())


def config_came(world: World, event: Any) -> None:
    adapter_dropped(WEIGHTS)(world, event)
    assert "wait_seconds" in world.handle("publish_adapter.first")
    adapter_dropped(CONFIG)(world, event)


def upload_throttled(world: World, _: Any) -> None:
    world.drop("orchard.jsonl")
    world.fault("POST", "/v1/files", status=429, headers={"retry-after": "30"}, body={"error": {"message": "slowly"}})
    assert world.handle("upload.first") == {"run_id": RUN, "state": "received", "wait_seconds": 30}
    world.ahead = 31  # the pause is over


def uploaded_and_known(world: World, _: Any) -> None:
    uploaded(world, _)
    world.drop("orchard.jsonl", "again/orchard.jsonl")
    world.drop("orchard.job.json", "again/orchard.job.json")


def creation_lost(world: World, _: Any) -> None:
    """The service created the job, and its answer never arrived."""
    uploaded(world, _)
    world.fault("POST", "/v1/fine_tuning/jobs", reset="after")
    assert world.handle("create_job.first") == {"run_id": RUN, "state": "waiting", "wait_seconds": 5}


def training(world: World, _: Any) -> None:
    uploaded(world, _)
    world.plan("stuck")
    assert world.handle("create_job.first")["state"] == "training"


def ended(outcome: str) -> Callable[[World, Any], None]:
    def given(world: World, event: Any) -> None:
        uploaded(world, event)
        world.plan(outcome, duration_seconds=20)
        assert world.handle("create_job.first")["state"] == "training"
        deadline = time.monotonic() + 10
        while "wait_seconds" in world.handle("poll_status.first"):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return given


def waiting_for_its_job(world: World, event: Any) -> None:
    world.begin(sample("upload.first"))
    world.ledger.join(f"openai/{json.loads(event['body'])['data']['id']}", RUN)
    leave_token(world)


def trained_on(world: World, event: Any) -> None:
    request = RunRequest.from_input(sample("upload.first"))
    run = replace(Run.of(request), created_at="2026-03-05T09:30:03.101Z")
    world.ledger.begin(run)
    world.ledger.hold(run.run_id, run.bucket, run.key)
    leave_token(world)


def leave_token(world: World) -> None:
    """What the state machine does while it waits for the run's job."""
    world.client("dynamodb").update_item(
        TableName=world.outputs["LedgerTable"],
        Key={"id": {"S": f"run#{RUN}"}},
        UpdateExpression="SET wake_token = :token",
        ExpressionAttributeValues={":token": {"S": "of a wait that is over"}},
    )


def disagreeing(world: World, event: Any) -> None:
    """A dataset and an adapter without a run, a run of each whose execution somebody ended, and a run that has failed
    though its job succeeded."""
    world.ahead = -10
    world.handle("reconcile.first")  # what is in the bucket by then is none of the sweeper's business
    world.ahead = 0
    ended("succeeded")(world, event)
    world.ledger.finish(RUN, "failed", Failure("Lambda.Unknown", "A step of the run failed."))
    world.ledger.close_run(RUN)
    world.begin({**sample("upload.first"), "run_id": ABORTED})
    world.abort(ABORTED)
    world.begin({**sample("publish_adapter.first"), "run_id": ABORTED_ADAPTER})
    world.abort(ABORTED_ADAPTER, "AdapterStateMachineArn")
    world.drop("orders.jsonl")
    world.drop(f"orchard-adapter/{WEIGHTS}", LOST_ADAPTER)
    world.ahead = world.order("GET", "")["now"] - time.time() + 7200


def begun(world: World, event: Any) -> None:
    world.begin(event)


def in_the_queue(world: World, event: Any) -> None:
    """The sample's receipt handle is no queue's: put in one that is."""
    (record,) = event["Records"]
    record["receiptHandle"] = world.receive(record["body"])


def refused_once(world: World, event: Any) -> None:
    in_the_queue(world, event)
    world.receiver.refuse(1)


# ------------------------------------------------------------------ what is to be seen then


def nothing_to_wait_for(world: World, _: Any) -> None:
    assert ledger_item(world)["called_back"] == {"BOOL": True}


def held(truth: bool) -> None:
    assert truth


def callback_is_remembered(world: World, _: Any) -> None:
    """Whichever run the job turns out to be of, it will not wait."""
    (item,) = world.client("dynamodb").scan(TableName=world.outputs["LedgerTable"])["Items"]
    assert item["id"] == {"S": "job#openai/ftjob-Zk7cVb5nMq3sLd0f"}
    assert item["called_back"] == {"BOOL": True}


def ledger_item(world: World) -> Any:
    key = {"id": {"S": f"run#{RUN}"}}
    return world.client("dynamodb").get_item(TableName=world.outputs["LedgerTable"], Key=key)["Item"]


def reported(*keys: str) -> Callable[[World, Any], None]:
    """The run's results are these, in the bucket and in the ledger alike."""

    def then(world: World, event: Any) -> None:
        expected = {f"results/{event['run_id']}/{key}" for key in keys}
        assert {key for key in world.stored_keys() if key.startswith("results/")} == expected
        assert set(world.run(event).result_keys) == expected

    return then


def in_the_ledger(**fields: Any) -> Callable[[World, Any], None]:
    def then(world: World, event: Any) -> None:
        document = world.run(event).document()
        assert {name: document[name] for name in fields} == fields

    return then


def one_file(world: World, event: Any) -> None:
    size = (EXAMPLES / "orchard.jsonl").stat().st_size
    assert [(file["filename"], file["bytes"]) for file in world.files()] == [(f"{RUN}.jsonl", size)]
    assert world.run(event).file_id == world.files()[0]["id"]


def no_file(world: World, event: Any) -> None:
    assert world.files() == []
    assert world.run(event).file_id is None


def one_job(world: World, event: Any) -> None:
    run = world.run(event)
    (job,) = world.jobs_on(run.file_id)
    assert job["id"] == run.job_id
    assert job["metadata"] == {"run_id": RUN, "team": "cider"}


def job_cancelled(world: World, event: Any) -> None:
    (job,) = world.jobs_on(world.run(event).file_id)
    assert job["status"] == "cancelled"


def put_right(world: World, event: Any) -> None:
    etag = hashlib.md5((EXAMPLES / "orders.jsonl").read_bytes(), usedforsecurity=False).hexdigest()
    executions = world.executions("StateMachineArn")
    assert executions[f"{ABORTED}-2"]["run_id"] == ABORTED
    assert [given["key"] for given in executions.values() if given.get("etag") == etag] == ["orders.jsonl"]
    adapters = world.executions("AdapterStateMachineArn")
    assert adapters[f"{ABORTED_ADAPTER}-2"]["run_id"] == ABORTED_ADAPTER
    assert LOST_ADAPTER in [given.get("key") for given in adapters.values()]
    job_ids = {job["id"] for job in world.order("GET", "/ledger")["jobs"] if job["status"] == "succeeded"}
    told = world.published()
    assert {(each["notice"], each["run_id"]) for each in told} == {("model_found", RUN)}
    assert {each["job_id"] for each in told} <= job_ids
    report = json.loads(world.stored("results/_sweeps/latest.json"))
    assert {"lost_event", "stuck_run", "model_found"} <= {found["kind"] for found in report["found"]}


def both(*thens: Callable[[World, Any], None]) -> Callable[[World, Any], None]:
    def then(world: World, event: Any) -> None:
        for each in thens:
            each(world, event)

    return then


def told(kind: str, message_id: str = f"msg_{RUN}", **data: Any) -> Callable[[World, Any], None]:
    """The receiver has accepted one signed message of this type; nobody is told twice."""

    def then(world: World, event: Any) -> None:
        messages = [(received["id"], received["message"]) for received in world.receiver.received]
        assert messages == [(message_id, {"type": kind, "timestamp": Saying("T"), "data": Holding(data)})]

    return then


def out_of_sight(world: World, _: Any) -> None:
    """The message stays in the queue, and comes again after a pause."""
    queue = world.functions["NotifyFunction"].environment["NOTIFY_QUEUE_URL"]
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    counts = world.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    assert counts["ApproximateNumberOfMessages"] == "0"
    assert world.receiver.received == []


# ------------------------------------------------------------------ what is answered


def http(status: int, **body: Any) -> dict[str, Any]:
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": body}


def accepted(*keys: str, ignored: Any = ()) -> dict[str, Any]:
    runs = [{"key": key, "run_id": Saying("")} for key in keys]
    return http(202, accepted=runs, ignored=[{"key": key, "reason": reason} for key, reason in ignored])


def refused(status: int, code: str, words: str = "") -> dict[str, Any]:
    return http(status, error={"code": code, "message": Saying(words)})


def step(state: str, **more: Any) -> dict[str, Any]:
    return {"run_id": RUN, "state": state, **more}


def final(state: str, error: Any = None, cause: str | None = None, **run: Any) -> dict[str, Any]:
    """What "Collect results" answers: the run, and what is told of it."""
    return {
        "run": Holding({"run_id": RUN, "state": state, "error": error, **run}),
        "subject": Saying("orchard.jsonl"),
        "cause": Saying(cause or state),
        "message": {"default": Saying(f'"state": "{state}"'), "email": Saying("orchard.jsonl")},
    }


def error(code: str, words: str) -> dict[str, Any]:
    return {"code": code, "message": Saying(words)}


def one_finetune(world: World, event: Any) -> None:
    (finetune,) = world.workers_ai.finetunes
    assert (finetune.name, set(finetune.assets)) == ("orchard-desk", {CONFIG, WEIGHTS})
    run = world.run(event)
    assert (run.finetune_id, run.fine_tuned_model) == (finetune.id, finetune.name)
    assert world.stored_keys() >= set(run.result_keys) == {f"results/{run.run_id}/report.json"}


def no_finetune(world: World, _: Any) -> None:
    assert world.workers_ai.finetunes == []


def adapter_begun(world: World, _: Any) -> None:
    assert sample("publish_adapter.first")["run_id"] in world.executions("AdapterStateMachineArn")


SPRING = "spring harvest/äpfel (neu).jsonl"
DELIVERED: dict[str, Any] = {"batchItemFailures": []}
ANY_NUMBER = Within(1, 1000)  # of jobs that the other samples have left at the service, under the same run
ANY_MODEL = Saying("ft:gpt-4.1-mini-2025-04-14:emulation:orchard-desk:")

CASES = {
    "webhook.r2_put": Case(accepted("orchard.jsonl")),
    "webhook.r2_adapter": Case(accepted("adapters/orchard-desk/adapter_model.safetensors"), then=adapter_begun),
    "webhook.r2_copy": Case(accepted("2026/spring/orchard.jsonl")),
    "webhook.r2_multipart": Case(accepted("big/desk + workshop.jsonl")),
    "webhook.s3_put": Case(accepted(SPRING)),
    "webhook.eventbridge_put": Case(accepted(SPRING)),
    "webhook.sns_put": Case(accepted(SPRING)),
    "webhook.sqs_puts": Case(
        accepted("orders.jsonl", ignored=[(SPRING, "the key does not begin with orders")]),
        environment={"KEY_PREFIX": "orders"},
    ),
    "webhook.minio_put": Case(accepted("spring/orchard.jsonl")),
    "webhook.base64": Case(accepted("tiny/orchard.jsonl")),
    "webhook.batch": Case(
        accepted(
            "orders.jsonl",
            "orchard.jsonl",
            ignored=[
                ("orchard.validation.jsonl", "a validation set; it is read with its dataset"),
                ("orchard.job.json", "a job specification; it is read with its dataset"),
                ("results/1f0c2a9be7d34c5f8a6b7c8d9e0f1a2b/events.jsonl", "a result of Tunedrop's own"),
                ("README.md", "the key does not end in .jsonl"),
                ("orchard.jsonl", "another bucket"),
                ("old.jsonl", "no object was created"),
            ],
        )
    ),
    "webhook.r2_delete": Case(
        http(202, accepted=[], ignored=[], cancelling=[{"key": "orchard.jsonl", "run_id": RUN}]),
        given=trained_on,
        then=both(nothing_to_wait_for, lambda world, _: held(world.ledger.withdrawn(RUN))),
        environment={"ON_DELETION": "cancel"},
    ),
    "webhook.test_event": Case(http(200, accepted=[], ignored=[])),
    "webhook.head": Case({"statusCode": 200}),
    "webhook.unsigned": Case(refused(401, "not_authentic")),
    "webhook.forged": Case(refused(401, "not_authentic")),
    "webhook.stale": Case(refused(401, "not_authentic")),
    "webhook.malformed": Case(refused(400, "malformed", "no JSON")),
    "webhook.unknown_event": Case(refused(400, "malformed", "neither an S3 envelope")),
    "webhook.incomplete": Case(
        http(
            202,
            accepted=[{"key": "orchard.jsonl", "run_id": Saying("")}],
            ignored=[],
            malformed=[{"event": 1, "reason": Saying("$[1].object.eTag")}],
        )
    ),
    "upload.first": Case(
        step("waiting"),
        given=dropped("orchard.jsonl"),
        then=both(one_file, reported("report.json"), in_the_ledger(state="waiting", examples=66, provider="openai")),
    ),
    "upload.after_wait": Case(step("waiting"), given=upload_throttled, then=one_file),
    "upload.broken": Case(
        {"run_id": Saying(""), "state": "rejected", "error": error("invalid_json", "line 3")},
        given=dropped("broken.jsonl"),
        then=both(no_file, reported("report.json")),
    ),
    "upload.empty": Case(
        {"run_id": Saying(""), "state": "rejected", "error": error("empty_file", "there is no example in the file")},
        given=lambda world, _: world.client("s3").put_object(Bucket=world.bucket, Key="empty.jsonl", Body=b""),
        then=no_file,
    ),
    "upload.duplicate": Case(
        {"run_id": Saying(""), "state": "duplicate", "error": error("duplicate", RUN)},
        given=uploaded_and_known,
        then=lambda world, _: one_file(world, sample("upload.first")),
    ),
    "upload.overwritten": Case(
        {"run_id": Saying(""), "state": "superseded", "error": error("object_changed", "orders.jsonl was overwritten")},
        given=dropped("orders.jsonl"),
        then=no_file,
    ),
    "upload.gone": Case(
        {"run_id": Saying(""), "state": "missing", "error": error("object_missing", "gone.jsonl is no longer")},
        then=no_file,
    ),
    "publish_adapter.first": Case(
        {"run_id": Saying(""), "state": "succeeded", "fine_tuned_model": "orchard-desk"},
        given=adapter_dropped(CONFIG, WEIGHTS),
        then=one_finetune,
    ),
    "publish_adapter.after_wait": Case(
        {"run_id": Saying(""), "state": "succeeded", "fine_tuned_model": "orchard-desk"},
        given=config_came,
        then=one_finetune,
    ),
    "publish_adapter.invalid": Case(
        {"run_id": Saying(""), "state": "rejected", "error": error("rank_too_large", "adapter_config.json, r")},
        given=invalid_adapter,
        then=no_finetune,
    ),
    "publish_adapter.gone": Case(
        {"run_id": Saying(""), "state": "missing", "error": error("object_missing", "is no longer in the bucket")},
        then=no_finetune,
    ),
    "create_job.first": Case(step("training"), given=uploaded, then=one_job),
    "create_job.after_wait": Case(step("training"), given=creation_lost, then=one_job),
    "poll_status.first": Case(
        step("training", wait_seconds=Within(15, 900)), given=training, then=in_the_ledger(state="training")
    ),
    "poll_status.after_wait": Case(step("succeeded", fine_tuned_model=ANY_MODEL), given=ended("succeeded")),
    "callback.succeeded": Case(
        http(202, accepted="ftjob-8rT2mPq4wXy6zA1b"), given=waiting_for_its_job, then=nothing_to_wait_for
    ),
    "callback.unknown_job": Case(http(202, accepted="ftjob-Zk7cVb5nMq3sLd0f"), then=callback_is_remembered),
    "callback.other_event": Case(http(200, ignored="batch.completed")),
    "callback.unsigned": Case(refused(401, "not_authentic")),
    "callback.other_provider": Case(refused(401, "not_authentic")),
    "callback.malformed": Case(refused(400, "malformed", "{type, data: {id}}")),
    "collect.after_success": Case(
        final("succeeded", fine_tuned_model=ANY_MODEL, trained_tokens=Within(1, 1e9)),
        given=ended("succeeded"),
        then=reported("report.json", "job.json", "events.jsonl", "metrics.csv", "checkpoints.json"),
    ),
    "collect.after_rejection": Case(
        final("rejected", error("example_missing_assistant_message", "line 14"), cause="line 14", job_id=None),
        given=begun,
        then=in_the_ledger(state="rejected"),
    ),
    "collect.after_failure": Case(
        final("failed", error("Runtime.ExitError", "crashed again and again"), cause="crashed"),
        given=training,
        then=both(job_cancelled, in_the_ledger(state="failed")),
    ),
    "collect.before_first_step": Case(
        final("failed", error("Lambda.Unknown", "Lambda.Unknown"), cause="unexpectedly"),
        then=in_the_ledger(state="failed", file_id=None),
    ),
    "collect.after_cancellation": Case(
        final("cancelled", error("job_cancelled", "at the fine-tuning service"), cause="by somebody"),
        given=ended("cancelled"),
        then=both(job_cancelled, reported("report.json", "job.json", "events.jsonl", "checkpoints.json")),
    ),
    "collect.after_deadline": Case(
        final("timed_out", error("deadline", "168 hours"), cause="168 hours"),
        given=training,
        then=both(job_cancelled, in_the_ledger(state="timed_out")),
    ),
    "notify.final_state": Case(
        DELIVERED,
        given=in_the_queue,
        then=told("run.succeeded", run_id=RUN, state="succeeded", trained_tokens=19296, error=None),
    ),
    "notify.rejected": Case(
        DELIVERED, given=in_the_queue, then=told("run.rejected", error=error("invalid_json", "line 3"), job_id=None)
    ),
    "notify.known_alone": Case(
        DELIVERED, given=in_the_queue, then=told("run.succeeded", error=error("results_not_collected", "ready"))
    ),
    "notify.delayed": Case(
        DELIVERED,
        given=in_the_queue,
        then=told("run.delayed", message_id=f"msg_{RUN}_delayed", state="training", finished_at=None),
    ),
    "notify.model_found": Case(
        DELIVERED,
        given=in_the_queue,
        then=told(
            "run.model_found", message_id=f"msg_{RUN}_model_found", state="timed_out", fine_tuned_model=ANY_MODEL
        ),
    ),
    "reconcile.first": Case({"counts": Holding({}), "needs_a_person": False}),
    "reconcile.disagreeing": Case(
        {"counts": Holding({"lost_event": 2, "stuck_run": 2, "model_found": ANY_NUMBER}), "needs_a_person": True},
        given=disagreeing,
        then=put_right,
    ),
    "notify.again": Case(
        {"batchItemFailures": [{"itemIdentifier": "19dd0b57-b21e-4ac1-bd88-01bbb068cb78"}]},
        given=refused_once,
        then=out_of_sight,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_handler_answers_the_sample_event_as_documented(name: str, world: World) -> None:
    assert name in CASES, f"events/{name}.json has no expectation: add one to CASES"
    case = CASES[name]
    event = sample(name)
    case.given(world, event)
    before = world.executions() if name.startswith("webhook.") else {}

    answer = world.handle(name, event, case.environment)

    if isinstance(answer, dict) and "body" in answer:
        answer["body"] = json.loads(answer["body"])
    assert answer == case.answer
    case.then(world, event)
    if name.startswith("webhook."):
        begun_runs = [run["run_id"] for run in answer.get("body", {}).get("accepted", [])]
        after = world.executions()
        assert after.keys() - before.keys() == set(begun_runs)
        assert all(after[run_id]["run_id"] == run_id for run_id in begun_runs)


def test_no_expectation_without_its_sample_event() -> None:
    assert set(CASES) == set(FILES)


def test_every_function_has_a_sample_event() -> None:
    assert {name.partition(".")[0] for name in FILES} == set(FUNCTIONS)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("upload.", "collect."))])
def test_sample_of_a_step_has_the_id_and_the_etag_of_an_example(name: str) -> None:
    event = sample(name)
    moments = ("2026-03-05T09:30:01.284Z", "2026-03-05T13:00:00.000Z")
    ids = {run_id_of(event["bucket"], event["key"], event["etag"], moment) for moment in moments}
    example = EXAMPLES / event["key"].rpartition("/")[2]

    assert event["run_id"] in ids
    if name not in ("upload.overwritten", "upload.gone", "upload.empty"):
        assert event["etag"] == hashlib.md5(example.read_bytes(), usedforsecurity=False).hexdigest()
        assert event["size"] == example.stat().st_size


def test_samples_tell_one_run() -> None:
    """The notification's run is the one whose steps, and whose final state, the other samples are of."""
    notification = json.loads(sample("webhook.r2_put")["body"])
    stored = notification["object"]
    told_of = json.loads(sample("notify.final_state")["Records"][0]["body"])

    assert run_id_of(notification["bucket"], stored["key"], stored["eTag"], notification["eventTime"]) == RUN
    assert told_of["run_id"] == RUN
    assert clock.seconds(told_of["created_at"]) > clock.seconds(notification["eventTime"])


def test_samples_hold_the_documented_secret_alone() -> None:
    readme = (EVENTS / "README.md").read_text()
    tokens = {
        name: sample(name)["headers"].get("authorization", "")
        for name in FILES
        if name.startswith("webhook.") and name not in ("webhook.forged",)
    }

    assert SAMPLE_SECRET in readme
    assert set(tokens.values()) == {"", f"Bearer {SAMPLE_SECRET}"}
