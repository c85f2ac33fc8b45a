"""Webhooks out, signed after Standard Webhooks."""

import json
import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

import requests
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from local.provider.jobs import new_id

_REAL_SECONDS_BEFORE_RETRY = (0.2, 1, 3, 9)
_TIMEOUT = 10

_logger = logging.getLogger(__name__)


class Callbacks:
    """Sends each event until it is answered with 2xx, five times at most, at growing real intervals."""

    def __init__(self, url: str | None = None, secret: str | None = None) -> None:
        self.direct(url, secret)

    def direct(self, url: str | None, secret: str | None) -> None:
        """Send to this address from now on; raise `ValueError` where the secret cannot sign."""
        if url and not secret:
            raise ValueError("a callback needs a secret to be signed with")
        try:
            self._target = (url, Webhook(secret)) if url and secret else None
        except EmptyWebhookSecretError as error:
            raise ValueError(str(error)) from error

    def announce(self, kind: str, job_id: str, at: float) -> None:
        """Send one event, without waiting; `at` is simulated."""
        event = {"id": new_id("evt_"), "object": "event", "type": kind, "created_at": int(at), "data": {"id": job_id}}
        # One thread each: a receiver that is down must not hold up the next event.
        threading.Thread(target=self._send, args=(event,), daemon=True).start()

    def _send(self, event: dict[str, Any]) -> None:
        if self._target is None:
            return
        url, signer = self._target
        body = json.dumps(event)
        session = requests.Session()
        session.trust_env = False  # the receiver is near, a proxy would not find it
        for pause in (*_REAL_SECONDS_BEFORE_RETRY, None):
            now = datetime.now(UTC)  # not the simulated time: nobody would accept the signature
            headers = {
                "content-type": "application/json",
                "webhook-id": event["id"],
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": signer.sign(event["id"], now, body),
                "x-emulation": "tunedrop",
            }
            try:
                answer = session.post(url, body, headers=headers, timeout=_TIMEOUT, allow_redirects=False)
                if 200 <= answer.status_code < 300:
                    return
                why = str(answer.status_code)
            except requests.RequestException as error:
                why = type(error).__name__
            if pause is None:
                _logger.warning("Gave up announcing %s of %s: %s", event["type"], event["data"]["id"], why)
            else:
                time.sleep(pause)
