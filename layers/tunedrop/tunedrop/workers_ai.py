"""Workers AI's finetunes, over Cloudflare's API.

https://developers.cloudflare.com/api/resources/ai/subresources/finetunes has neither a deletion nor a reading of one: a
name is taken for good. What can go wrong comes out as one of :mod:`tunedrop.errors`; nothing is repeated here but
a request that was refused for a token that has been replaced.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

import urllib3

from tunedrop.errors import Denied, Rejected, Throttled, Transient, TunedropError, Unauthorised, UnknownOutcome
from tunedrop.secret_store import Secret, StoredSecret
from tunedrop.settings import WorkersAiSettings, load

CALL_SECONDS = 60.0
UPLOAD_SECONDS = 300.0  # for one read or write, not for the whole transfer
MAX_ANSWER_BYTES = 8 << 20
MAX_PAGES = 100
DEFAULT_PAUSE_SECONDS = 30.0
MAX_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Finetune:
    """A finetune as the listing tells it; ``created_at`` is ISO 8601."""

    id: str
    name: str
    model: str
    description: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of a finetune: its exact name, its size in bytes, and what opens it anew for reading."""

    name: str
    size: int
    open: Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an error of Cloudflare's means for a run: its code, how it ends, and a sentence with what mends it."""

    code: str
    ends: type[Denied | Rejected]
    meaning: str


TOO_MANY = Refusal(
    "too_many_adapters",
    Denied,
    "the account holds as many adapters as it may, and the API deletes none: ask Cloudflare, or name another account "
    "as WorkersAiAccountId",
)
NOT_PERMITTED = Refusal(
    "permission_denied",
    Denied,
    'the API token may not do this: give it "Workers AI: Edit" on the account that WorkersAiAccountId names',
)
UNSUPPORTED = Refusal(
    "unsupported_model",
    Rejected,
    "Workers AI does not serve adapters of this model (any more): train on another one",
)
NAME_TAKEN = Refusal(
    "name_taken", Rejected, "Workers AI knows the name already: drop the adapter into a folder of another name"
)
# https://developers.cloudflare.com/workers-ai/platform/errors/; 3037 is not on that page, and comes after uploads that
# went well: https://github.com/cloudflare/cloudflare-docs/issues/14757 and 23272.
REFUSALS: Mapping[int, Refusal] = {
    3037: Refusal(
        "finetune_not_found",
        Rejected,
        "Workers AI does not find the finetune: it is not ready yet, or its adapter does not fit the model",
    ),
    3039: Refusal("finetune_incomplete", Rejected, "Workers AI misses one of the finetune's two files"),
    5005: UNSUPPORTED,
    5007: UNSUPPORTED,
    3042: UNSUPPORTED,
    5018: Refusal("model_not_allowed", Denied, "the account may not use this model: ask Cloudflare for access to it"),
    3041: Refusal("model_not_allowed", Denied, "the account may not use this model: ask Cloudflare for access to it"),
    5016: Refusal(
        "model_terms", Denied, "the account has not agreed to the model's terms: send it the prompt 'agree' once"
    ),
    3023: Refusal("account_blocked", Denied, "Workers AI is not available for the account: ask Cloudflare"),
    3036: Refusal(
        "daily_allocation_used",
        Denied,
        "the account's free daily allocation is used up: wait a day, or pay for Workers",
    ),
    3006: Refusal("too_large", Rejected, "Workers AI finds the file too large: train with a smaller r"),
}
# What has no documented code, by its words.
_WORDS: tuple[tuple[re.Pattern[str], Refusal], ...] = (
    (re.compile(r"MODEL_NOT_SUPPORTED|model\b.{0,60}\bnot support", re.IGNORECASE), UNSUPPORTED),
    (re.compile(r"(limit|maximum|too many)\b.{0,60}\b(finetune|adapter|lora)", re.IGNORECASE), TOO_MANY),
    (re.compile(r"(finetune|adapter|lora)s?\b.{0,60}\b(limit|maximum|too many)", re.IGNORECASE), TOO_MANY),
    (re.compile(r"name\b.{0,60}\b(already|taken|exists)", re.IGNORECASE), NAME_TAKEN),
)
_THERE_ALREADY = re.compile(r"already (exists|uploaded|there)|can(no|')t be (changed|edited|replaced)", re.IGNORECASE)


class WorkersAi(Protocol):
    """What publishing asks of Workers AI.

    Every method raises Transient, Throttled, Unauthorised, Denied or Rejected; creating UnknownOutcome for Transient.
    """

    def finetunes(self) -> list[Finetune]:
        """Every finetune of the account, oldest first."""

    def create(self, model: str, name: str, description: str) -> Finetune:
        """Creates a finetune, which no one else may use: this is what cannot be undone."""

    def upload(self, finetune_id: str, asset: Asset) -> None:
        """Gives a finetune one of its files; one that it has already stays as it is."""

    def ask(self, model: str, finetune: str, prompt: str, max_tokens: int) -> str:
        """What ``model`` answers with the finetune of that name or id."""


class CloudflareWorkersAi:
    """Workers AI in one account."""

    def __init__(self, base_url: str, account_id: str, token: Secret) -> None:
        self._account = f"{base_url.rstrip('/')}/accounts/{quote(account_id, safe='')}/ai"
        self._token = token
        self._pool = urllib3.PoolManager(retries=False)

    def finetunes(self) -> list[Finetune]:
        """See :class:`WorkersAi`. No paging is documented; where the listing says that it is paged, all is read."""
        found: dict[str, Finetune] = {}
        for page in range(1, MAX_PAGES + 1):
            envelope = self._call("GET", "/finetunes" if page == 1 else f"/finetunes?page={page}")
            listed = list(_finetunes(envelope.get("result")))
            new = [finetune for finetune in listed if finetune.id not in found]
            found.update((finetune.id, finetune) for finetune in new)
            if not new or not _more(envelope.get("result_info"), page, len(found)):
                break
        return sorted(found.values(), key=lambda finetune: (finetune.created_at, finetune.id))

    def create(self, model: str, name: str, description: str) -> Finetune:
        """See :class:`WorkersAi`."""
        order = {"model": model, "name": name, "description": description, "public": False}
        envelope = self._call("POST", "/finetunes", json.dumps(order).encode(), creating=True)
        try:
            (finetune,) = _finetunes(envelope.get("result"))
        except (ValueError, Transient) as error:
            raise UnknownOutcome("Workers AI created something that its answer does not name") from error
        return finetune

    def upload(self, finetune_id: str, asset: Asset) -> None:
        """See :class:`WorkersAi`. Memory does not grow with the file."""
        boundary = f"tunedrop-{secrets.token_hex(16)}"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file_name"\r\n\r\n{asset.name}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{asset.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        def body() -> Iterator[bytes]:
            yield head
            yield from _of_size(asset)
            yield tail

        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + asset.size + len(tail)),
        }
        try:
            self._call("POST", f"/finetunes/{quote(finetune_id, safe='')}/finetune-assets", body, headers=headers)
        except _ThereAlready:
            return

    def ask(self, model: str, finetune: str, prompt: str, max_tokens: int) -> str:
        """See :class:`WorkersAi`."""
        messages = [{"role": "user", "content": prompt}]
        order = {"messages": messages, "raw": True, "lora": finetune, "max_tokens": max_tokens}
        result = self._call("POST", f"/run/{quote(model, safe='@/')}", json.dumps(order).encode()).get("result")
        answer = result.get("response") if isinstance(result, dict) else None
        if not isinstance(answer, str):
            raise Transient("Workers AI answered a prompt with something unreadable")
        return answer

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | Callable[[], Iterable[bytes]] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        creating: bool = False,
    ) -> dict[str, Any]:
        token = self._token.value()
        try:
            return self._attempt(method, path, body, headers or {}, token, creating=creating)
        except Unauthorised:
            fresh = self._token.value(fresh=True)
            if fresh == token:
                raise
        return self._attempt(method, path, body, headers or {}, fresh, creating=creating)  # it was replaced

    def _attempt(
        self,
        method: str,
        path: str,
        body: bytes | Callable[[], Iterable[bytes]] | None,
        headers: Mapping[str, str],
        token: str,
        *,
        creating: bool,
    ) -> dict[str, Any]:
        unknown = UnknownOutcome if creating else Transient
        if not (token.isascii() and token.isprintable()):
            raise Unauthorised(
                "the Workers AI secret holds characters that no API token has: put the token alone into it"
            )
        sent = {"authorization": f"Bearer {token}", "accept": "application/json", "user-agent": "tunedrop"}
        sent |= {"content-type": "application/json"} if isinstance(body, bytes) else {}
        try:
            answer = self._pool.request(
                method,
                self._account + path,
                body=body() if callable(body) else body,
                headers={**sent, **headers},
                timeout=urllib3.Timeout(connect=10, read=UPLOAD_SECONDS if callable(body) else CALL_SECONDS),
                redirect=False,
                preload_content=False,
            )
            with answer:
                text = answer.read(MAX_ANSWER_BYTES + 1)
        except urllib3.exceptions.HTTPError as error:
            raise unknown(f"Workers AI did not answer ({type(error).__name__})") from error
        envelope = _envelope(text)
        if answer.status == HTTPStatus.OK and envelope.get("success") is True:
            return envelope
        raise _error(answer.status, answer.headers, envelope, token, creating=creating, uploading=callable(body))


def connect(environment: Mapping[str, str]) -> CloudflareWorkersAi | None:
    """Workers AI as ``environment`` names it; None where the stack has no account to publish in."""
    settings = load(WorkersAiSettings, environment)
    if not settings.workers_ai_account_id:
        return None
    secret = StoredSecret(settings.workers_ai_secret_arn)
    return CloudflareWorkersAi(settings.workers_ai_base_url, settings.workers_ai_account_id, secret)


class _ThereAlready(TunedropError):
    """What was to be sent is there."""


def _of_size(asset: Asset) -> Iterator[bytes]:
    """The asset's bytes; its length was told before, so that a body of another would be a fault of the protocol."""
    size = 0
    for chunk in asset.open():
        size += len(chunk)
        if size > asset.size:
            break
        yield chunk
    if size != asset.size:
        raise Transient(f"{asset.name} has another size than the {asset.size} bytes that it was said to have")


def _envelope(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text) if len(text) <= MAX_ANSWER_BYTES else None
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _finetunes(result: object) -> Iterator[Finetune]:
    """The finetunes in a result, which is one, a list, or (on the page about adapters) a list of a list of them."""
    if isinstance(result, list):
        for item in result:
            yield from _finetunes(item)
        return
    if not isinstance(result, dict) or not isinstance(result.get("id"), str) or not result["id"]:
        # Whatever is no list must not look like an empty one: the finetune would be created again.
        raise Transient("Workers AI listed something unreadable")
    texts = (result.get(name) for name in ("name", "model", "description", "created_at"))
    yield Finetune(result["id"], *(text if isinstance(text, str) else "" for text in texts))


def _more(info: object, page: int, count: int) -> bool:
    if not isinstance(info, dict):
        return False
    pages, total = info.get("total_pages"), info.get("total_count")
    return (isinstance(pages, int) and page < pages) or (isinstance(total, int) and count < total)


def _error(
    status: int,
    headers: Mapping[str, str],
    envelope: Mapping[str, Any],
    token: str,
    *,
    creating: bool,
    uploading: bool,
) -> TunedropError:
    errors = envelope.get("errors")
    listed = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    codes = [code for error in listed if isinstance(code := error.get("code"), int)]
    words = "; ".join(text for error in listed if isinstance(text := error.get("message"), str))
    said = f" It said: {_cut(words.replace(token, '…'))} ({', '.join(map(str, codes)) or status})" if words else ""
    if status == HTTPStatus.UNAUTHORIZED:
        return Unauthorised("Cloudflare refused our API token (401): put a valid one into the Workers AI secret")
    if uploading and (status == HTTPStatus.CONFLICT or _THERE_ALREADY.search(words)):
        return _ThereAlready(words)
    if status < 500:
        known = next((REFUSALS[code] for code in codes if code in REFUSALS), None)
        known = known or next((refusal for pattern, refusal in _WORDS if pattern.search(words)), None)
        if known:
            return known.ends(known.code, f"{known.meaning}.{said}")
    if status == HTTPStatus.FORBIDDEN:
        return NOT_PERMITTED.ends(NOT_PERMITTED.code, f"{NOT_PERMITTED.meaning}.{said}")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Throttled("Workers AI asks for a pause (429)", _pause(headers))
    if status in (400, 404, 405, 413, 415, 422):
        return Rejected(f"http_{status}", f"Workers AI refused this ({status}).{said}")
    unknown = UnknownOutcome if creating else Transient
    return unknown(f"Workers AI answered {status}{'' if envelope else ' with something unreadable'}.{said}")


def _cut(text: str) -> str:
    return " ".join(text.split())[:300]


def _pause(headers: Mapping[str, str]) -> float:
    try:
        return min(max(float(headers["retry-after"]), 1.0), MAX_PAUSE_SECONDS)
    except (KeyError, ValueError):
        return DEFAULT_PAUSE_SECONDS
