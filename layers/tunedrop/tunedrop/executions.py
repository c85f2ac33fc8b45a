"""Executions of the state machine, at AWS Step Functions: starting them, looking at them, waking those that wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from tunedrop.errors import Transient
from tunedrop.runs import RunRequest

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient


@dataclass(frozen=True, slots=True)
class Execution:
    """How an execution is doing: ``status`` in Step Functions' words, ``error`` what it failed with.

    ``stopped_at`` is the epoch second of its end, None while it runs.
    """

    status: str
    error: str | None
    stopped_at: float | None


def execution_name(run_id: str, number: int = 1) -> str:
    """The name of a run's execution: the run's id, with ``-2`` and so on where earlier ones did not end the run."""
    return run_id if number == 1 else f"{run_id}-{number}"


class StepFunctionsExecutions:
    """Runs as executions named by the run's id: Step Functions keeps a name taken for 90 days.

    Every method raises Transient where Step Functions does not answer, or not properly.
    """

    def __init__(self, client: SFNClient, state_machine_arn: str) -> None:
        self._client = client
        self._state_machine_arn = state_machine_arn

    def start(self, request: RunRequest, number: int = 1) -> None:
        """Starts the run's execution of that number, or does nothing where it was started before."""
        name = execution_name(request.run_id, number)
        try:
            self._client.start_execution(stateMachineArn=self._state_machine_arn, name=name, input=request.to_input())
        except (ClientError, BotoCoreError) as error:
            if _code(error) != "ExecutionAlreadyExists":
                raise _unreached(error) from error

    def look(self, run_id: str, number: int = 1) -> Execution | None:
        """The run's execution of that number; None where there is none, or none any more (90 days after its end)."""
        machine = self._state_machine_arn.replace(":stateMachine:", ":execution:")
        try:
            found = self._client.describe_execution(executionArn=f"{machine}:{execution_name(run_id, number)}")
        except (ClientError, BotoCoreError) as error:
            if _code(error) == "ExecutionDoesNotExist":
                return None
            raise _unreached(error) from error
        stopped = found.get("stopDate")
        return Execution(found["status"], found.get("error"), stopped.timestamp() if stopped else None)

    def running(self) -> frozenset[str]:
        """The names of all executions that run; one that began a moment ago may be missing."""
        pages = self._client.get_paginator("list_executions")
        try:
            return frozenset(
                execution["name"]
                for page in pages.paginate(stateMachineArn=self._state_machine_arn, statusFilter="RUNNING")
                for execution in page["executions"]
            )
        except (ClientError, BotoCoreError) as error:
            raise _unreached(error) from error


class StepFunctionsWaker:
    """Ends waits by their task tokens."""

    def __init__(self, client: SFNClient) -> None:
        self._client = client

    def wake(self, token: str) -> None:
        """Ends the wait that ``token`` stands for; one that is over already is no fault.

        Raises:
            Transient: Step Functions did not take it.
        """
        try:
            self._client.send_task_success(taskToken=token, output="{}")
        except (ClientError, BotoCoreError) as error:
            if _code(error) not in ("TaskTimedOut", "TaskDoesNotExist", "InvalidToken"):
                raise _unreached(error) from error


def _code(error: ClientError | BotoCoreError) -> str:
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else ""


def _unreached(error: ClientError | BotoCoreError) -> Transient:
    code = _code(error)
    return Transient(
        f"Step Functions answered {code}" if code else f"Step Functions did not answer ({type(error).__name__})"
    )
