from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.functions.world import World, made


@pytest.fixture(scope="session")
def the_world() -> Iterator[World]:
    with ExitStack() as parts:
        yield made(parts)


@pytest.fixture
def world(the_world: World) -> World:
    """The world as if nothing had happened yet."""
    the_world.clean()
    return the_world
