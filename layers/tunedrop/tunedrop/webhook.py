"""The way in: a notification of the bucket becomes a run for each new dataset."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol

from tunedrop import events, signatures
from tunedrop.errors import Transient, TunedropError
from tunedrop.runs import RunRequest
from tunedrop.secret_store import Secret

MAX_BODY_BYTES = 1 << 20

Answer = tuple[HTTPStatus, dict[str, Any]]


class Deletions(Protocol):
    """What becomes of the runs of deleted datasets."""

    def take(self, event: events.ObjectEvent) -> str | None:
        """Has the run that trains on the deleted object end; its id, None where no run does. Raises Transient."""


class Executions(Protocol):
    """Where runs are started."""

    def start(self, request: RunRequest) -> None:
        """Starts the run, or does nothing where it was started before.

        Raises:
            Transient: it could not be handed over.
        """


def take_notification(
    headers: Mapping[str, str],
    body: bytes,
    *,
    bucket: str,
    secret: Secret,
    executions: Executions,
    deletions: Deletions | None = None,
) -> Answer:
    """Verifies a notification and starts its runs; answers as the page on webhooks says.

    202 with what was accepted and what was ignored and why, 400 malformed, 401 not authentic, 413 over 1 MiB, 503 when
    a run could not be handed over: the sender repeats the whole notification, which starts no run twice. With
    ``deletions`` the runs of deleted datasets are cancelled; then those are answered too, as ``cancelling``.
    """
    if len(body) > MAX_BODY_BYTES:
        return refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"a notification has at most {MAX_BODY_BYTES} bytes"
        )
    try:
        signatures.verify(_secrets(secret.value()), headers, body)
        found = events.parse(body)
        accepted, ignored, cancelling = [], [], []
        for event in found:
            if deletions and event.bucket == bucket and event.deletes_dataset and (ended := deletions.take(event)):
                cancelling += [{"key": event.key, "run_id": run_id} for run_id in ended]
                continue
            reason = event.why_ignored(bucket)
            if reason:
                ignored.append({"key": event.key, "reason": reason})
                continue
            request = event.run_request()
            executions.start(request)
            accepted.append({"key": request.key, "run_id": request.run_id})
    except signatures.NotAuthentic:
        return refusal(HTTPStatus.UNAUTHORIZED, "not_authentic", "the signature or token is missing, wrong or too old")
    except events.MalformedEvent as error:
        return refusal(HTTPStatus.BAD_REQUEST, "malformed", str(error))
    except TunedropError as error:
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "not_handed_over", f"repeat it later: {error}")
    if not found:
        return HTTPStatus.OK, {"accepted": [], "ignored": []}
    answer = {"accepted": accepted, "ignored": ignored}
    return HTTPStatus.ACCEPTED, answer | ({"cancelling": cancelling} if cancelling else {})


def _secrets(text: str) -> tuple[str, ...]:
    try:
        return signatures.secrets_of(text)
    except signatures.EmptySecret as error:
        raise Transient(str(error)) from error


def refusal(status: HTTPStatus, code: str, message: str) -> Answer:
    """The answer to a request that is not carried out, in the API's form."""
    return status, {"error": {"code": code, "message": message}}
