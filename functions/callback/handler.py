"""Takes the fine-tuning service's callbacks over HTTP and wakes the runs that wait for them."""

import json
import os
from base64 import b64decode
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from tunedrop import ledger
from tunedrop.at_init import made_at_init
from tunedrop.callback import take_callback
from tunedrop.executions import StepFunctionsWaker
from tunedrop.secret_store import StoredSecret
from tunedrop.settings import CallbackSettings, load

logger = Logger()


@made_at_init
def parts() -> dict[str, Any]:
    return {
        "secrets": StoredSecret(load(CallbackSettings, os.environ).callback_secret_arn),
        "ledger": ledger.connect(os.environ),
        "waker": StepFunctionsWaker(boto3.client("stepfunctions")),
    }


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    text = event.get("body") or ""
    body = b64decode(text) if event.get("isBase64Encoded") else text.encode()
    status, answer = take_callback(event["pathParameters"]["provider"], event["headers"], body, **parts())
    logger.info("callback answered", extra={"status": int(status), "answer": answer})
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": json.dumps(answer)}
