from collections.abc import Iterator

import pytest

from local.npm import NoNode
from tests.forwarder.world import Webhook, World


@pytest.fixture(scope="session")
def the_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Webhook() as webhook:
        try:
            world = World(webhook, tmp_path_factory.mktemp("forwarder") / "log")
        except NoNode as missing:
            pytest.skip(str(missing))
        with world.workerd:
            yield world


@pytest.fixture
def world(the_world: World) -> World:
    """The forwarder, as if nothing had happened yet."""
    the_world.clean()
    return the_world


@pytest.fixture
def webhook(world: World) -> Webhook:
    return world.webhook
