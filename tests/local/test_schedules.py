import json
import queue

import pytest

from local.functions import Closed
from local.schedules import Schedule, Scheduler, seconds_of


class Functions:
    region, account = "us-east-1", "123456789012"

    def __init__(self, *, closed=False):
        self.invoked = queue.Queue()
        self.closed = closed

    def invoke(self, name, payload):
        self.invoked.put((name, json.loads(payload)))
        if self.closed:
            raise Closed


@pytest.mark.parametrize(
    ("rate", "seconds"), [("rate(1 hour)", 3600), ("rate(15 minutes)", 900), ("rate(2 days)", 172_800)]
)
def test_a_rate_is_so_many_seconds(rate, seconds):
    assert seconds_of(rate) == seconds


@pytest.mark.parametrize("expression", ["cron(0 * * * ? *)", "rate(1 week)", "at(2026-03-05T09:00:00)"])
def test_what_is_no_rate_is_not_known(expression):
    with pytest.raises(NotImplementedError, match="rates"):
        seconds_of(expression)


def test_a_function_is_invoked_at_its_rate_in_scaled_time():
    functions = Functions()
    with Scheduler(Schedule("Sweep", 3600), functions, 3600 / 0.05):
        names = [functions.invoked.get(timeout=10) for _ in range(3)]
    assert [name for name, _ in names] == ["Sweep"] * 3
    assert names[0][1]["source"] == "aws.scheduler"


def test_the_first_time_is_after_one_period_and_none_is_after_the_end():
    functions = Functions()
    Scheduler(Schedule("Sweep", 3600), functions, 3600 / 0.2).close()
    with pytest.raises(queue.Empty):
        functions.invoked.get(timeout=0.5)


def test_it_ends_with_its_functions():
    functions = Functions(closed=True)
    with Scheduler(Schedule("Sweep", 60), functions, 60 / 0.02):
        functions.invoked.get(timeout=10)
        with pytest.raises(queue.Empty):
            functions.invoked.get(timeout=0.2)
