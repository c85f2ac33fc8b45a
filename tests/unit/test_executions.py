import json

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from tunedrop.errors import Transient
from tunedrop.executions import StepFunctionsExecutions
from tunedrop.runs import RunRequest

from tests.unit.fakes import Broken

REQUEST = RunRequest("0" * 32, "datasets", "a.jsonl", "e1", 10)


@pytest.fixture(scope="module")
def client(aws):
    return boto3.client("stepfunctions")


@pytest.fixture
def machine(client):
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
