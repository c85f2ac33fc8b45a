"""The smoke test: one prompt asked of the tuned and of the base model, both answers beside each other in the report.

The wish for it is kept in the run's ``report.json`` alone. A prompt may hold what is in the dataset, and must reach
neither the ledger nor a log nor a notification.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from tunedrop.bucket import Bucket
from tunedrop.errors import Final, Missing, Rejected, TunedropError, Unauthorised
from tunedrop.provider import Provider
from tunedrop.runs import Run, results_key

DEFAULT_PROMPT = "In two sentences: what can you help me with?"
MAX_TOKENS = 300
MAX_CHARACTERS = 4000
TRIES = 3
PAUSE_SECONDS = 2.0
LONGEST_SECONDS = 60

_logger = logging.getLogger("tunedrop")


def with_wish(report: str, wish: bool | str) -> str:
    """The report with the prompt that ``smoke_test`` in the job specification asks for; as it is where it asks none."""
    if not wish:
        return report
    prompt = wish if isinstance(wish, str) else DEFAULT_PROMPT
    return json.dumps({**json.loads(report), "smoke_test": {"prompt": prompt}}, ensure_ascii=False)


def smoke_test(run: Run, tuned: str, base: str, provider: Provider, bucket: Bucket) -> None:
    """Asks both models what the run's report wishes, where it wishes it, and writes the answers into it.

    A model that does not answer leaves an ``error`` in place of its ``answer``.

    Raises:
        TunedropError: the report could not be read or written.
    """
    key = results_key(run.run_id, "report.json")
    if key not in run.result_keys:
        return
    report = _read(bucket, key)
    wish = report.get("smoke_test")
    if not isinstance(wish, dict) or "tuned" in wish or not isinstance(wish.get("prompt"), str):
        return
    deadline = time.monotonic() + LONGEST_SECONDS
    wish["tuned"] = _answer(tuned, wish["prompt"], provider, deadline)
    wish["base"] = _answer(base, wish["prompt"], provider, deadline)
    bucket.write(key, json.dumps(report, ensure_ascii=False).encode(), "application/json")


def _read(bucket: Bucket, key: str) -> dict[str, Any]:
    try:
        report = json.loads(b"".join(bucket.open(key).chunks))
    except (Missing, ValueError):
        return {}  # it is the user's bucket: what has become of the report is theirs to say
    return report if isinstance(report, dict) else {}


def _answer(model: str, prompt: str, provider: Provider, deadline: float) -> dict[str, str]:
    error: TunedropError | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_SECONDS * attempt)
        if time.monotonic() > deadline:
            break
        try:
            return {"model": model, "answer": provider.ask(model, prompt, MAX_TOKENS)[:MAX_CHARACTERS]}
        except TunedropError as raised:
            error = raised
            # A model may be served only a while after it was trained; that is told as one that is not known.
            if isinstance(raised, Unauthorised | Final) and not isinstance(raised, Rejected):
                break
    # Its sentence may quote the prompt, so it goes where the prompt is, and nowhere else.
    _logger.warning("the model %s did not answer the smoke test (%s)", model, type(error).__name__)
    return {"model": model, "error": str(error or "there was no time left to ask it")}
