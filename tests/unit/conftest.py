import pytest
from tunedrop.runs import Run, RunRequest

from tests.unit.fakes import FakeTime, MemoryBucket, MemoryLedger, MemoryProvider


@pytest.fixture
def clock(monkeypatch):
    """Business time, which stands still; see FakeTime."""
    time = FakeTime(1_800_000_000.0)
    monkeypatch.setattr("tunedrop.clock.time", time)
    return time


@pytest.fixture
def ledger(clock):
    return MemoryLedger()


@pytest.fixture
def bucket():
    return MemoryBucket()


@pytest.fixture
def provider(clock):
    return MemoryProvider()


@pytest.fixture
def run(ledger):
    """A run as it begins, known to the ledger."""
    return ledger.begin(Run.of(RunRequest("0" * 32, "datasets", "shop/orders.jsonl", "e1", 100)))
