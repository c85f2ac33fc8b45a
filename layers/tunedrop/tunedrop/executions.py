"""Executions of the state machine, at AWS Step Functions: starting them, and waking those that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from tunedrop.errors import Transient
from tunedrop.runs import RunRequest

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient


class StepFunctionsExecutions:
    """Starts runs as executions named by the run's id: Step Functions keeps a name taken for 90 days."""

    def __init__(self, client: SFNClient, state_machine_arn: str) -> None:
        self._client = client
        self._state_machine_arn = state_machine_arn

    def start(self, request: RunRequest) -> None:
        """Starts the run, or does nothing where it was started before.

        Raises:
            Transient: Step Functions did not take it.
        """
        try:
            self._client.start_execution(
                stateMachineArn=self._state_machine_arn, name=request.run_id, input=request.to_input()
            )
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code != "ExecutionAlreadyExists":
                raise Transient(f"Step Functions answered {code}") from error
        except BotoCoreError as error:
            raise Transient(f"Step Functions did not answer ({type(error).__name__})") from error


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
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code not in ("TaskTimedOut", "TaskDoesNotExist", "InvalidToken"):
                raise Transient(f"Step Functions answered {code}") from error
        except BotoCoreError as error:
            raise Transient(f"Step Functions did not answer ({type(error).__name__})") from error
