"""Tells the configured webhooks and Slack channels of a run's final state."""

import os
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from tunedrop import ledger
from tunedrop.at_init import made_at_init
from tunedrop.notify import Notifier
from tunedrop.posting import HttpSender
from tunedrop.secret_store import StoredSecret
from tunedrop.settings import NotifySettings, load

logger = Logger()


@made_at_init
def parts() -> Notifier:
    settings = load(NotifySettings, os.environ)
    return Notifier(
        destinations=StoredSecret(settings.notification_secret_arn),
        allow_loopback=settings.allow_loopback,
        queue=boto3.client("sqs"),
        queue_url=settings.notify_queue_url,
        sender=HttpSender(allow_loopback=settings.allow_loopback),
        ledger=ledger.connect(os.environ),
    )


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    failed = [record["messageId"] for record in event["Records"] if not parts().take(record)]
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
