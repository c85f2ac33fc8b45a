import json
import time

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from tunedrop.errors import Transient
from tunedrop.executions import Execution, StepFunctionsExecutions
from tunedrop.runs import RunRequest

from tests.unit.fakes import Broken, MemoryExecutions

REQUEST = RunRequest("0" * 32, "datasets", "a.jsonl", "e1", 10)


@pytest.fixture(scope="module")
def client(aws):
    return boto3.client("stepfunctions")


@pytest.fixture
def machine(client):
    """A machine whose executions go on until they are stopped: this emulation begins none."""
    definition = json.dumps({"StartAt": "End", "States": {"End": {"Type": "Succeed"}}})
    role = "arn:aws:iam::123456789012:role/r"
    arn = client.create_state_machine(name="m", definition=definition, roleArn=role)["stateMachineArn"]
    yield arn
    client.delete_state_machine(stateMachineArn=arn)


def started(client, machine):
    found = client.list_executions(stateMachineArn=machine)["executions"]
    return [client.describe_execution(executionArn=execution["executionArn"]) for execution in found]


def test_a_run_is_an_execution_under_its_id(client, machine):
    StepFunctionsExecutions(client, machine).start(REQUEST)
    [execution] = started(client, machine)
    assert execution["name"] == REQUEST.run_id
    assert RunRequest.from_input(json.loads(execution["input"])) == REQUEST


def test_a_run_that_was_started_before_is_not_started_again(client, machine):
    executions = StepFunctionsExecutions(client, machine)
    executions.start(REQUEST)
    executions.start(REQUEST)
    assert len(started(client, machine)) == 1


def test_a_run_whose_name_is_taken_was_started_before(client, machine):
    taken = ClientError({"Error": {"Code": "ExecutionAlreadyExists"}}, "StartExecution")
    StepFunctionsExecutions(Broken(client, "start_execution", taken), machine).start(REQUEST)


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "ThrottlingException"}}, "StartExecution"),
        EndpointConnectionError(endpoint_url="https://x"),
    ],
)
def test_what_goes_wrong_is_transient(client, machine, error):
    with pytest.raises(Transient):
        StepFunctionsExecutions(Broken(client, "start_execution", error), machine).start(REQUEST)


# Looking, as the sweeper does


class Stepping(StepFunctionsExecutions):
    """The real executions, with the ending that a test wants."""

    def __init__(self, client, arn):
        super().__init__(client, arn)
        self._arn = arn.replace(":stateMachine:", ":execution:")

    def end(self, name, status, error=None):
        assert (status, error) == ("ABORTED", None)
        self._client.stop_execution(executionArn=f"{self._arn}:{name}")


@pytest.fixture(params=["memory", "stepfunctions"])
def executions(request):
    if request.param == "memory":
        return MemoryExecutions()
    return Stepping(*(request.getfixturevalue(name) for name in ("client", "machine")))


def test_an_execution_runs_until_it_ends(executions):
    assert executions.look(REQUEST.run_id) is None
    executions.start(REQUEST)
    assert executions.look(REQUEST.run_id) == Execution("RUNNING", None, None)
    before = time.time()
    executions.end(REQUEST.run_id, "ABORTED")
    found = executions.look(REQUEST.run_id)
    assert (found.status, found.error) == ("ABORTED", None)
    assert found.stopped_at == pytest.approx(before, abs=5)


def test_a_further_execution_of_a_run_has_a_name_of_its_own(executions):
    executions.start(REQUEST)
    executions.end(REQUEST.run_id, "ABORTED")
    executions.start(REQUEST)
    executions.start(REQUEST, 2)
    executions.start(REQUEST, 2)
    assert executions.look(REQUEST.run_id).status == "ABORTED"
    assert executions.look(REQUEST.run_id, 2).status == "RUNNING"
    assert executions.look(REQUEST.run_id, 3) is None
    assert executions.running() == {f"{REQUEST.run_id}-2"}


@pytest.mark.parametrize("method", ["look", "running"])
@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "ThrottlingException"}}, "x"),
        EndpointConnectionError(endpoint_url="https://x"),
    ],
)
def test_what_goes_wrong_in_looking_is_transient(client, machine, monkeypatch, method, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(client, "_make_api_call", fail)
    executions = StepFunctionsExecutions(client, machine)
    with pytest.raises(Transient):
        executions.look(REQUEST.run_id) if method == "look" else executions.running()
