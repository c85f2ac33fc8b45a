"""The sweeper: each situation, what it mends and reports of it, and that a second sweep finds nothing left to do."""

import json
import logging
from dataclasses import replace

import pytest
from tunedrop.create_job import create_job
from tunedrop.errors import Denied, Superseded, Throttled, Transient, Unauthorised
from tunedrop.limits import Limit
from tunedrop.providers import PROFILES
from tunedrop.reconcile import DAY, REPORT, SAFETY_SECONDS, Notifications, reconcile
from tunedrop.runs import FINAL, Failure, Run, RunRequest, swept_run_id

from tests.unit.fakes import (
    Broken,
    MemoryBucket,
    MemoryExecutions,
    MemoryLedger,
    MemoryProvider,
    MemoryRegistry,
    MemoryTopic,
)

A, B = "a" * 32, "b" * 32
KEY = "shop/orders.jsonl"
ADAPTER = "adapters/orchard-desk/adapter_model.safetensors"
HOUR = 3600
UNDER_WAY = ("validating_files", "queued", "paused", "a_new_word")


class World:
    """A stack in memory; runs in it are what tests make of them."""

    def __init__(self, clock):
        self.clock = clock
        self.ledger = MemoryLedger()
        self.executions = MemoryExecutions()
        self.adapters = MemoryExecutions()
        self.provider = MemoryProvider()
        self.bucket = MemoryBucket()
        self.topic = MemoryTopic()
        self.providers = MemoryRegistry(openai=self.provider)
        self.notifications = Notifications("datasets")
        self.left = iter(())

    def sweep(self, **parts):
        names = ("ledger", "executions", "adapters", "providers", "bucket", "topic")
        given = {name: getattr(self, name) for name in names}
        left = parts.pop("seconds_left", lambda: 900.0)
        return reconcile(self.notifications, **(given | parts), seconds_left=left)

    def counts(self, **parts):
        return self.sweep(**parts)["counts"]

    def found(self):
        return json.loads(self.bucket.objects[REPORT])["found"]

    def machine(self, key):
        """Where the webhook starts the run of an object."""
        return self.adapters if key == ADAPTER else self.executions

    def run(self, run_id=A, key=KEY, **fields):
        """A run that has an execution."""
        request = RunRequest(run_id, "datasets", key, "e1", 10)
        run = self.ledger.begin(Run.of(request))
        self.machine(key).start(request)
        return self.ledger.update(run_id, **fields) if fields else run

    def end(self, run_id=A, state="failed"):
        """Ends a run as the state machine does: its end is published, and its execution over."""
        error = None if state == "succeeded" else Failure("c", "a sentence")
        run = self.ledger.finish(run_id, state, error)
        self.machine(run.key).end(run_id, *(("SUCCEEDED",) if state == "succeeded" else ("FAILED", state)))
        return run

    def file(self, run_id=A, ending=".jsonl"):
        return self.provider.upload(run_id + ending, [b"x"], 1)

    def job(self, run_id=A, training_file=None, **changes):
        file_id = training_file or self.file(run_id).id
        job = self.provider.create_job(model="m", training_file=file_id, metadata={"run_id": run_id})
        self.provider.set_job(job.id, **changes)
        return self.provider.jobs[job.id]

    def status(self, job):
        return self.provider.jobs[job.id].status


@pytest.fixture
def world(clock):
    world = World(clock)
    world.sweep()  # the first of all
    clock.advance(HOUR)
    return world


def drop(world, key=KEY, body=b"x"):
    etag = world.bucket.put(key, body)
    return swept_run_id("datasets", key, etag, world.clock.at)


def test_where_everything_agrees_nothing_is_found(world, clock):
    run_id = swept_run_id("datasets", KEY, world.bucket.put(KEY, b"x"), clock.at)
    run = Run.of(RunRequest(run_id, "datasets", KEY, world.bucket.etag(KEY), 1))
    world.ledger.begin(run)
    world.executions.start(RunRequest.of(run))
    job = world.job(run_id)
    world.ledger.update(run_id, provider="openai", file_id=job.training_file, job_id=job.id)
    clock.advance(HOUR)
    assert world.counts() == {}
    world.provider.set_job(job.id, status="succeeded", fine_tuned_model="ft:x")
    world.end(run_id, "succeeded")
    for _ in range(3):
        clock.advance(2 * DAY)
        assert world.sweep() == {"counts": {}, "needs_a_person": False}
    assert world.provider.files_named(f"{run_id}.jsonl"), "a file that a job uses stays"
    assert world.topic.published == []


# Lost events


def test_a_dataset_that_no_run_began_on_is_started_as_its_event_would_have(world, clock):
    run_id = drop(world)
    clock.advance(SAFETY_SECONDS)
    assert world.counts() == {"lost_event": 1}
    assert world.found() == [{"kind": "lost_event", "alarm": False, "run_id": run_id, "key": KEY}]
    assert world.executions.running() == {run_id}
    run = world.ledger.get(run_id)
    assert (run.state, run.bucket, run.key, run.etag) == ("received", "datasets", KEY, world.bucket.etag(KEY))
    assert world.counts() == {}


@pytest.mark.parametrize("state", FINAL)
def test_a_dataset_whose_run_has_ended_is_not_run_again(world, clock, state):
    run_id = drop(world)
    clock.advance(HOUR)
    world.sweep()
    world.end(run_id, state)
    for _ in range(30):
        clock.advance(HOUR)
        assert world.counts() == {}
    assert list(world.executions.found) == [run_id]


def test_a_dataset_whose_event_has_come_is_not_started(world, clock):
    etag = world.bucket.put(KEY, b"x")
    clock.advance(5)
    world.ledger.begin(Run.of(RunRequest(A, "datasets", KEY, etag, 1)))
    world.end(A, "rejected")
    clock.advance(HOUR)
    assert world.counts() == {}


def test_the_same_content_dropped_again_is_another_event(world, clock):
    first = drop(world)
    clock.advance(HOUR)
    world.sweep()
    world.end(first, "rejected")
    clock.advance(120)
    again = drop(world)
    assert again != first
    clock.advance(HOUR)
    assert world.counts() == {"lost_event": 1}
    assert world.executions.running() == {again}


def test_a_young_object_is_left_to_its_event(world, clock):
    drop(world)
    clock.advance(SAFETY_SECONDS - 1)
    assert world.counts() == {}


def test_what_was_there_before_the_first_sweep_is_never_started(clock):
    world = World(clock)
    drop(world)
    clock.advance(HOUR)
    for _ in range(3):
        assert world.counts() == {}
        clock.advance(HOUR)


@pytest.mark.parametrize(
    "key",
    [
        "results/x/events.jsonl",
        "adapters/x/a.jsonl",
        "shop/orders.validation.jsonl",
        "shop/orders.job.json",
        "shop/notes.txt",
    ],
)
def test_what_starts_no_run_is_no_lost_event(world, clock, key):
    drop(world, key)
    clock.advance(HOUR)
    assert world.counts() == {}


def test_what_the_rule_of_notifications_leaves_out_is_no_lost_event(world, clock):
    world.notifications = Notifications("datasets", "shop/", ".train.jsonl")
    drop(world, "shop/a.jsonl")
    drop(world, "attic/a.train.jsonl")
    started = drop(world, "shop/a.train.jsonl")
    clock.advance(HOUR)
    assert world.counts() == {"lost_event": 1}
    assert world.executions.running() == {started}


def test_an_object_that_its_store_dates_back_is_found(world, clock):
    """As some date a large one by the beginning of its upload."""
    world.sweep()
    etag = world.bucket.put(KEY, b"x")
    world.bucket.modified[KEY] = clock.at - HOUR + 1
    clock.advance(HOUR)
    assert world.counts() == {"lost_event": 1}
    assert world.executions.running() == {swept_run_id("datasets", KEY, etag, world.bucket.modified[KEY])}


def test_a_lost_event_that_could_not_be_started_is_started_by_a_later_sweep(world, clock):
    run_id = drop(world)
    clock.advance(HOUR)
    broken = Broken(world.executions, "start", Transient("x"))
    assert world.counts(executions=broken) == {"failed": 1}
    clock.advance(HOUR)
    assert world.counts() == {"stuck_run": 1}
    assert world.executions.running() == {run_id}


def test_every_page_of_the_bucket_is_looked_at(world, clock):
    started = {drop(world, f"{name}.jsonl", name.encode()) for name in "abcdefg"}
    clock.advance(HOUR)
    assert world.counts() == {"lost_event": 7}
    assert world.executions.running() == started


# Adapters


PUBLISHING = [
    Notifications("datasets", adapters=True),
    Notifications("datasets", "a", adapters=True),
    Notifications("datasets", "shop/", ".train.jsonl", adapters=True),
]


@pytest.mark.parametrize("notifications", PUBLISHING, ids=["all", "a prefix of theirs", "another prefix"])
def test_an_adapter_that_no_run_began_on_is_published(world, clock, notifications):
    world.notifications = notifications
    run_id = drop(world, ADAPTER)
    clock.advance(HOUR)
    assert world.counts() == {"lost_event": 1}
    assert world.found() == [{"kind": "lost_event", "alarm": False, "run_id": run_id, "key": ADAPTER}]
    assert (world.adapters.running(), world.executions.running()) == ({run_id}, frozenset())
    assert world.counts() == {}


@pytest.mark.parametrize("prefix", ["", "adapters/"])
def test_an_adapter_is_not_published_where_the_stack_has_no_account(world, clock, prefix):
    world.notifications = Notifications("datasets", prefix)
    drop(world, ADAPTER)
    clock.advance(HOUR)
    assert world.counts() == {}


@pytest.mark.parametrize(
    "key", ["adapters/x/adapter_config.json", "adapters/x/y/adapter_model.safetensors", "adapters/x/a.train.jsonl"]
)
@pytest.mark.parametrize("notifications", PUBLISHING, ids=["all", "a prefix of theirs", "another prefix"])
def test_what_else_lies_among_adapters_is_no_lost_event(world, clock, notifications, key):
    world.notifications = notifications
    drop(world, key)
    clock.advance(HOUR)
    assert world.counts() == {}


def test_an_adapter_that_was_there_before_the_first_sweep_is_never_published(clock):
    world = World(clock)
    world.notifications = Notifications("datasets", "shop/", adapters=True)
    drop(world, ADAPTER)
    clock.advance(HOUR)
    for _ in range(3):
        assert world.counts() == {}
        clock.advance(HOUR)


def test_adapters_of_the_last_day_are_published_once_there_is_an_account_for_them(world, clock):
    drop(world, ADAPTER.replace("desk", "old"))
    clock.advance(DAY + HOUR)
    run_id = drop(world, ADAPTER)
    clock.advance(HOUR)
    assert world.counts() == {}
    world.notifications = Notifications("datasets", adapters=True)
    assert world.counts() == {"lost_event": 1}
    assert world.adapters.running() == {run_id}


@pytest.mark.parametrize(("prefix", "folder"), [("", ""), ("a", "az/"), ("aa/", "aa/"), ("shop/", "shop/")])
def test_every_page_of_datasets_and_adapters_is_looked_at_over_several_sweeps(world, clock, prefix, folder):
    world.notifications = Notifications("datasets", prefix, adapters=True)
    datasets = {drop(world, f"{folder}{name}.jsonl", name.encode()) for name in "abcdefghijklm"}
    adapters = {drop(world, ADAPTER.replace("desk", name), name.encode()) for name in "abcdefghijklm"}
    clock.advance(HOUR)
    for _ in range(20):
        assert world.counts(seconds_left=counting_down(300, 10)).get("lost_event", 0) < 10
        clock.advance(HOUR)
    assert (world.executions.running(), world.adapters.running()) == (datasets, adapters)
    assert world.counts() == {}


@pytest.mark.parametrize("notifications", [Notifications("datasets"), Notifications("datasets", adapters=True)])
def test_a_run_goes_on_in_the_machine_that_its_key_belongs_to(world, clock, notifications):
    """That of an adapter even where the stack has lost its account since: it ends there, and says why."""
    world.notifications = notifications
    world.run(A, KEY)
    world.run(B, ADAPTER)
    world.executions.end(A, "ABORTED")
    world.adapters.end(B, "ABORTED")
    clock.advance(HOUR)
    assert world.counts() == {"stuck_run": 2}
    assert (world.executions.running(), world.adapters.running()) == ({f"{A}-2"}, {f"{B}-2"})
    assert len(world.executions.found) == len(world.adapters.found) == 2
    clock.advance(HOUR)
    assert world.counts() == {}


def test_an_adapters_run_that_was_never_started_is_started_in_its_machine(world, clock):
    world.ledger.begin(Run.of(RunRequest(A, "datasets", ADAPTER, "e1", 1)))
    clock.advance(HOUR)
    assert world.counts() == {"stuck_run": 1}
    assert (world.executions.running(), world.adapters.running()) == (frozenset(), {A})


def test_adapters_executions_that_run_are_not_looked_at_one_by_one(world, clock):
    world.run(key=ADAPTER)
    clock.advance(HOUR)
    assert world.counts(adapters=Broken(world.adapters, "look", Transient("x"))) == {}


@pytest.mark.parametrize("state", ["succeeded", "rejected"])
def test_an_adapters_end_is_settled_once_it_was_published(world, clock, state):
    world.run(key=ADAPTER)
    world.end(A, state)
    world.adapters.end(A, "FAILED", "SNS.SnsException")
    clock.advance(HOUR)
    assert world.counts() == {"unpublished_run": 1}
    assert world.adapters.running() == {f"{A}-2"}
    world.adapters.end(f"{A}-2", *(("SUCCEEDED",) if state == "succeeded" else ("FAILED", state)))
    clock.advance(HOUR)
    assert world.counts() == {}
    assert world.ledger.unsettled().items == []
    assert world.executions.found == {}


# What a run keeps of a service's limits

ONE_AN_HOUR = Limit.hourly("openai/m/jobs", 1)


@pytest.fixture
def slot(world):
    """The slot of the run A, which is the second to have one."""
    for run_id in (B, A):
        world.run(run_id)
        slot = world.ledger.reserve(run_id, "job", ONE_AN_HOUR)
    return slot


def next_slot(world):
    world.run("c" * 32)
    return world.ledger.reserve("c" * 32, "job", ONE_AN_HOUR)


def test_the_slot_of_a_run_whose_end_the_machine_alone_has_recorded_is_given_back(world, clock, slot):
    world.end(A, "failed")
    clock.advance(SAFETY_SECONDS)
    assert world.counts() == {}
    assert next_slot(world) == slot


def test_the_slot_of_a_run_whose_end_is_told_again_is_given_back(world, clock, slot):
    world.end(A, "failed")
    world.executions.end(A, "FAILED", "SNS.SnsException")
    clock.advance(SAFETY_SECONDS)
    assert world.counts() == {"unpublished_run": 1}
    assert next_slot(world) == slot


def test_the_slot_of_a_run_that_ended_before_executions_are_remembered_is_given_back(world, clock):
    rare = Limit("openai/m/jobs", 1, 365 * DAY * 1000)
    for run_id in (B, A):
        world.run(run_id)
        slot = world.ledger.reserve(run_id, "job", rare)
    world.ledger.finish(A, "failed", Failure("c", "m"))
    world.executions.found.clear()
    clock.advance(100 * DAY)
    world.sweep()
    world.run("c" * 32)
    assert world.ledger.reserve("c" * 32, "job", rare) == slot


def test_a_run_that_is_taken_up_keeps_its_slot(world, clock, slot):
    world.executions.end(A, "ABORTED")
    clock.advance(SAFETY_SECONDS)
    assert world.counts() == {"stuck_run": 1}
    assert next_slot(world).at > slot.at
    assert world.ledger.reserve(A, "job", ONE_AN_HOUR) == slot


# Stuck and untold runs


@pytest.mark.parametrize("status", ["ABORTED", "FAILED", "TIMED_OUT"])
@pytest.mark.parametrize("state", ["received", "uploading", "waiting", "training"])
def test_a_run_whose_execution_is_over_goes_on_in_another_one(world, clock, status, state):
    world.run(state=state)
    world.executions.end(A, status, "Some.Error")
    clock.advance(HOUR)
    assert world.counts() == {"stuck_run": 1}
    assert world.executions.running() == {f"{A}-2"}
    clock.advance(HOUR)
    assert world.counts() == {}


def test_a_run_that_was_never_started_is_started_under_its_own_name(world, clock):
    world.ledger.begin(Run.of(RunRequest(A, "datasets", KEY, "e1", 1)))
    clock.advance(HOUR)
    assert world.counts() == {"stuck_run": 1}
    assert world.executions.running() == {A}


def test_a_run_that_is_just_beginning_is_left_to_whoever_begins_it(world, clock):
    world.ledger.begin(Run.of(RunRequest(A, "datasets", KEY, "e1", 1)))
    clock.advance(SAFETY_SECONDS - 1)
    assert world.counts() == {}
    assert world.executions.found == {}


def test_executions_that_run_are_not_looked_at_one_by_one(world, clock):
    """Step Functions answers a thousand of them in a list, and fifteen such looks in a second."""
    world.run()
    clock.advance(HOUR)
    assert world.counts(executions=Broken(world.executions, "look", Transient("x"))) == {}


def test_a_sweeper_that_died_before_it_started_what_it_had_counted_starts_that(world, clock):
    world.run()
    world.executions.end(A, "ABORTED")
    world.ledger.next_execution(A, 1)
    clock.advance(HOUR)
    assert world.counts() == {"stuck_run": 1}
    assert world.executions.running() == {f"{A}-2"}


@pytest.mark.parametrize("error", ["SNS.SnsException", "States.Timeout", None])
@pytest.mark.parametrize("state", ["succeeded", "failed", "rejected"])
def test_an_end_that_was_not_published_is_told_by_another_execution(world, clock, state, error):
    world.run()
    world.end(A, state)
    world.executions.end(A, "FAILED" if error else "ABORTED", error)
    clock.advance(HOUR)
    assert world.counts() == {"unpublished_run": 1}
    assert world.executions.running() == {f"{A}-2"}
    world.executions.end(f"{A}-2", *(("SUCCEEDED",) if state == "succeeded" else ("FAILED", state)))
    clock.advance(HOUR)
    assert world.counts() == {}
    assert world.ledger.unsettled().items == []


def test_a_run_that_no_execution_ends_is_for_a_person(world, clock, caplog):
    world.run()
    for number in (1, 2, 3):
        world.executions.end(A if number == 1 else f"{A}-{number}", "FAILED", "States.Runtime")
        clock.advance(HOUR)
        swept = world.sweep()
        assert swept["counts"] == {"stuck_run": 1}
    assert swept["needs_a_person"]
    assert [record.alarm for record in caplog.records if hasattr(record, "alarm")] == ["sweep"]


def test_a_slow_execution_that_lives_wins(world, clock):
    """Whatever it looks like in the ledger, and for however long."""
    world.run(state="waiting")
    file = world.file()
    world.ledger.update(A, file_id=file.id)
    clock.advance(20 * DAY)
    jobs = [world.job(training_file=file.id) for _ in range(2)]
    clock.advance(HOUR)
    assert world.counts() == {}
    assert [world.status(job) for job in jobs] == ["validating_files"] * 2
    create_job(world.ledger.get(A), provider=world.provider, ledger=world.ledger)
    assert [world.status(job) for job in jobs] == ["validating_files", "cancelled"], "its own look keeps the oldest"
    assert world.counts() == {}


def test_an_execution_that_runs_though_the_list_does_not_show_it_wins(world, clock):
    class Lagging(MemoryExecutions):
        def running(self):
            return frozenset()

    world.executions = Lagging()
    world.run()
    clock.advance(HOUR)
    assert world.counts() == {}
    assert list(world.executions.found) == [A]


def test_a_run_that_ends_while_it_is_looked_at_is_left_as_it_ended(world, clock):
    world.run()
    world.executions.end(A, "ABORTED")
    clock.advance(HOUR)

    class Ending:
        """Ends the run after its execution was looked at."""

        def __getattr__(self, name):
            return getattr(world.executions, name)

        def look(self, run_id, number=1):
            found = replace(world.executions.look(run_id, number), status="FAILED", error="rejected")
            world.ledger.finish(A, "rejected", Failure("c", "m"))
            return found

    assert world.counts(executions=Ending()) == {}
    assert list(world.executions.found) == [A]


@pytest.mark.parametrize("after", [0, SAFETY_SECONDS - 1])
def test_what_ended_a_moment_ago_is_left_alone(world, clock, after):
    """A function may be at it still, when its execution is over already."""
    world.run()
    clock.advance(HOUR)
    world.executions.end(A, "ABORTED")
    clock.advance(after)
    assert world.counts() == {}


def test_a_run_that_ended_before_executions_are_remembered_is_settled(world, clock):
    world.ledger.begin(Run.of(RunRequest(A, "datasets", KEY, "e1", 1)))
    world.ledger.finish(A, "succeeded", None)
    clock.advance(100 * DAY)
    assert world.counts() == {}
    assert world.ledger.unsettled().items == []
    assert world.executions.found == {}


def test_two_sweeps_at_the_same_time_start_one_execution(world, clock):
    world.run()
    world.executions.end(A, "ABORTED")
    clock.advance(HOUR)
    second = []

    class Overlapping:
        """Has a second sweep run in the middle of the first one."""

        def __getattr__(self, name):
            return getattr(world.executions, name)

        def look(self, run_id, number=1):
            found = world.executions.look(run_id, number)
            if not second:
                second.append(world.sweep())
            return found

    world.sweep(executions=Overlapping())
    assert second == [{"skipped": True}]
    assert world.executions.running() == {f"{A}-2"}


def test_a_sweep_that_outlives_its_lease_starts_nothing_twice(world, clock):
    world.run()
    world.executions.end(A, "ABORTED")
    clock.advance(HOUR)

    class Outliving:
        def __getattr__(self, name):
            return getattr(world.executions, name)

        def look(self, run_id, number=1):
            found = world.executions.look(run_id, number)
            clock.advance(HOUR)
            assert world.counts() == {"stuck_run": 1}
            return found

    world.sweep(executions=Outliving())
    assert world.executions.running() == {f"{A}-2"}


# Jobs


@pytest.mark.parametrize(
    ("state", "status"),
    [
        *((state, "running") for state in FINAL if state != "succeeded"),
        *(("failed", status) for status in UNDER_WAY),
    ],
)
def test_a_job_that_runs_on_after_its_run_is_cancelled(world, clock, state, status):
    world.run()
    world.end(A, state)
    job = world.job(status=status)  # which has landed after the last look
    clock.advance(HOUR)
    assert world.sweep() == {"counts": {"unwanted_job": 1}, "needs_a_person": False}
    assert world.status(job) == "cancelled"
    clock.advance(HOUR)
    assert world.counts() == {}


def test_the_runs_own_job_is_cancelled_as_well_when_it_outlives_the_run(world, clock):
    job = world.job()
    world.run(job_id=job.id)
    world.end()
    clock.advance(HOUR)
    assert world.counts() == {"unwanted_job": 1}
    assert world.status(job) == "cancelled"


@pytest.mark.parametrize("state", ["failed", "timed_out", "cancelled"])
def test_a_model_that_is_ready_after_its_run_failed_is_told_once(world, clock, state, caplog):
    world.run()
    world.end(A, state)
    job = world.job(status="succeeded", fine_tuned_model="ft:found", trained_tokens=9)
    clock.advance(HOUR)
    assert world.sweep() == {"counts": {"model_found": 1}, "needs_a_person": True}
    [(kind, subject, told)] = world.topic.published
    assert (kind, subject) == ("model_found", "A model is ready after all: orders.jsonl")
    assert (told["notice"], told["run_id"], told["job_id"], told["fine_tuned_model"]) == (
        "model_found",
        A,
        job.id,
        "ft:found",
    )
    assert world.found()[0]["fine_tuned_model"] == "ft:found"
    clock.advance(HOUR)
    assert world.counts() == {}
    assert len(world.topic.published) == 1


def test_a_model_that_could_not_be_told_of_is_told_later(world, clock):
    world.run()
    world.end()
    world.job(status="succeeded", fine_tuned_model="ft:found")
    clock.advance(HOUR)
    assert world.counts(topic=Broken(world.topic, "publish", Transient("x"))) == {"failed": 1}
    assert world.counts() == {"model_found": 1}


def test_a_job_that_succeeds_before_it_is_cancelled_is_told(world, clock):
    world.run()
    world.end()
    job = world.job()
    clock.advance(HOUR)

    class Quick:
        def __getattr__(self, name):
            return getattr(world.provider, name)

        def cancel_job(self, job_id):
            world.provider.set_job(job_id, status="succeeded", fine_tuned_model="ft:quick")
            return world.provider.jobs[job_id]

    assert world.counts(providers=MemoryRegistry(openai=Quick())) == {"model_found": 1}
    assert world.status(job) == "succeeded"
    assert world.topic.published[0][2]["fine_tuned_model"] == "ft:quick"


@pytest.mark.parametrize("ended", [False, True])
def test_a_second_job_of_a_run_that_has_one_is_cancelled_with_an_alarm(world, clock, ended):
    file = world.file()
    own, other = world.job(training_file=file.id), world.job(training_file=file.id)
    world.run(job_id=own.id, file_id=file.id)
    if ended:
        world.provider.set_job(own.id, status="succeeded", fine_tuned_model="ft:x")
        world.end(A, "succeeded")
    clock.advance(HOUR)
    assert world.sweep() == {"counts": {"surplus_job": 1}, "needs_a_person": True}
    assert (world.status(own), world.status(other)) == ("succeeded" if ended else "validating_files", "cancelled")
    clock.advance(HOUR)
    assert world.counts() == {}


def test_the_job_that_a_run_follows_is_kept_though_an_older_one_shows(world, clock):
    file = world.file()
    older = world.job(training_file=file.id)
    clock.advance(60)
    own = world.job(training_file=file.id)
    world.run(job_id=own.id)
    clock.advance(HOUR)
    assert world.counts() == {"surplus_job": 1}
    assert (world.status(older), world.status(own)) == ("cancelled", "validating_files")


def test_a_run_paid_twice_is_reported_once(world, clock):
    file = world.file()
    own = world.job(training_file=file.id, status="succeeded", fine_tuned_model="ft:own")
    world.job(training_file=file.id, status="succeeded", fine_tuned_model="ft:other")
    world.run(job_id=own.id)
    world.end(A, "succeeded")
    clock.advance(HOUR)
    assert world.sweep() == {"counts": {"surplus_job": 1}, "needs_a_person": True}
    clock.advance(HOUR)
    assert world.counts() == {}
    assert world.topic.published == []


def test_a_young_job_is_not_cancelled(world, clock):
    world.run()
    world.end()
    clock.advance(HOUR)
    job = world.job()
    clock.advance(SAFETY_SECONDS - 1)
    assert world.counts() == {}
    assert world.status(job) == "validating_files"


def test_a_job_of_a_run_that_has_ended_a_moment_ago_is_left_to_it(world, clock):
    job = world.job()
    world.run(job_id=job.id)
    clock.advance(HOUR)
    world.end()
    assert world.counts() == {}


def test_what_carries_the_mark_of_another_stack_is_left_alone(world, clock):
    job = world.job(B)
    clock.advance(3 * DAY)
    assert world.counts() == {"of_another_stack": 1}
    assert world.status(job) == "validating_files"
    assert world.provider.files_named(f"{B}.jsonl")


def test_a_job_without_our_mark_is_left_alone_even_on_our_file(world, clock):
    """Somebody may train on it by hand, at the service."""
    file = world.file()
    world.run(file_id=file.id)
    world.end()
    job = world.provider.create_job(model="m", training_file=file.id)
    clock.advance(3 * DAY)
    assert world.counts() == {}
    assert world.provider.jobs[job.id].status == "validating_files"
    assert world.provider.files_named(f"{A}.jsonl")


@pytest.mark.parametrize("recorded", [False, True])
def test_where_a_service_takes_no_metadata_the_training_file_is_the_mark(world, clock, recorded):
    provider = MemoryProvider()
    provider.profile = PROFILES["nebius"]
    world.provider, world.providers = provider, MemoryRegistry(nebius=provider)
    world.run(provider="nebius")
    file = world.file()
    job = provider.create_job(model="m", training_file=file.id)
    if recorded:
        world.ledger.join(f"nebius/{job.id}", A)
        provider.delete_file(file.id)
    world.end()
    foreign = provider.create_job(model="m", training_file=provider.upload("data.jsonl", [b"x"], 1).id)
    clock.advance(HOUR)
    assert world.counts() == {"unwanted_job": 1}
    assert (provider.jobs[job.id].status, provider.jobs[foreign.id].status) == ("cancelled", "validating_files")


def test_a_job_is_its_runs_own_services(world, clock):
    """Two profiles may lead to one account."""
    other = MemoryProvider()
    world.providers = MemoryRegistry(openai=other, lab=world.provider)
    world.run(provider="lab")
    world.end()
    twin = world.job()
    other.jobs[twin.id] = twin
    clock.advance(HOUR)
    assert world.counts() == {"unwanted_job": 1}
    assert (world.status(twin), other.jobs[twin.id].status) == ("cancelled", "validating_files")


def test_every_page_of_jobs_is_looked_at(world, clock):
    world.run()
    world.end()
    jobs = [world.job() for _ in range(7)]
    clock.advance(HOUR)
    assert world.counts() == {"unwanted_job": 7}
    assert {world.status(job) for job in jobs} == {"cancelled"}


def test_a_creation_that_left_no_job_is_settled_after_a_day(world, clock):
    world.run()
    world.ledger.intend(A, "create_job")
    world.end(A, "timed_out")
    clock.advance(DAY - HOUR)
    assert world.counts() == {}
    assert [found.run.run_id for found in world.ledger.unsettled().items] == [A]
    clock.advance(2 * HOUR)
    assert world.counts() == {"creation_without_a_job": 1}
    assert world.ledger.intend(A, "create_job") is None, "the intent was taken back"
    assert world.ledger.unsettled().items == []
    assert world.counts() == {}


# Files


@pytest.mark.parametrize("ending", [".jsonl", ".validation.jsonl"])
@pytest.mark.parametrize("state", ["cancelled", "failed", "duplicate"])
def test_a_file_that_no_job_uses_is_deleted_a_day_after_its_runs_end(world, clock, state, ending):
    world.run()
    file = world.file(ending=ending)
    clock.advance(DAY)
    world.end(A, state)
    clock.advance(DAY - HOUR)
    assert world.counts() == {}
    clock.advance(2 * HOUR)
    assert world.counts() == {"orphaned_file": 1}
    assert world.provider.files_named(file.name) == []
    assert world.counts() == {}


def test_a_file_that_landed_late_is_deleted_when_it_is_a_day_old(world, clock):
    world.run()
    world.end()
    clock.advance(2 * DAY)
    world.file()
    clock.advance(DAY - HOUR)
    assert world.counts() == {}
    clock.advance(2 * HOUR)
    assert world.counts() == {"orphaned_file": 1}


def test_a_file_of_a_run_under_way_stays(world, clock):
    world.run()
    file = world.file()
    clock.advance(5 * DAY)
    assert world.counts() == {}
    assert world.provider.files_named(file.name)


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "running"])
def test_a_file_that_any_job_uses_stays(world, clock, status):
    world.run()
    training, validation = world.file(), world.file(ending=".validation.jsonl")
    job = world.job(training_file=training.id, status=status)
    world.provider.set_job(job.id, document={"validation_file": validation.id})
    world.end()
    clock.advance(5 * DAY)
    assert "orphaned_file" not in world.counts()
    assert world.provider.files_named(training.name)
    assert world.provider.files_named(validation.name)


@pytest.mark.parametrize("name", ["data.jsonl", f"{A}.jsonl.jsonl", f"x{A}.jsonl", f"{A.upper()}.jsonl", f"{A}.csv"])
def test_a_file_that_is_not_ours_stays(world, clock, name):
    world.run()
    world.end()
    world.provider.upload(name, [b"x"], 1)
    clock.advance(5 * DAY)
    assert world.counts() == {}
    assert world.provider.files_named(name)


def test_no_file_is_deleted_while_not_all_jobs_were_seen(world, clock):
    world.run()
    world.file()
    world.end()
    clock.advance(5 * DAY)
    broken = Broken(world.provider, "jobs_listed", Transient("x"))
    assert world.counts(providers=MemoryRegistry(openai=broken)) == {"failed": 1}
    assert world.provider.files_named(f"{A}.jsonl")


def test_no_file_is_deleted_where_jobs_were_listed_from_the_middle_on(world, clock):
    world.run()
    seen_before = world.job(status="failed")
    world.end()
    clock.advance(5 * DAY)
    sweep = world.ledger.begin_sweep(60)
    sweep.cursors["jobs of openai"] = seen_before.id
    world.ledger.end_sweep(sweep)
    assert world.counts() == {}
    assert world.provider.files_named(f"{A}.jsonl")


def test_the_file_that_the_listing_goes_on_from_is_kept_until_then(world, clock):
    world.run()
    for _ in range(5):
        world.file()
    world.end()
    clock.advance(5 * DAY)
    broken = Broken(world.provider, "files_listed", Transient("x"), skip=1)
    assert world.counts(providers=MemoryRegistry(openai=broken)) == {"failed": 1, "orphaned_file": 1}
    assert world.counts() == {"orphaned_file": 3}
    assert world.counts() == {"orphaned_file": 1}


def test_every_page_of_files_is_looked_at(world, clock):
    world.run()
    for _ in range(7):
        world.file()
    world.end()
    clock.advance(5 * DAY)
    assert world.counts() == {"orphaned_file": 7}


# What goes wrong, and what takes long


@pytest.mark.parametrize("error", [Transient("x"), Throttled("x", 1), Unauthorised("x"), Denied("c", "m")])
def test_one_service_that_fails_does_not_stop_the_others(world, clock, error):
    failing = Broken(MemoryProvider(), "jobs_listed", error)
    world.providers = MemoryRegistry(lab=failing, openai=world.provider)
    world.run(provider="openai")
    world.end()
    world.job()
    lost = drop(world)
    clock.advance(HOUR)
    assert world.counts() == {"failed": 1, "unwanted_job": 1, "lost_event": 1}
    assert world.executions.running() == {lost}
    assert [found["what"] for found in world.found() if found["kind"] == "failed"] == ["jobs of lab"]


@pytest.mark.parametrize(
    ("part", "method", "what"),
    [
        ("ledger", "unsettled", "runs"),
        ("executions", "running", "executions"),
        ("adapters", "running", "executions"),
        ("bucket", "listed", "objects"),
        ("providers", "configured", "providers"),
    ],
)
def test_what_fails_stops_nothing_else(world, clock, part, method, what):
    world.run(A)
    world.executions.end(A, "ABORTED")
    drop(world)
    clock.advance(HOUR)
    counts = world.counts(**{part: Broken(getattr(world, part), method, Transient("x"))})
    assert counts.pop("failed") == 1
    assert [found["what"] for found in world.found() if found["kind"] == "failed"] == [what]
    clock.advance(HOUR)
    both = counts.keys() | world.counts().keys()
    assert both == {"stuck_run", "lost_event"}


def test_one_thing_that_fails_stops_no_other(world, clock):
    world.run()
    world.end()
    jobs = [world.job() for _ in range(3)]
    clock.advance(HOUR)
    broken = Broken(world.provider, "cancel_job", Denied("c", "m"))
    assert world.counts(providers=MemoryRegistry(openai=broken)) == {"failed": 1, "unwanted_job": 2}
    assert sorted(world.status(job) for job in jobs) == ["cancelled", "cancelled", "validating_files"]


@pytest.mark.parametrize("error", [Throttled("x", 1), Unauthorised("x")])
def test_a_service_that_wants_to_be_left_alone_is(world, clock, error):
    world.run()
    world.end()
    jobs = [world.job() for _ in range(3)]
    clock.advance(HOUR)
    broken = Broken(world.provider, "cancel_job", error, times=10)
    assert world.counts(providers=MemoryRegistry(openai=broken)) == {"failed": 1}
    assert world.counts() == {"unwanted_job": len(jobs)}


def test_what_passes_needs_a_person_once_it_has_failed_twice(world):
    def broken():
        return MemoryRegistry(openai=Broken(world.provider, "jobs_listed", Transient("x")))

    assert not world.sweep(providers=broken())["needs_a_person"]
    assert world.sweep(providers=broken())["needs_a_person"]
    assert not world.sweep()["needs_a_person"]
    assert not world.sweep(providers=broken())["needs_a_person"]


def test_what_does_not_pass_needs_a_person_at_once(world):
    broken = MemoryRegistry(openai=Broken(world.provider, "jobs_listed", Unauthorised("x")))
    assert world.sweep(providers=broken)["needs_a_person"]


def test_a_report_that_cannot_be_written_is_no_reason_to_fail(world, clock):
    drop(world)
    clock.advance(HOUR)
    swept = world.sweep(bucket=Broken(world.bucket, "write", Superseded("c", "m")))
    assert swept == {"counts": {"lost_event": 1, "failed": 1}, "needs_a_person": True}


def counting_down(start, step):
    """A function's time: each look at it costs ``step`` seconds."""
    left = [start + step]

    def seconds_left():
        left[0] -= step
        return left[0]

    return seconds_left


def test_a_sweep_that_has_too_little_time_is_gone_on_with(world, clock):
    """Listings that are never read to their end in one sweep are, over several."""
    started = {drop(world, f"{number:02}.jsonl", b"%d" % number) for number in range(20)}
    world.run()
    world.end()
    jobs = [world.job() for _ in range(20)]
    clock.advance(HOUR)
    sweeps = 0
    while world.executions.running() != started or any(world.status(job) != "cancelled" for job in jobs):
        counts = world.counts(seconds_left=counting_down(300, 5))
        assert counts["not_finished"]
        assert counts.get("lost_event", 0) < 20
        clock.advance(HOUR)
        sweeps += 1
        assert sweeps < 20
    for _ in range(4):
        world.sweep()
        clock.advance(HOUR)
    assert world.counts() == {}


def test_an_unfinished_pass_of_the_bucket_is_not_taken_for_a_whole_one(world, clock):
    drop(world, "z.jsonl")
    clock.advance(HOUR)
    for _ in range(40):  # for longer than the bucket is looked back at
        world.sweep(seconds_left=lambda: 1.0)
        clock.advance(HOUR)
    assert world.counts() == {"lost_event": 1}


def test_a_cursor_that_leads_nowhere_is_forgotten(world, clock):
    for number in range(6):
        world.job(status="failed", id=f"ftjob-{number}")
    sweep = world.ledger.begin_sweep(60)
    sweep.cursors["jobs of openai"] = "ftjob-gone"
    world.ledger.end_sweep(sweep)
    assert world.counts() == {"failed": 1}
    assert world.counts() == {}


def test_the_log_has_one_line_with_the_counts(world, clock, caplog):
    caplog.set_level(logging.INFO, "tunedrop")
    drop(world)
    clock.advance(HOUR)
    world.sweep()
    [record] = caplog.records
    assert (record.message, record.lost_event) == ("swept", 1)


def test_the_report_is_the_latest_and_lists_so_many(world, clock, monkeypatch):
    monkeypatch.setattr("tunedrop.reconcile.LISTED_IN_THE_REPORT", 3)
    for number in range(5):
        drop(world, f"{number}.jsonl", b"%d" % number)
    clock.advance(HOUR)
    world.sweep()
    report = json.loads(world.bucket.objects[REPORT])
    assert report["counts"] == {"lost_event": 5}
    assert len(report["found"]) == 3
    clock.advance(HOUR)
    world.sweep()
    assert json.loads(world.bucket.objects[REPORT])["counts"] == {}
