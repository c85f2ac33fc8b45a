"""Brings a run's results home, whatever they are, and writes its final state."""

import os
from typing import Any

from aws_lambda_powertools import Logger
from tunedrop import bucket, ledger, provider
from tunedrop.at_init import made_at_init
from tunedrop.collect import Outcome, collect_results
from tunedrop.runs import Run, RunRequest

logger = Logger()


@made_at_init
def parts() -> dict[str, Any]:
    return {
        "bucket": bucket.connect(os.environ),
        "ledger": ledger.connect(os.environ),
    }


@made_at_init
def providers() -> provider.Registry:
    return provider.connect(os.environ)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    request = RunRequest.from_input(event)
    logger.append_keys(run_id=request.run_id)
    run = parts()["ledger"].begin(Run.of(request))  # the first step may have died before it wrote the run
    return collect_results(run, Outcome.of(event), provider=providers().of(run.provider), **parts())
