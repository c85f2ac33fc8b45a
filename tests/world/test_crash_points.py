"""Every place at which a function can die between two effects: before and after each call of each adapter.

Nothing in the product marks these places. They are found by watching a run: whatever it asks of a service crosses an
edge, and is named by the function, the adapter's method and the call. A run is then taken through again with a death at
each of them, and at each pair of them.
"""

import itertools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import pytest
from msgspec.structs import replace
from tunedrop.bucket import Bucket
from tunedrop.ledger import Ledger
from tunedrop.provider import Provider
from tunedrop.providers import PROFILES, ProviderProfile

from tests.world import edges, processes, world
from tests.world.cloud import Cloud
from tests.world.edges import Crossing
from tests.world.service import CREATIONS, Limit
from tests.world.worker import Worker

PAIRS = int(os.environ.get("PAIRS", "40"))
"""So many pairs of places of each story, taken by chance; `make soak` takes more."""


def ordinary(cloud: Cloud) -> None:
    cloud.callbacks = 2
    cloud.store.put("a.validation.jsonl", world.dataset("validation", 3))
    cloud.store.put("a.job.json", b'{"suffix": "song", "smoke_test": true}')
    cloud.drop("a.jsonl", world.dataset("a"))


def dropped_again(cloud: Cloud) -> None:
    cloud.drop("a.jsonl", world.dataset("a"))
    cloud.timers.after(100, lambda: cloud.drop("b.jsonl", world.dataset("a")))


def rejected(cloud: Cloud) -> None:
    cloud.drop("a.jsonl", world.dataset("a", 9))


def failing(cloud: Cloud) -> None:
    cloud.service.outcomes.append("failed")
    cloud.drop("a.jsonl", world.dataset("a"))


def deleted(cloud: Cloud) -> None:
    cloud.drop("a.jsonl", world.dataset("a"))
    cloud.timers.after(300, lambda: cloud.delete("a.jsonl"))


def answered_late(cloud: Cloud) -> None:
    cloud.service.odd = 1.0
    cloud.drop("a.jsonl", world.dataset("a"))


def throttled(cloud: Cloud) -> None:
    cloud.service.limits[CREATIONS] = Limit(1, 3600)
    cloud.drop("a.jsonl", world.dataset("a"))
    cloud.drop("b.jsonl", world.dataset("b"))


def two(cloud: Cloud) -> None:
    cloud.drop("a.jsonl", world.dataset("a"))
    cloud.drop("b.jsonl", world.dataset("b"))


@dataclass(frozen=True)
class Story:
    """What happens, and the states that its runs end in: one of those said, each in alphabetical order."""

    begin: Callable[[Cloud], None]
    ends: tuple[str, ...]
    on_deletion: str = "ignore"
    profile: ProviderProfile = PROFILES["openai"]


STORIES = {
    "ordinary": Story(ordinary, ("succeeded",)),
    "dropped again": Story(dropped_again, ("duplicate succeeded",)),
    "rejected": Story(rejected, ("rejected",)),
    "failing": Story(failing, ("failed",)),
    "deleted": Story(deleted, ("cancelled", "missing"), on_deletion="cancel"),  # a death may keep it from being read
    "answered late": Story(answered_late, ("succeeded",)),
    "throttled": Story(
        throttled, ("succeeded succeeded",), profile=replace(PROFILES["openai"], creations_per_hour=None)
    ),
    "one at a time": Story(
        two, ("succeeded succeeded",), profile=replace(PROFILES["openai"], concurrent_jobs=1, creations_per_hour=1)
    ),
}


class Watch:
    """Names the crossings of a run, and kills at those of the given names, one after the other."""

    def __init__(self, *doomed: str) -> None:
        self.places: dict[str, None] = {}
        self._doomed = list(doomed)

    def __call__(self, crossing: Crossing) -> None:
        place = f"{Worker.function} {edges.asked_by()} {crossing}"
        self.places[place] = None
        if self._doomed and place == self._doomed[0]:
            del self._doomed[0]
            raise world.Killed


def told(story: Story, *doomed: str) -> tuple[Watch, Cloud]:
    """The story from its beginning to the end of its runs, with these deaths in it."""
    watch = Watch(*doomed)
    with world.made(0, watch, story.profile) as made, patch.dict(os.environ, {"ON_DELETION": story.on_deletion}):
        story.begin(made.cloud)
        made.run()
    return watch, made.cloud


def assert_well(story: Story, cloud: Cloud) -> None:
    assert not cloud.problems()
    assert " ".join(sorted(states[0] for states in cloud.told.values())) in story.ends


@pytest.fixture(scope="module", params=STORIES)
def watched(request):
    """A story, and the places of its runs in the order in which they first come to each."""
    story = STORIES[request.param]
    watch, cloud = told(story)
    assert_well(story, cloud)
    return story, list(watch.places)


def test_a_death_at_any_place_loses_nothing_and_pays_nothing_twice(watched):
    story, places = watched
    for place in places:
        _, cloud = told(story, place)
        assert_well(story, cloud)


def test_two_deaths_at_any_places_lose_nothing_and_pay_nothing_twice(watched):
    story, places = watched
    pairs = list(itertools.product(places, places))
    for first, second in random.Random(0).sample(pairs, min(PAIRS, len(pairs))):
        _, cloud = told(story, first, second)
        assert_well(story, cloud)


def test_no_call_of_an_adapter_is_left_out():
    crossed = set()
    for story in STORIES.values():
        for place in told(story)[0].places:
            _, asked_by, crossing = place.split(" ")
            crossed |= {asked_by, crossing.partition(":")[0]}
    wanted = {
        f"{module}.{name}"
        for module, protocol in (("ledger", Ledger), ("bucket", Bucket), ("provider", Provider))
        for name in vars(protocol)
        if not name.startswith("_") and callable(getattr(protocol, name))
    }
    others = {"executions.start", "executions.wake", "receiver.post", "secret_store.value"}
    assert others <= crossed
    assert wanted - crossed == set(NOT_HERE)


NOT_HERE = {
    "bucket.listed": "of the sweeper, which tests/unit/test_reconcile.py interrupts",
    "provider.jobs_listed": "likewise",
    "provider.files_listed": "likewise",
    "bucket.peek": "of adapters: tests/workflow/test_adapters.py kills there",
    "provider.begin_upload": "of large datasets: tests/unit/test_transfer.py kills there",
    "provider.add_part": "likewise",
    "provider.complete_upload": "likewise",
    "provider.cancel_upload": "likewise",
    "provider.delete_file": "of a file that came twice",
    "provider.chunks": "of adapters, which this service does not hand out",
    "bucket.write_stream": "likewise",
}


@pytest.fixture(scope="module")
def dying():
    """Real processes, which are killed where ``doomed`` says."""

    def die_at(place: str) -> Cloud:
        cloud = Cloud(0)
        deaths = 0
        with processes.Pool(cloud, 1, lambda number: _suicidal(place if number == 1 else "")) as pool:
            ordinary(cloud)
            while pool.step():
                pass
            deaths = pool.deaths
        assert deaths == 1, f"no worker died at {place}"
        return cloud

    return die_at


def _suicidal(place: str):
    def cross(crossing: Crossing) -> None:
        if f"{Worker.function} {edges.asked_by()} {crossing}" == place:
            os.kill(os.getpid(), 9)

    return cross


def test_a_real_kill_of_a_real_process_at_any_place_does_no_harm_either(dying):
    story = STORIES["ordinary"]
    watch, _ = told(story)
    for place in watch.places:
        cloud = dying(place)
        assert_well(story, cloud)
