"""Takes the bucket's event notifications over HTTP and starts a run for each new dataset and adapter."""

import json
import os
from base64 import b64decode
from http import HTTPStatus
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from tunedrop.at_init import made_at_init
from tunedrop.deletion import Deletions
from tunedrop.executions import StepFunctionsExecutions, StepFunctionsWaker
from tunedrop.secret_store import StoredSecret
from tunedrop.settings import WebhookSettings, load
from tunedrop.webhook import take_notification

logger = Logger()


@made_at_init
def parts() -> dict[str, Any]:
    settings = load(WebhookSettings, os.environ)
    stepfunctions = boto3.client("stepfunctions")
    found: dict[str, Any] = {
        "bucket": settings.bucket_name,
        "prefix": settings.key_prefix,
        "suffix": settings.key_suffix,
        "secret": StoredSecret(settings.webhook_secret_arn),
        "executions": StepFunctionsExecutions(stepfunctions, settings.state_machine_arn),
    }
    if settings.workers_ai_account_id:
        found["adapters"] = StepFunctionsExecutions(stepfunctions, settings.adapter_state_machine_arn)
    if settings.on_deletion == "cancel":
        from tunedrop.ledger import DynamoLedger  # starting takes longer with it: only where deletions matter

        ledger = DynamoLedger(boto3.client("dynamodb"), settings.ledger_table)
        found["deletions"] = Deletions(ledger, StepFunctionsWaker(stepfunctions))
    return found


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    if event["requestContext"]["http"]["method"] == "HEAD":
        return {"statusCode": HTTPStatus.OK}
    text = event.get("body") or ""
    body = b64decode(text) if event.get("isBase64Encoded") else text.encode()
    status, answer = take_notification(event["headers"], body, **parts())
    logger.info("notification answered", extra={"status": int(status), "answer": answer})
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": json.dumps(answer)}
