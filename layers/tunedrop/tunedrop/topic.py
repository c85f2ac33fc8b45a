"""The topic that final states and notices are published to, at Amazon SNS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from tunedrop.errors import Transient

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient


class Topic(Protocol):
    """Where notices are published."""

    def publish(self, subject: str, message: Mapping[str, str], kind: str) -> None:
        """Publishes a notice; see :class:`SnsTopic`."""


class SnsTopic:
    """The topic that the state machine publishes to."""

    def __init__(self, client: SNSClient, arn: str) -> None:
        self._client = client
        self._arn = arn

    def publish(self, subject: str, message: Mapping[str, str], kind: str) -> None:
        """Publishes ``message`` (its text by protocol) in the form of the state machine's "Publish notice".

        Raises:
            Transient: SNS did not take it.
        """
        try:
            self._client.publish(
                TopicArn=self._arn,
                Subject=subject,
                MessageStructure="json",
                Message=json.dumps(message),
                MessageAttributes={"state": {"DataType": "String", "StringValue": kind}},
            )
        except ClientError as error:
            raise Transient(f"SNS answered {error.response['Error']['Code']}") from error
        except BotoCoreError as error:
            raise Transient(f"SNS did not answer ({type(error).__name__})") from error
