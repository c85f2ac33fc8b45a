"""The short form of `make soak`: the same, smaller, and as fast as the machine goes."""

import math

from tests.world.soak import soak


def test_a_few_hundred_objects_come_through_faults_and_deaths():
    result = soak(OBJECTS, seed=0, scale=math.inf, workers=2, kill_every=(0.2, 1.0), longest_seconds=120)
    assert result.is_well, result
    assert result.final_states == {"succeeded": OBJECTS}
    assert result.told_under_one_id == OBJECTS
    assert result.most_creations_an_hour <= 10
    assert result.kills >= 3


OBJECTS = 200
