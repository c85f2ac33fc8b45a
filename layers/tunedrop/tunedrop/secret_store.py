"""Secrets, from AWS Secrets Manager."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tunedrop.errors import Transient, Unauthorised

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

CACHE_SECONDS = 300


@cache
def _client() -> SecretsManagerClient:
    return boto3.client("secretsmanager")


class Secret(Protocol):
    """A secret that can be asked for whenever it is needed."""

    def value(self, *, fresh: bool = False) -> str:
        """The secret; ``fresh`` passes over the cache, after it was refused."""


@dataclass(frozen=True, slots=True)
class KnownSecret:
    """A secret that is at hand."""

    text: str

    def value(self, *, fresh: bool = False) -> str:  # noqa: ARG002 - there is no fresher one
        """The secret's text."""
        return self.text


class KeySecret:
    """One provider's key out of a secret that holds either one key, which is ``alone``'s, or JSON: keys by provider."""

    def __init__(self, secret: Secret, provider: str, alone: str) -> None:
        self._secret = secret
        self._provider = provider
        self._alone = alone

    def value(self, *, fresh: bool = False) -> str:
        """The key.

        Raises:
            Unauthorised: there is none for the provider.
            Transient: Secrets Manager could not be asked.
        """
        try:
            return keys_of(self._secret.value(fresh=fresh), self._alone)[self._provider]
        except KeyError:
            raise Unauthorised(
                f"the provider secret has no key for {self._provider}: put one in, as "
                f'{{"{self._provider}": "..."}} beside the others'
            ) from None


def keys_of(text: str, alone: str) -> dict[str, str]:
    """The keys in the provider secret's ``text`` by provider; a text that is no JSON object is the key of ``alone``.

    Raises:
        Unauthorised: it is meant to be JSON and is not; the message quotes nothing of it.
    """
    if not text.startswith("{"):
        return {alone: text}
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError):
        keys = None
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise Unauthorised('the provider secret should read {"PROVIDER": "KEY", ...}, or be one key alone')
    return {provider: key.strip() for provider, key in keys.items() if key.strip()}


class StoredSecret:
    """One secret of Secrets Manager, cached for at most 300 s so that a rotated one is soon taken up."""

    def __init__(self, arn: str, client: SecretsManagerClient | None = None) -> None:
        self._client = client or _client()
        self._arn = arn
        self._value = ""
        self._fetched = -float(CACHE_SECONDS)

    def value(self, *, fresh: bool = False) -> str:
        """The secret's text.

        Raises:
            Unauthorised: it holds no value yet, or we may not read it.
            Transient: Secrets Manager could not be asked.
        """
        if fresh or time.monotonic() - self._fetched >= CACHE_SECONDS:
            self._value = self._fetch()
            self._fetched = time.monotonic()
        return self._value

    def _fetch(self) -> str:
        try:
            answer: dict[str, Any] = dict(self._client.get_secret_value(SecretId=self._arn))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("ResourceNotFoundException", "AccessDeniedException", "DecryptionFailure"):
                raise Unauthorised(
                    f"the secret {self._arn} has no value that this function can read ({code}): "
                    "put one with `aws secretsmanager put-secret-value`"
                ) from None
            raise Transient(f"Secrets Manager answered {code}") from None
        except BotoCoreError as error:
            raise Transient(f"Secrets Manager did not answer ({type(error).__name__})") from None
        # What is pasted or piped into a secret tends to bring a line break along.
        text = str(answer.get("SecretString", "")).strip()
        if not text:
            raise Unauthorised(f"the secret {self._arn} is empty: put one with `aws secretsmanager put-secret-value`")
        return text
