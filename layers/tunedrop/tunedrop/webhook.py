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
MAX_EVENTS = 500
"""Of one notification: so many runs are started within the function's time; R2's forwarder sends at most 100."""
NO_ACCOUNT = "an adapter, and the stack has no Workers AI account: set its parameter WorkersAiAccountId"

Answer = tuple[HTTPStatus, dict[str, Any]]


class Deletions(Protocol):
    """What becomes of the runs of deleted datasets."""

    def take(self, event: events.ObjectEvent) -> list[str]:
        """Has the runs that train on the deleted object end; their ids. Raises Transient."""


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
    adapters: Executions | None = None,
    deletions: Deletions | None = None,
    prefix: str = "",
    suffix: str = "",
) -> Answer:
    """Verifies a notification and starts its runs; answers as the page on webhooks says.

    202 with what was accepted and what was ignored and why, 400 malformed, 401 not authentic, 413 over 1 MiB or 500
    events, 503 when a run could not be handed over: the sender repeats the whole notification, which starts no run
    twice. No event takes others with it: those around one that is malformed, or not handed over, are taken all the
    same, and what is malformed among them is answered too, as ``malformed``, by its number from 0. With ``deletions``
    the runs of deleted datasets are cancelled; then those are answered, as ``cancelling``. Keys of datasets begin with
    ``prefix`` and end in ``suffix``. ``adapters`` is where the runs that publish adapters are started, None where the
    stack has no account to publish them in.
    """
    if len(body) > MAX_BODY_BYTES:
        return _too_large(f"a notification has at most {MAX_BODY_BYTES} bytes")
    try:
        signatures.verify(_secrets(secret.value()), headers, body)
        found = events.parse(body)
    except signatures.NotAuthentic:
        return refusal(HTTPStatus.UNAUTHORIZED, "not_authentic", "the signature or token is missing, wrong or too old")
    except events.MalformedEvent as error:
        return refusal(HTTPStatus.BAD_REQUEST, "malformed", str(error))
    except TunedropError as error:
        return _not_handed_over(error)
    if not found:
        return HTTPStatus.OK, {"accepted": [], "ignored": []}
    if len(found) > MAX_EVENTS:
        return _too_large(f"a notification has at most {MAX_EVENTS} events")
    malformed = [(number, each) for number, each in enumerate(found) if isinstance(each, events.MalformedEvent)]
    if len(malformed) == len(found):
        return refusal(HTTPStatus.BAD_REQUEST, "malformed", str(malformed[0][1]))

    accepted, ignored, cancelling = [], [], []
    failure: TunedropError | None = None
    for event in found:
        if isinstance(event, events.MalformedEvent):
            continue
        try:
            if deletions and event.bucket == bucket and event.deletes_dataset and (ended := deletions.take(event)):
                cancelling += [{"key": event.key, "run_id": run_id} for run_id in ended]
                continue
            starting = adapters if event.brings_adapter else executions
            reason = event.why_ignored(bucket, prefix, suffix)
            if reason or starting is None:
                ignored.append({"key": event.key, "reason": reason or NO_ACCOUNT})
                continue
            request = event.run_request()
            starting.start(request)
            accepted.append({"key": request.key, "run_id": request.run_id})
        except TunedropError as error:
            failure = error
    if failure:
        return _not_handed_over(failure)
    answer: dict[str, Any] = {"accepted": accepted, "ignored": ignored}
    if cancelling:
        answer["cancelling"] = cancelling
    if malformed:
        answer["malformed"] = [{"event": number, "reason": str(each)} for number, each in malformed]
    return HTTPStatus.ACCEPTED, answer


def _too_large(message: str) -> Answer:
    return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", message)


def _not_handed_over(error: TunedropError) -> Answer:
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "not_handed_over", f"repeat it later: {error}")


def _secrets(text: str) -> tuple[str, ...]:
    try:
        return signatures.secrets_of(text)
    except signatures.EmptySecret as error:
        raise Transient(str(error)) from error


def refusal(status: HTTPStatus, code: str, message: str) -> Answer:
    """The answer to a request that is not carried out, in the API's form."""
    return status, {"error": {"code": code, "message": message}}
