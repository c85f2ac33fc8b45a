"""Creates the fine-tuning job of a run, once."""

import os
from typing import Any

from aws_lambda_powertools import Logger
from tunedrop import ledger, provider
from tunedrop.at_init import made_at_init
from tunedrop.create_job import create_job
from tunedrop.settings import RunSettings, load
from tunedrop.steps import take

logger = Logger()


@made_at_init
def parts() -> dict[str, Any]:
    return {"ledger": ledger.connect(os.environ)}


@made_at_init
def providers() -> provider.Registry:
    return provider.connect(os.environ)


@made_at_init
def limits() -> RunSettings:
    return load(RunSettings, os.environ)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    logger.append_keys(run_id=event["run_id"])
    run = parts()["ledger"].get(event["run_id"])
    return take(
        lambda: create_job(run, provider=providers().of(run.provider), **parts()), run, limits().run_deadline_hours
    )
