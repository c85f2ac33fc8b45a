"""Compares ledger, executions, fine-tuning services and bucket, mends what is safe and reports the rest."""

import os
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from tunedrop import bucket, provider, sweep_ledger
from tunedrop.at_init import made_at_init
from tunedrop.executions import StepFunctionsExecutions
from tunedrop.reconcile import Notifications, reconcile
from tunedrop.settings import ReconcileSettings, load
from tunedrop.topic import SnsTopic

logger = Logger()


@made_at_init
def parts() -> dict[str, Any]:
    settings = load(ReconcileSettings, os.environ)
    stepfunctions = boto3.client("stepfunctions")
    return {
        "notifications": Notifications(
            settings.bucket_name, settings.key_prefix, settings.key_suffix, bool(settings.workers_ai_account_id)
        ),
        "bucket": bucket.connect(os.environ),
        "ledger": sweep_ledger.connect(os.environ),
        "executions": StepFunctionsExecutions(stepfunctions, settings.state_machine_arn),
        "adapters": StepFunctionsExecutions(stepfunctions, settings.adapter_state_machine_arn),
        "providers": provider.connect(os.environ),
        "topic": SnsTopic(boto3.client("sns"), settings.final_states_topic_arn),
    }


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    def seconds_left() -> float:
        return context.get_remaining_time_in_millis() / 1000

    return reconcile(**parts(), seconds_left=seconds_left)
