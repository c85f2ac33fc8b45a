import hashlib
import itertools
import json

import pytest

from tests.local.provider_support import lines
from tests.workflow.running import chat, settled_stack


@pytest.fixture(scope="session")
def running():
    # Many more jobs an hour than OpenAI allows: limits have a test of their own.
    unlimited = {"openai": {"creations_per_hour": None, "files_per_hour": None}}
    with settled_stack("--set", f"Providers={json.dumps(unlimited)}") as running:
        yield running


@pytest.fixture
def stack(running):
    """The stack that most tests share, with no fault left over from one to the next."""
    yield running
    running.clear_faults()


@pytest.fixture
def key(request):
    """A key that no other test uses."""
    return f"workflow/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}/data.jsonl"


@pytest.fixture
def dataset(request):
    """Makes a valid dataset that no other test has, and another one with each call."""
    count = itertools.count()

    def make(examples=12):
        subject = f"{request.node.name} {next(count)}"
        return lines(chat(subject, number) for number in range(examples))

    return make
