"""Anything may happen at any moment: Hypothesis draws what and when, and shortens what went wrong."""

import logging
import os
import random
from collections import defaultdict
from contextlib import ExitStack
from importlib import import_module
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace
from tunedrop.executions import StepFunctionsExecutions
from tunedrop.ledger import DynamoLedger
from tunedrop.limits import Limit
from tunedrop.providers import PROFILES

from tests.world import service, world
from tests.world.cloud import FORGER_SECRET, Cloud
from tests.world.edges import Faults
from tests.world.interleaving import Interleaved
from tests.world.service import CREATIONS, ENDED, UPLOADS, Service
from tests.world.worker import installed

SEEDS = int(os.environ.get("SEEDS", "1"))
EXAMPLES = int(os.environ.get("EXAMPLES", "25"))
PROFILE = replace(PROFILES["openai"], creations_per_hour=3, files_per_hour=6)
HOUR = 3600.0
seeds = st.integers(0, 2**32 - 1)


class Pipeline(RuleBasedStateMachine):
    """The product among people who drop, overwrite, delete and cancel, and services that fail it."""

    @initialize(seed=seeds, on_deletion=st.sampled_from(["ignore", "cancel"]))
    def begin(self, seed, on_deletion):
        self.ends = {"succeeded", "duplicate", "superseded", "missing", "failed"}
        self.cloud = Cloud(seed)
        self.cloud.callbacks = 2
        self.cloud.service.limits = {CREATIONS: service.Limit(3, HOUR), UPLOADS: service.Limit(6, HOUR)}
        self.pipeline = Interleaved(self.cloud, Faults(0.0, seed))
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        made = installed(self.cloud.call, self.pipeline.cross, self.cloud.clock.now, PROFILE)
        self.pipeline.worker = self.stack.enter_context(made)
        patch.setenv("ON_DELETION", on_deletion)
        if on_deletion == "cancel":
            self.ends.add("cancelled")

    # People

    @rule(key=st.integers(0, 3), content=st.integers(0, 9), within=st.sampled_from([1, 60, 4000]))
    def drop(self, key, content, within):
        """Or overwrite; told of three times, in any order."""
        self.cloud.drop(f"{key}.jsonl", world.dataset(f"content {content}"), 3, within)

    @rule(first=st.integers(0, 9))
    def drop_many(self, first):
        for content in range(first, first + 5):
            self.cloud.drop(f"many {content}.jsonl", world.dataset(f"content {content}"), 3, 1)

    @rule(key=st.integers(0, 3))
    def delete(self, key):
        self.cloud.delete(f"{key}.jsonl")

    @precondition(lambda self: self.cloud.service.jobs)
    @rule(seed=seeds)
    def cancel_at_the_service(self, seed):
        self.ends.add("cancelled")
        self.cloud.service.cancel_job(random.Random(seed).choice(sorted(self.cloud.service.jobs)))

    @precondition(lambda self: self.cloud.service.jobs)
    @rule(seed=seeds, secret=st.sampled_from([FORGER_SECRET, None]))
    def call_back_without_reason(self, seed, secret):
        """Forged, or replayed before its time."""
        job_id = random.Random(seed).choice([*sorted(self.cloud.service.jobs), "ftjob-of-somebody-else"])
        event = {"type": "fine_tuning.job.succeeded", "data": {"id": job_id}}
        self.cloud.push("callback", event, **({"secret": secret} if secret else {}))

    # Time and work

    @rule(turns=st.integers(1, 2000), deaths=st.sampled_from([0.0, 0.001, 0.01]), seed=seeds)
    def go(self, turns, deaths, seed):
        self.pipeline.go(turns, random.Random(seed), deaths)

    @rule(seconds=st.sampled_from([1.0, 20.0, 100.0, 1000.0, 4000.0, 20_000.0]))
    def jump(self, seconds):
        self.pipeline.jump(seconds)

    # Trouble

    @precondition(lambda self: self.pipeline.under_way)
    @rule(seed=seeds)
    def kill(self, seed):
        self.pipeline.kill(random.Random(seed).choice(self.pipeline.under_way))

    @precondition(lambda self: self.pipeline.under_way)
    @rule(seed=seeds)
    def lose_an_answer(self, seed):
        self.pipeline.lose_answer(random.Random(seed).choice(self.pipeline.under_way))

    @rule(share=st.sampled_from([0.0, 0.01, 0.1]), odd=st.sampled_from([0.0, 0.1, 0.5]), seed=seeds)
    def fail(self, share, odd, seed):
        """From now on such a share of calls fails, and of creations goes in an odd way."""
        self.pipeline.faults = Faults(share, seed)
        self.cloud.service.odd = odd

    @rule()
    def a_job_will_fail(self):
        self.cloud.service.outcomes.append("failed")

    @rule()
    def rotate(self):
        self.cloud.rotate()

    @rule()
    def revoke_the_key(self):
        """Until somebody puts another one in: runs wait."""
        self.cloud.service.key = "another one"

    # What must hold

    def teardown(self):
        if not hasattr(self, "cloud"):
            return
        try:
            self.pipeline.faults = Faults(0.0, 0)
            self.cloud.service.odd = 0.0
            self.cloud.rotate()
            self.pipeline.settle()
            assert_well(self.cloud, self.ends)
        finally:
            for invocation in list(self.pipeline.under_way):
                self.pipeline.kill(invocation)
            self.stack.close()


def assert_well(cloud, ends):
    problems = cloud.problems()
    assert not problems, problems
    told = {state for states in cloud.told.values() for state in states}
    assert told <= ends, told - ends
    assert not [limit for limit in cloud.service.limits.values() if limit.refused], "a limit was exceeded"
    by_content = defaultdict(list)
    for at, job_id in cloud.service.creations:
        job = cloud.service.jobs[job_id]
        content = cloud.service.contents[job.training_file]
        by_content[content].append((at, cloud.service.ended_at[job_id], job.status))
    for jobs in by_content.values():
        for (_, ended_at, status), (at, _, _) in pairwise(sorted(jobs)):
            assert status in ENDED[1:], "trained on again after a success"
            assert ended_at <= at, "trained on twice at the same time"


def interleave(number, examples, phases):
    run_state_machine_as_test(
        seed(number)(Pipeline),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("number", range(SEEDS))
def test_whatever_happens_each_run_ends_once_and_each_dataset_is_paid_once(number):
    interleave(number, EXAMPLES, tuple(Phase))


def log_what_is_read(handle):
    def handler(event, context):
        print_to = logging.getLogger("tunedrop")
        print_to.warning("read %s", world.dataset("anything")[:200])
        return handle(event, context)

    return handler


MUTATIONS = {
    "no intent before the creation": (DynamoLedger, "intend", lambda intend: lambda *_: None),
    "no look before the creation": (Service, "jobs_on", lambda jobs_on: lambda *_: []),
    "a claim without its condition": (DynamoLedger, "claim", lambda claim: lambda self, content, run_id: run_id),
    "a limit that is off by one": (
        Limit,
        "hourly",
        lambda hourly: lambda name, calls: hourly(name, calls and calls + 1),
    ),
    "an event that is accepted and not handed over": (
        StepFunctionsExecutions,
        "start",
        lambda start: lambda self, request: start(self, request) if request.run_id < "8" else None,
    ),
    "a prompt in the log": ("functions.upload.handler", "handler", log_what_is_read),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_product_that_is_broken_is_found_out(monkeypatch, name):
    where, what, change = MUTATIONS[name]
    place = import_module(where) if isinstance(where, str) else where
    monkeypatch.setattr(place, what, change(getattr(place, what)))
    with pytest.raises((AssertionError, ExceptionGroup)):
        interleave(0, 10 * EXAMPLES, (Phase.generate,))
