"""A service that is strict about its limits: every run succeeds, none breaks a limit, and hardly a turn is lost."""

import json

import pytest

from tests.local.provider_support import lines
from tests.workflow.running import RunningStack, chat

PER_HOUR, HOURS = 4, 3
HOUR = 3600


@pytest.fixture(scope="module")
def strict():
    limits = {"creations_per_hour": PER_HOUR, "files_per_hour": 100}
    running = RunningStack("--set", f"Providers={json.dumps({'openai': limits})}", time_scale=600)
    running.provider("PATCH", "/manners", limits)
    yield running
    running.close()


def test_runs_that_queue_up_break_no_limit_and_use_it(strict):
    subjects = [lines(chat(f"limits {number}", line) for line in range(12)) for number in range(PER_HOUR * HOURS)]
    runs = [strict.drop(f"limits/{number}.jsonl", subject) for number, subject in enumerate(subjects)]

    assert {strict.ended(run_id, within=120).state for run_id in runs} == {"succeeded"}
    taken = strict.provider("GET", "/ledger")
    assert taken["breaches"] == []
    assert taken["most_in_an_hour"]["files"] == len(runs)
    created = [job["created_at"] for job in taken["jobs"]]
    assert len(created) == len(runs)
    assert max(created) - min(created) <= (HOURS - 1) * HOUR / 0.95, "at least 95 % of what is allowed"
