"""The whole way of a run with another service than OpenAI's, which the embedded stack emulates in its manners."""

import pytest
from tunedrop.providers import PROFILES

from tests.workflow.running import RunningStack


@pytest.fixture(params=["azure", "nebius"])
def stack(request):
    with RunningStack("--set", f"Provider={request.param}") as running:
        running.name, running.takes_metadata = request.param, PROFILES[request.param].takes_metadata
        yield running


def test_a_drop_becomes_a_model_of_another_service(stack, key, dataset):
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.run["provider"]) == ("succeeded", stack.name)
    assert ended.run["fine_tuned_model"].startswith(f"ft:{ended.run['model']}:")
    assert len(ended.jobs) == 1
    deploy = ended.notification["message"]["data"]["next_step"] or ""
    assert deploy.startswith("Deploy the model") == (stack.name == "azure")
