import pytest
from moto import mock_aws
from tunedrop.runs import Run, RunRequest

from tests.local.workers_ai_support import running_workers_ai
from tests.unit.fakes import FakeTime, MemoryBucket, MemoryLedger, MemoryProvider


@pytest.fixture
def clock(monkeypatch):
    """Business time, which stands still; see FakeTime."""
    time = FakeTime(1_772_359_200.0)  # 2026-03-01T10:00:00Z
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


@pytest.fixture(scope="module")
def aws():
    """Emulated AWS in this process; nothing reaches the network. Shared, since making a client takes long.

    It executes no state machine: said here, since the embedded stack has moto execute them in the whole process.
    """
    with pytest.MonkeyPatch.context() as patch, mock_aws(config={"stepfunctions": {"execute_state_machine": False}}):
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture(scope="module")
def running_workers():
    with running_workers_ai() as running:
        yield running


@pytest.fixture
def workers_ai(running_workers):
    """The emulated Workers AI, empty."""
    running_workers.clean()
    return running_workers
