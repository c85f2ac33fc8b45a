"""The provider's own webhook: a hint that a job has ended, which wakes the run that waits for it.

A hint only. What became of the job is always read from the provider, so that a forged, repeated, late or lost callback
can at most cost a poll.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Protocol

from tunedrop import signatures
from tunedrop.errors import TunedropError, Unauthorised
from tunedrop.ledger import Ledger
from tunedrop.secret_store import Secret
from tunedrop.webhook import MAX_BODY_BYTES, Answer, refusal

ENDS = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")


class Waker(Protocol):
    """What wakes a waiting execution."""

    def wake(self, token: str) -> None:
        """Ends the wait that ``token`` stands for; one that is over already is no fault. Raises Transient."""


def take_callback(
    provider: str, headers: Mapping[str, str], body: bytes, *, secrets: Secret, ledger: Ledger, waker: Waker
) -> Answer:
    """Verifies a callback of ``provider`` and wakes the run that waits for its job.

    202 when it was noted, also when its job is not known yet; 200 for an event that says nothing about a job's end; 400
    malformed, 401 not authentic, 413 over 1 MiB, 503 when it could not be noted and should be repeated. ``secrets`` is
    JSON: the secrets that each provider signs with, separated by blanks, by its name.
    """
    if len(body) > MAX_BODY_BYTES:
        return refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"a callback has at most {MAX_BODY_BYTES} bytes"
        )
    try:
        signatures.verify(_secrets_of(provider, secrets), headers, body)
        event = json.loads(body)
        kind, job_id = event["type"], event["data"]["id"]
        if kind not in ENDS:
            return HTTPStatus.OK, {"ignored": str(kind)}
        if token := ledger.call_back(f"{provider}/{job_id}"):
            waker.wake(token)
    except signatures.NotAuthentic:
        return refusal(HTTPStatus.UNAUTHORIZED, "not_authentic", "the signature is missing, wrong or too old")
    except (ValueError, KeyError, TypeError, RecursionError):
        return refusal(HTTPStatus.BAD_REQUEST, "malformed", "a callback reads {type, data: {id}}")
    except TunedropError as error:
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "not_noted", f"repeat it later: {error}")
    return HTTPStatus.ACCEPTED, {"accepted": str(job_id)}


def _secrets_of(provider: str, secrets: Secret) -> tuple[str, ...]:
    try:
        by_provider = json.loads(secrets.value())
    except ValueError as error:
        raise Unauthorised('the callback secret should read {"PROVIDER": "whsec_..."}') from error
    try:
        return signatures.secrets_of(by_provider[provider])
    except (KeyError, TypeError, AttributeError, signatures.EmptySecret):
        raise signatures.NotAuthentic("no callbacks are expected from this provider") from None
