"""Telling of a final state, and of notices before it: signed webhooks, and text for Slack."""

from __future__ import annotations

import hashlib
import html
import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from urllib3.util import parse_url

from tunedrop import signatures
from tunedrop.errors import Transient, Unauthorised
from tunedrop.ledger import Ledger, UnknownRun
from tunedrop.posting import InvalidAddress, NotAllowed, NotDelivered, read_address
from tunedrop.runs import Run
from tunedrop.secret_store import Secret
from tunedrop.texts import text_of

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

FIRST_PAUSE_SECONDS = 30
LONGEST_PAUSE_SECONDS = 4 * 3600

_logger = logging.getLogger("tunedrop")


class InvalidDestination(ValueError):
    """The notification secret names an address that nothing can or may be sent to."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where final states are delivered; ``secret`` signs what goes to a webhook, Slack needs none."""

    url: str
    secret: str | None

    @property
    def is_slack(self) -> bool:
        """Whether it expects Slack's form of message."""
        return parse_url(self.url).host == "hooks.slack.com"

    @property
    def mark(self) -> str:
        """Stands for the destination where its address must not be seen: a Slack address is a secret itself."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]


class Sender(Protocol):
    """What posts a message; raises NotDelivered unless it was accepted with 2xx."""

    def post(self, url: str, headers: Mapping[str, str], body: str) -> None:
        """Posts ``body`` to ``url``."""


def destinations_of(text: str, *, allow_loopback: bool = False) -> tuple[list[Destination], list[str]]:
    """The destinations in the notification secret, and what is wrong with those that nothing can be sent to.

    One that is wrong does not silence the others. The addresses themselves are not in the sentences.

    Raises:
        InvalidDestination: the secret cannot be read at all.
    """
    try:
        entries = json.loads(text)
        listed = [Destination(str(entry["url"]), entry.get("secret")) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidDestination(
            'the notification secret should read [{"url": "...", "secret": "whsec_..."}]'
        ) from error
    found, wrong = [], []
    for number, destination in enumerate(listed, 1):
        problem = _problem(destination, allow_loopback)
        if problem:
            wrong.append(f"destination {number} of the notification secret {problem}")
        else:
            found.append(destination)
    return found, wrong


def _problem(destination: Destination, allow_loopback: bool) -> str | None:
    try:
        read_address(destination.url, allow_loopback=allow_loopback)
    except InvalidAddress as error:
        return str(error)
    if not isinstance(destination.secret, str | None):
        return "has a secret that is no text"
    try:
        if not destination.is_slack:
            signatures.secrets_of(destination.secret or "")
    except signatures.EmptySecret:
        return "has no secret to sign with; it should read whsec_…"
    return None


def notify(
    run: Run, destinations: Iterable[Destination], *, sender: Sender, ledger: Ledger, notice: str | None = None
) -> bool:
    """Tells every destination that has not accepted it yet of the run's end, or of a ``notice`` before it; True when
    none is left.

    The message's id is the same in every attempt, so that a receiver can tell a repetition.
    """
    done = _delivered(run, ledger)
    missing = False
    for destination in destinations:
        mark = f"{notice}:{destination.mark}" if notice else destination.mark
        if mark in done:
            continue
        try:
            sender.post(destination.url, *_message(run, destination, notice))
        except NotDelivered as error:
            missing = True
            alarm = {"alarm": "notification"} if isinstance(error, NotAllowed) else {}
            _logger.warning("destination %s %s", destination.mark, error, extra={"run_id": run.run_id, **alarm})
        else:
            _note(run, mark, ledger)
    return not missing


def pause_seconds(receptions: int) -> int:
    """Seconds until the next attempt after ``receptions`` of the message: doubling from 30 s, at most 4 hours.

    The 27 receptions that the queue allows (template.yaml) spread over three days.
    """
    return min(FIRST_PAUSE_SECONDS << min(receptions - 1, 30), LONGEST_PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Notifier:
    """Takes final states from the queue; ``destinations`` is read anew for each, so that it can be mended meanwhile."""

    destinations: Secret
    allow_loopback: bool
    queue: SQSClient
    queue_url: str
    sender: Sender
    ledger: Ledger

    def take(self, record: Mapping[str, Any]) -> bool:
        """Delivers the final state in a record of SQS; False when it has to come again, which it then does after a
        growing pause."""
        document = json.loads(record["body"])
        run, notice = Run.from_document(document), document.get("notice")
        try:
            to, wrong = destinations_of(self.destinations.value(), allow_loopback=self.allow_loopback)
            delivered = notify(run, to, sender=self.sender, ledger=self.ledger, notice=notice)
            problem = "; ".join(wrong)
        except (InvalidDestination, Unauthorised, Transient) as error:
            problem = str(error)
            delivered = False
        if problem:
            _logger.error("not delivered: %s", problem, extra={"alarm": "notification", "run_id": run.run_id})
        if problem or not delivered:
            self.queue.change_message_visibility(
                QueueUrl=self.queue_url,
                ReceiptHandle=record["receiptHandle"],
                VisibilityTimeout=pause_seconds(int(record["attributes"]["ApproximateReceiveCount"])),
            )
        return delivered and not problem


def _message(run: Run, destination: Destination, notice: str | None) -> tuple[dict[str, str], str]:
    headers = {"content-type": "application/json", "user-agent": "tunedrop"}
    if destination.is_slack:
        # Slack takes <...> for a command or a link, and a file can be called anything.
        return headers, json.dumps({"text": html.escape(text_of(run, notice), quote=False)})
    kind, message_id = notice or run.state, f"msg_{run.run_id}_{notice}" if notice else f"msg_{run.run_id}"
    body = json.dumps({"type": f"run.{kind}", "timestamp": run.finished_at or run.updated_at, "data": run.document()})
    return headers | signatures.sign(destination.secret or "", message_id, time.time(), body), body


def _delivered(run: Run, ledger: Ledger) -> frozenset[str]:
    try:
        return ledger.delivered(run.run_id)
    except UnknownRun:
        return frozenset()


def _note(run: Run, mark: str, ledger: Ledger) -> None:
    try:
        ledger.deliver(run.run_id, mark)
    except UnknownRun:
        _logger.warning("the ledger holds no run %s", run.run_id)
