"""Standard Webhooks signatures, coming in and going out (https://www.standardwebhooks.com, specification 1.0.0)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


class NotAuthentic(Exception):
    """The request does not prove that it comes from somebody who knows the secret."""


class EmptySecret(RuntimeError):
    """No secret is configured; to go on would mean to accept forgeries."""


def secrets_of(text: str) -> tuple[str, ...]:
    """The secrets in ``text``, separated by blanks: several are valid while one replaces another.

    Raises:
        EmptySecret: there is none, or one of them is empty once decoded.
    """
    secrets = tuple(text.split())
    if not secrets:
        raise EmptySecret("the webhook secret is empty: put one with `aws secretsmanager put-secret-value`")
    for secret in secrets:
        _webhook(secret)
    return secrets


def verify(secrets: Sequence[str], headers: Mapping[str, str], body: bytes) -> None:
    """Accepts a signed request no older or newer than 300 s, or ``Authorization: Bearer SECRET`` of a store that cannot
    sign.

    ``headers`` have lower-case names.

    Raises:
        NotAuthentic: whatever is wrong with it; the reason is not for the sender.
    """
    authorization = headers.get("authorization", "")
    if authorization:
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode(errors="replace")
        candidates = [hmac.compare_digest(given, secret.encode()) for secret in secrets]
        if scheme.lower() == "bearer" and any(candidates):
            return
        raise NotAuthentic("no such bearer token")
    if any(_signed(secret, headers, body) for secret in secrets):
        return
    raise NotAuthentic("not signed by a secret of ours, or not within 300 s")


def sign(secret: str, message_id: str, at: float, body: str) -> dict[str, str]:
    """The headers that sign ``body`` as message ``message_id`` sent at epoch second ``at``.

    Of several secrets, separated by blanks, each adds its signature: the receiver may know the old or the new one.

    Raises:
        EmptySecret: as :func:`secrets_of`.
    """
    sent = datetime.fromtimestamp(int(at), UTC)
    signatures = [_webhook(part).sign(message_id, sent, body) for part in secrets_of(secret)]
    return {"webhook-id": message_id, "webhook-timestamp": str(int(at)), "webhook-signature": " ".join(signatures)}


def _signed(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    try:
        _webhook(secret).verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError, TypeError, OverflowError):
        # Garbage in the headers or the body surfaces from the library as any of these.
        return False
    return True


def _webhook(secret: str) -> Webhook:
    try:
        webhook = Webhook(secret)
    except Exception as error:
        raise EmptySecret("a webhook secret is empty or is no base64; it should read whsec_…") from error
    return webhook
