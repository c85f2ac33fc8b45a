"""Checks a LoRA adapter and publishes it to Workers AI, once."""

import os
from typing import Any

from aws_lambda_powertools import Logger
from tunedrop import bucket, ledger, workers_ai
from tunedrop.at_init import made_at_init
from tunedrop.publish_adapter import publish_adapter
from tunedrop.runs import Run, RunRequest
from tunedrop.settings import RunSettings, WorkersAiSettings, load
from tunedrop.steps import take

logger = Logger()


@made_at_init
def parts() -> dict[str, Any]:
    return {
        "bucket": bucket.connect(os.environ),
        "ledger": ledger.connect(os.environ),
        "workers_ai": workers_ai.connect(os.environ),
        "smoke_test": load(WorkersAiSettings, os.environ).smoke_test_adapters,
    }


@made_at_init
def limits() -> RunSettings:
    return load(RunSettings, os.environ)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    request = RunRequest.from_input(event)
    logger.append_keys(run_id=request.run_id)
    run = parts()["ledger"].begin(Run.of(request))
    return take(lambda: publish_adapter(run, **parts()), run, limits().run_deadline_hours)
