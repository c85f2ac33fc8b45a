"""Checks a dataset and uploads it to the fine-tuning service."""

import os
from typing import Any

from aws_lambda_powertools import Logger
from tunedrop import bucket, ledger, provider
from tunedrop.at_init import made_at_init
from tunedrop.preflight import make_ready
from tunedrop.runs import Run, RunRequest
from tunedrop.settings import RunSettings, UploadSettings, load
from tunedrop.steps import take
from tunedrop.upload import upload_dataset

logger = Logger()


@made_at_init
def parts() -> dict[str, Any]:
    settings = load(UploadSettings, os.environ)
    make_ready(settings.default_model)
    return {
        "settings": settings,
        "bucket": bucket.connect(os.environ),
        "providers": provider.connect(os.environ),
        "ledger": ledger.connect(os.environ),
    }


@made_at_init
def limits() -> RunSettings:
    return load(RunSettings, os.environ)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    request = RunRequest.from_input(event)
    logger.append_keys(run_id=request.run_id)
    run = parts()["ledger"].begin(Run.of(request))

    def seconds_left() -> float:
        return context.get_remaining_time_in_millis() / 1000

    return take(lambda: upload_dataset(run, **parts(), seconds_left=seconds_left), run, limits().run_deadline_hours)
