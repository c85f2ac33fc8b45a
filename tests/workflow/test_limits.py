"""A service that is strict about its limits: every run succeeds, none breaks a limit, and each goes in its turn."""

import json

import pytest

from tests.local.provider_support import lines
from tests.workflow.running import RunningStack, chat

PER_HOUR, HOURS = 2, 3
HOUR = 3600


@pytest.fixture(scope="module")
def strict():
    limits = {"creations_per_hour": PER_HOUR, "files_per_hour": 100}
    with RunningStack("--set", f"Providers={json.dumps({'openai': limits})}", time_scale=600) as running:
        running.provider("PATCH", "/manners", limits)
        yield running


def test_runs_that_queue_up_break_no_limit_and_use_it(strict):
    subjects = [lines(chat(f"limits {number}", line) for line in range(12)) for number in range(PER_HOUR * HOURS)]
    runs = [strict.drop(f"limits/{number}.jsonl", subject) for number, subject in enumerate(subjects)]

    assert {strict.ended(run_id, within=200).state for run_id in runs} == {"succeeded"}
    taken = strict.provider("GET", "/ledger")
    assert taken["breaches"] == []
    assert taken["most_in_an_hour"]["files"] == len(runs)
    created = [job["created_at"] for job in taken["jobs"]]
    assert len(created) == len(runs)
    # How much of the limit is used is measured where time is simulated: here a busy machine's delays count 600 times.
    assert (HOURS - 1) * HOUR <= max(created) - min(created) <= HOURS * HOUR
