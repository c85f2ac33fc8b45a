"""Lambda's event source mapping for SQS: messages of a queue become invocations of a function.

A message is deleted when its invocation succeeded, and otherwise left to its visibility timeout, the queue's or the one
that the function set itself. The dead-letter queue is the queue's own affair: SQS moves a message there at the first
receive after `maxReceiveCount` of them.
"""

import base64
import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local.functions import Closed, Invocation, Lambda, PayloadTooLarge

logger = logging.getLogger(__name__)

_LONG_POLL_SECONDS = 1  # also the longest time that `close` takes
_PAUSE_SECONDS = 1.0  # after SQS could not be reached


@dataclass(frozen=True)
class EventSourceMapping:
    """One event source mapping. `report_failures` is `ReportBatchItemFailures`; `concurrency` counts batches."""

    queue_url: str
    function: str
    batch_size: int = 10
    report_failures: bool = False
    concurrency: int = 2


class Poller:
    """Polls the queue of one mapping from the moment that it is made until it is closed."""

    def __init__(self, mapping: EventSourceMapping, functions: Lambda, aws_endpoint: str):
        self._mapping = mapping
        self._functions = functions
        self._sqs = boto3.client(
            "sqs",
            endpoint_url=aws_endpoint,
            region_name=functions.region,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",  # noqa: S106 - the emulation asks for any
            config=Config(retries={"total_max_attempts": 1}),
        )
        self._arn = f"arn:aws:sqs:{functions.region}:{functions.account}:{mapping.queue_url.rsplit('/', 1)[1]}"
        self._closing = threading.Event()
        self._free = threading.BoundedSemaphore(mapping.concurrency)
        self._executor = ThreadPoolExecutor(mapping.concurrency, thread_name_prefix=f"{mapping.function}-queue")
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Receive no more; batches under way are not waited for, and their messages become visible again."""
        self._closing.set()
        self._thread.join()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _poll(self) -> None:
        while not self._closing.is_set():
            if not self._free.acquire(timeout=_LONG_POLL_SECONDS):
                continue
            messages = self._receive()
            if messages:
                self._executor.submit(self._deliver, messages)
            else:
                self._free.release()

    def _receive(self) -> Sequence[Any]:
        try:
            return self._sqs.receive_message(
                QueueUrl=self._mapping.queue_url,
                MaxNumberOfMessages=min(self._mapping.batch_size, 10),
                WaitTimeSeconds=_LONG_POLL_SECONDS,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
            ).get("Messages", [])
        except (BotoCoreError, ClientError) as error:
            if not self._closing.wait(_PAUSE_SECONDS):
                logger.warning("cannot receive from %s: %s", self._mapping.queue_url, error)
            return []

    def _deliver(self, messages: Sequence[Any]) -> None:
        try:
            event = {"Records": [self._record(message) for message in messages]}
            invocation = self._functions.invoke(self._mapping.function, json.dumps(event).encode())
            failed = failures(invocation, [m["MessageId"] for m in messages], partial=self._mapping.report_failures)
            done = [message for message in messages if message["MessageId"] not in failed]
            if done:
                self._sqs.delete_message_batch(
                    QueueUrl=self._mapping.queue_url,
                    Entries=[{"Id": m["MessageId"], "ReceiptHandle": m["ReceiptHandle"]} for m in done],
                )
        except Closed:
            return
        except (BotoCoreError, ClientError, PayloadTooLarge) as error:
            logger.warning("a batch of %s stays in its queue: %s", self._mapping.queue_url, error)
        finally:
            self._free.release()

    def _record(self, message: Any) -> dict[str, Any]:
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message.get("Attributes", {}),
            "messageAttributes": {
                name: _lower_first(value) for name, value in message.get("MessageAttributes", {}).items()
            },
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self._arn,
            "awsRegion": self._functions.region,
        }


def failures(invocation: Invocation, message_ids: Sequence[str], *, partial: bool) -> set[str]:
    """The messages that were not dealt with: all when the function failed, or what it reports where it may.

    As Lambda has it, an answer that cannot be understood or names a message that was not in the batch fails all.
    """
    everything = set(message_ids)
    if invocation.function_error:
        return everything
    if not partial:
        return set()
    try:
        answer = json.loads(invocation.payload) or {}
        reported = {item["itemIdentifier"] for item in answer.get("batchItemFailures") or []}
    except (ValueError, TypeError, KeyError, AttributeError):
        return everything
    return reported if reported <= everything else everything


def _lower_first(attribute: Any) -> dict[str, Any]:
    """A message attribute as the event spells it: `DataType` becomes `dataType`, bytes become base64 text."""
    named = {name[0].lower() + name[1:]: value for name, value in attribute.items()}
    if isinstance(named.get("binaryValue"), bytes):
        named["binaryValue"] = base64.b64encode(named["binaryValue"]).decode()
    return {"stringListValues": [], "binaryListValues": [], **named}
