"""Limits: never more calls than allowed in any hour, whatever delays, dies or comes back, and hardly fewer."""

import heapq
import itertools
import math
import random
from dataclasses import dataclass, replace

import pytest
from botocore.exceptions import ReadTimeoutError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tunedrop import clock as business
from tunedrop.errors import NotYet, Throttled, Transient
from tunedrop.ledger import DynamoLedger
from tunedrop.limits import CLOCKS_DIFFER, FILES, HOUR, JOBS, Limit, in_turn, limit_of, milliseconds
from tunedrop.providers import PROFILES, read_profiles
from tunedrop.runs import Run, RunRequest

from tests.unit.fakes import Broken, FakeTime, MemoryLedger
from tests.world.table import Table

HOUR_SECONDS = 3600
LONGEST_CALL = 150


# What the limits are


def test_openai_allows_ten_jobs_of_a_model_and_a_hundred_files_an_hour():
    assert limit_of(PROFILES["openai"], JOBS, "gpt-4.1").cells == 10
    assert limit_of(PROFILES["openai"], FILES).cells == 100


@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"openai"}))
def test_of_other_services_no_limit_is_known(name):
    assert limit_of(PROFILES[name], JOBS, "m").cells == limit_of(PROFILES[name], FILES).cells == 0


def test_a_stack_sets_limits_of_its_own():
    lab = read_profiles('{"lab": {"like": "litellm", "creations_per_hour": 3, "files_per_hour": null}}')["lab"]
    assert (limit_of(lab, JOBS, "m").cells, limit_of(lab, FILES).cells) == (3, 0)


def test_names_of_one_model_share_a_limit_and_other_models_services_and_endpoints_do_not():
    openai, azure = PROFILES["openai"], PROFILES["azure"]
    names = {
        limit_of(openai, JOBS, model).name
        for model in ("gpt-4.1", "gpt-4.1-2025-04-14", "ft:gpt-4.1-2025-04-14:org:suffix:id")
    }
    assert len(names) == 1
    others = {limit_of(openai, JOBS, "gpt-4.1-mini").name, limit_of(azure, JOBS, "gpt-4.1").name}
    assert len(names | others | {limit_of(openai, FILES).name}) == 4


def turns_of(limit):
    """How often a cell serves in an hour."""
    return round(HOUR / (limit.period - CLOCKS_DIFFER))


@given(st.integers(1, 2_500))
def test_a_limit_of_any_height_fits_into_an_item_and_is_nearly_all_there(calls):
    limit = Limit.hourly("n", calls)
    assert limit.cells <= 100
    assert 0.98 * calls <= limit.cells * turns_of(limit) <= calls


# Being let in


@pytest.fixture
def ledger(clock):
    ledger = MemoryLedger()
    for number in range(4):
        begin(ledger, str(number))
    return ledger


def begin(ledger, run_id):
    ledger.begin(Run.of(RunRequest(run_id, "b", "k", "e", 1)))


ONE = Limit.hourly("p/m/jobs", 1)


def enter(ledger, run_id, limit=ONE):
    with in_turn(run_id, "job", limit, LONGEST_CALL, ledger):
        return business.now()


def test_whose_turn_it_is_goes_in_and_the_next_is_told_when(ledger, clock):
    enter(ledger, "0")
    with pytest.raises(NotYet) as caught:
        enter(ledger, "1")
    assert caught.value.wait_seconds == pytest.approx(HOUR_SECONDS * 1.02, abs=2)
    clock.advance(math.ceil(caught.value.wait_seconds))
    enter(ledger, "1")


def test_a_429_is_told_to_all_for_as_long_as_it_says(ledger, clock):
    limit = Limit.hourly("p/m/jobs", 10)
    with pytest.raises(Throttled), in_turn("0", "job", limit, LONGEST_CALL, ledger):
        raise Throttled("m", 600)
    with pytest.raises(NotYet) as caught:
        enter(ledger, "1", limit)
    assert caught.value.wait_seconds == 600
    clock.advance(600)
    enter(ledger, "1", limit)


def test_a_429_where_no_limit_is_known_is_told_to_all_too(ledger, clock):
    unlimited = Limit.hourly("p/m/jobs", None)
    for run_id in ("0", "1"):
        enter(ledger, run_id, unlimited)
    with pytest.raises(Throttled), in_turn("2", "job", unlimited, LONGEST_CALL, ledger):
        raise Throttled("m", 60)
    with pytest.raises(NotYet) as caught:
        enter(ledger, "3", unlimited)
    assert caught.value.wait_seconds == 60


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_call_that_fails_is_over(ledger, clock, error):
    with pytest.raises(type(error)), in_turn("0", "job", ONE, LONGEST_CALL, ledger):
        raise error
    with pytest.raises(NotYet) as caught:
        enter(ledger, "0")
    assert caught.value.wait_seconds < HOUR_SECONDS * 1.02 + 2, "not as long as the longest call more"


def test_a_call_that_was_made_counts_even_if_the_ledger_cannot_note_its_end(ledger, caplog):
    enter(Broken(ledger, "settle", Transient("500")), "0")
    assert "could not be brought up to date" in caplog.text


def test_an_admission_whose_answer_is_lost_keeps_no_cell_shut(ledger, clock):
    with pytest.raises(Transient):
        enter(Broken(ledger, "admit", Transient("500"), after=True), "0")
    clock.advance(ONE.spacing / 1000)
    enter(ledger, "1")


def test_a_slot_that_could_not_be_noted_is_dealt_out_again(clock):
    table = Table()
    ledger = DynamoLedger(table, "ledger")
    for run_id in ("0", "1", "2"):
        begin(ledger, run_id)
    first = ledger.reserve("0", "job", ONE)
    silent = Broken(
        table, "update_item", ReadTimeoutError(endpoint_url="https://x"), skip=2
    )  # a ticket, a slot, a note
    with pytest.raises(Transient):
        DynamoLedger(silent, "ledger").reserve("1", "job", ONE)
    assert ledger.reserve("2", "job", ONE).at == first.at + ONE.spacing


@pytest.mark.parametrize("since", [0, 1000], ids=["now", "a second ago"])
def test_who_was_not_admitted_makes_no_call_even_if_the_cell_is_open_by_now(ledger, clock, since):
    with pytest.raises(NotYet) as caught:
        enter(Answering(ledger, admit=milliseconds(clock.at) - since), "0")
    assert caught.value.wait_seconds == 0


class Answering:
    """Hands every call on, but for what it answers itself."""

    def __init__(self, whole, **answers):
        self._whole, self._answers = whole, answers

    def __getattr__(self, name):
        if name in self._answers:
            return lambda *_: self._answers[name]
        return getattr(self._whole, name)


def test_nothing_is_called_while_the_ledger_is_away(ledger):
    for method in ("reserve", "admit"):
        with pytest.raises(Transient):
            enter(Broken(ledger, method, Transient("500")), "0")


# Many runs, for hours


@dataclass
class Trouble:
    """What befalls a run's calls: how long they and the way to them take in seconds, and how often they go wrong."""

    longest_call: float = 20
    latest: float = 30
    skew: float = CLOCKS_DIFFER / 2000
    dies: float = 0
    dies_reserving: float = 0
    cancelled: float = 0
    throttled: float = 0


class World:
    """A service and the runs that call it, on one clock; each run's own is a little off."""

    def __init__(self, limit, trouble, seed, ledger, time):
        self.limit, self.trouble, self.ledger, self.time = limit, trouble, ledger, time
        self.random = random.Random(seed)
        self.agenda = []
        self.order = itertools.count()
        self.began = time.at
        self.seen = []  # when the service saw a call
        self.asked = 0
        self.dead = []  # calls whose process has died: kept, since one that is collected would still come to its end

    def at(self, when, do, *arguments):
        heapq.heappush(self.agenda, (when, next(self.order), do, arguments))

    def drop(self, when, run_id):
        begin(self.ledger, run_id)
        self.at(when, self.turn, run_id)

    def run(self):
        while self.agenda:
            when, _, do, arguments = heapq.heappop(self.agenda)
            self.time.at = when + self.random.uniform(-1, 1) * self.trouble.skew
            do(when, *arguments)

    def late(self):
        return self.random.uniform(0, self.trouble.latest)

    def turn(self, when, run_id):
        self.asked += 1
        if self.random.random() < self.trouble.dies_reserving:
            self.ledger.reserve(run_id, "job", self.limit)
            self.ledger.lose(run_id, "job")
            self.at(when + self.late(), self.turn, run_id)
            return
        call = in_turn(run_id, "job", self.limit, LONGEST_CALL, self.ledger)
        try:
            call.__enter__()
        except NotYet as error:
            if self.random.random() < self.trouble.cancelled:
                self.at(when + self.random.uniform(0, error.wait_seconds), self.cancel, run_id)
            else:
                self.at(when + math.ceil(error.wait_seconds) + self.late(), self.turn, run_id)
            return
        takes = self.random.uniform(0, self.trouble.longest_call)
        dies = self.random.random() < self.trouble.dies
        if not dies or self.random.random() < 0.5:
            self.seen.append(when + self.random.uniform(0, takes))
        if dies:
            self.dead.append(call)
            self.at(when + takes + self.late(), self.turn, run_id)
        else:
            self.at(when + takes, self.end, call, run_id)

    def end(self, when, call, run_id):
        if self.random.random() >= self.trouble.throttled:
            call.__exit__(None, None, None)
            return
        error = Throttled("429", self.random.uniform(1, 3600))
        try:
            call.__exit__(Throttled, error, None)
        except Throttled:
            self.at(when + error.wait_seconds + self.late(), self.turn, run_id)

    def cancel(self, when, run_id):
        self.ledger.release(run_id)

    def most_in_an_hour(self):
        seen = sorted(self.seen)
        return max(sum(start <= at < start + HOUR_SECONDS for at in seen[i : i + 400]) for i, start in enumerate(seen))

    def utilisation(self, per_hour):
        """Of the calls that the time between the first and the last would have allowed."""
        rounds = math.ceil(len(self.seen) / self.limit.cells) - 1
        allowed = rounds * self.limit.cells
        return allowed / (per_hour * (max(self.seen) - min(self.seen)) / HOUR_SECONDS)


class ForgetfulLedger(MemoryLedger):
    def lose(self, run_id, use):
        """What a death between the reservation and its note does."""
        self._slots.pop((run_id, use), None)


@pytest.fixture
def time(monkeypatch):
    time = FakeTime(1_772_359_200.0)
    monkeypatch.setattr("tunedrop.clock.time", time)
    return time


chances = st.sampled_from([0, 0.05, 0.3])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    per_hour=st.sampled_from([1, 2, 10, 100, 130]),
    trouble=st.builds(
        Trouble,
        longest_call=st.sampled_from([1, 20, LONGEST_CALL]),
        latest=st.sampled_from([0, 30, 3000]),
        dies=chances,
        dies_reserving=chances,
        cancelled=chances,
        throttled=chances,
    ),
    spread=st.sampled_from([0, 3600, 20_000]),
    seed=st.integers(0, 1 << 32),
)
def test_no_hour_ever_sees_more_calls_than_the_limit_allows(time, per_hour, trouble, spread, seed):
    world = World(Limit.hourly("p/m/jobs", per_hour), trouble, seed, ForgetfulLedger(), time)
    for number in range(min(4 * per_hour, 200)):
        world.drop(world.began + world.random.uniform(0, spread), str(number))
    world.run()
    assert not world.seen or world.most_in_an_hour() <= per_hour


@pytest.mark.parametrize("per_hour", [1, 10, 100, 250])
@pytest.mark.parametrize("seed", range(3))
def test_queued_runs_use_at_least_95_percent_of_the_limit_and_are_asked_only_a_few_times(time, per_hour, seed):
    world = World(Limit.hourly("p/m/jobs", per_hour), Trouble(), seed, ForgetfulLedger(), time)
    count = 20 * per_hour if per_hour < 100 else 8 * per_hour
    for number in range(count):
        world.drop(world.began + world.random.uniform(0, 60), str(number))
    world.run()
    assert len(world.seen) == count
    assert world.most_in_an_hour() <= per_hour
    assert world.utilisation(per_hour) >= 0.95
    # Once to reserve, once to go; where a cell serves several calls an hour, being late shows more.
    assert world.asked <= (2.1 if per_hour <= 100 else 3) * count


def test_lost_slots_cost_no_more_than_themselves(time):
    trouble = replace(Trouble(), dies_reserving=0.1)
    world = World(Limit.hourly("p/m/jobs", 10), trouble, 1, ForgetfulLedger(), time)
    for number in range(200):
        world.drop(world.began, str(number))
    world.run()
    lost = world.asked - 2 * len(world.seen)
    assert len(world.seen) == 200
    assert world.utilisation(10) >= 0.95 * 200 / (200 + max(lost, 0) + 20)


# The double does what the table does


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "call", "die", "release", "close", "wait", "change"]),
        st.integers(0, 9),
        st.integers(0, 4000),
    ),
    max_size=25,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_the_double_deals_out_the_same_slots_as_the_table(time, limits_table, operations):
    time.at = 1_772_359_200.0
    answers = [list(played(operations, ledger, time)) for ledger in (MemoryLedger(), limits_table())]
    assert answers[0] == answers[1]


def played(operations, ledger, time):
    time.at = 1_772_359_200.0
    limit = Limit.hourly("p/m/jobs", 3)
    for number in range(10):
        begin(ledger, str(number))
    for what, number, seconds in operations:
        if what == "wait":
            time.advance(seconds)
        elif what == "change":
            limit = Limit.hourly("p/m/jobs", 1 + seconds % 5)
        elif what == "close":
            ledger.close(limit, milliseconds(time.at) + seconds)
        elif what == "release":
            ledger.release(str(number))
        else:
            over = milliseconds(time.at) + LONGEST_CALL * 1000
            slot = ledger.reserve(str(number), "job", limit)
            yield slot
            refused = ledger.admit(str(number), "job", slot, limit, over)
            yield refused
            if what == "call" and not refused:
                ledger.settle(slot, limit, over, milliseconds(time.at))


@pytest.fixture(scope="module")
def limits_table(aws):
    import boto3

    client = boto3.client("dynamodb")
    names = (f"limits-{number}" for number in itertools.count())

    def make():
        name = next(names)
        client.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        )
        return DynamoLedger(client, name)

    return make
