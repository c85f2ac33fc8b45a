"""`make soak`: ten thousand objects, everything failing now and then, workers killed all the time; a table at the end.

    python -m tests.world.soak [--objects 10000] [--seed 0] [--json]

The functions are the real ones, in real processes that are really killed. AWS, the bucket and the fine-tuning service
are those of :mod:`tests.world`. The exit status is 0 only if everything that the table promises holds.
"""

import argparse
import json
import math
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

from tunedrop.providers import PROFILES

from tests.world.cloud import Cloud
from tests.world.edges import Faults
from tests.world.processes import Pool
from tests.world.service import CREATIONS, UPLOADS, Limit
from tests.world.world import dataset

HOUR = 3600.0
SCALE = 3600.0
PATIENCE_SECONDS = 80.0  # below every time-out of a function, and of what the limits allow a call
NOTIFICATIONS_EACH = 3
SHARE_IN_THE_RUSH = 0.3
SHARE_OF_FAULTS = 0.01
LONGEST_SECONDS = 20 * 60.0
LEAST_USE = 0.95
PROFILE = PROFILES["openai"]


@dataclass(frozen=True)
class Result:
    """What came of it; times in real seconds unless they are said to be simulated."""

    objects: int
    notifications: int
    final_states: dict[str, int]
    lost: int
    paid_twice: int
    breaches: int
    most_creations_an_hour: int
    share_of_allowed_rate: float
    leaks: int
    told_under_one_id: int
    problems: list[str]
    kills: int
    calls: int
    most_states_of_a_run: int
    seconds: float
    stood_still_seconds: float
    simulated_hours: float
    cpu_seconds: float

    @property
    def is_well(self) -> bool:
        """Whether everything holds; the rate says something only over many hours."""
        used = self.share_of_allowed_rate >= LEAST_USE or self.objects < 3000
        return used and not (self.problems or self.lost or self.paid_twice or self.breaches or self.leaks)


def soak(
    objects: int,
    seed: int,
    *,
    scale: float = SCALE,
    workers: int = 3,
    kill_every: tuple[float, float] = (1.0, 5.0),
    longest_seconds: float = LONGEST_SECONDS,
) -> Result:
    """Drops so many objects, and lets all come to its end; kills a worker every so many real seconds."""
    cloud = Cloud(seed)
    cloud.cross = Faults(SHARE_OF_FAULTS, seed)
    cloud.service.odd = SHARE_OF_FAULTS
    cloud.service.limits = {
        CREATIONS: Limit(PROFILE.creations_per_hour or 0, HOUR),
        UPLOADS: Limit(PROFILE.files_per_hour or 0, HOUR),
    }
    cloud.callbacks, cloud.forgeries = 2, 1
    _drop(cloud, objects)
    chance = random.Random(seed)
    cpu, begun = _cpu(), time.monotonic()
    next_kill = begun + chance.uniform(*kill_every)
    next_rotation = begun + 10 * kill_every[1]
    patience = PATIENCE_SECONDS if math.isfinite(scale) else 0.0
    with Pool(cloud, workers, lambda number: Faults(SHARE_OF_FAULTS, seed + number), scale, patience) as pool:
        while pool.step():
            at = time.monotonic()
            if at > next_kill:
                pool.kill_one()
                next_kill = at + chance.uniform(*kill_every)
            if at > next_rotation:
                cloud.rotate()
                next_rotation = at + 10 * kill_every[1]
            if at > begun + longest_seconds:
                break
    seconds = time.monotonic() - begun
    return _result(cloud, objects, pool, seconds, _cpu() - cpu)


def _drop(cloud: Cloud, objects: int) -> None:
    """First a rush of a little more than may be uploaded in the time, then a little more than may be trained on in the
    time: so there is a queue at both limits, and never none at the second."""
    rush = round(SHARE_IN_THE_RUSH * objects)
    rushed = HOUR * rush / (1.2 * (PROFILE.files_per_hour or math.inf))
    rest = HOUR * (objects - rush) / (1.1 * (PROFILE.creations_per_hour or math.inf))
    for number in range(objects):
        at = cloud.chance.uniform(0, rushed) if number < rush else cloud.chance.uniform(rushed, rushed + rest)
        cloud.timers.after(
            at, lambda n=number: cloud.drop(f"soak/{n}.jsonl", dataset(str(n)), NOTIFICATIONS_EACH, HOUR)
        )


def _result(cloud: Cloud, objects: int, pool: Pool, seconds: float, cpu: float) -> Result:
    states = Counter(told[0] for told in cloud.told.values())
    at = sorted(when for when, _ in cloud.service.creations)
    span = at[-1] - at[0] if at else 0.0
    limit, limits = PROFILE.creations_per_hour or 0, cloud.service.limits
    return Result(
        objects=objects,
        notifications=objects * NOTIFICATIONS_EACH,
        final_states=dict(states),
        lost=objects - len(cloud.told),
        paid_twice=sum(times > 1 for times in cloud.service.paid().values()),
        breaches=sum(limit.refused for limit in limits.values()),
        most_creations_an_hour=_most_within(at, HOUR),
        share_of_allowed_rate=round(len(at) / (limit * (span / HOUR + 1)), 4),
        leaks=sum(cloud.leaks.values()),
        told_under_one_id=sum(len(ids) == 1 for ids in cloud.received.values()),
        problems=[
            *(f"{what}: {limit.refused} beyond the limit" for what, limit in limits.items() if limit.refused),
            *cloud.problems()[:20],
        ],
        kills=pool.deaths,
        calls=cloud.calls,
        most_states_of_a_run=max((len(e.states) for e in cloud.machine.executions.values()), default=0),
        seconds=round(seconds, 1),
        stood_still_seconds=round(pool.stood_still, 1),
        simulated_hours=round(span / HOUR, 1),
        cpu_seconds=round(cpu, 1),
    )


def _most_within(moments: list[float], seconds: float) -> int:
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> int:
    """Soaks, and tells what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.world.soak", description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    options = parser.parse_args()
    result = soak(options.objects, options.seed)
    if options.json:
        print(json.dumps(asdict(result) | {"is_well": result.is_well}))
    else:
        for name, value in asdict(result).items():
            print(f"{name.replace('_', ' '):24} {value}")
        print("all is well" if result.is_well else "NOT as it should be")
    return 0 if result.is_well else 1


if __name__ == "__main__":
    sys.exit(main())
