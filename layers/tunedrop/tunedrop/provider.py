"""The fine-tuning service, through the ``openai`` client.

Everything that can go wrong comes out as one of :mod:`tunedrop.errors`. The client's own repetitions are off: it would
re-post a paid creation up to three times with no idempotency key.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol, Self

import httpx2
import openai
from openai.types import FileObject, Model, Upload
from openai.types.chat import ChatCompletion
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.uploads import UploadPart

from tunedrop.errors import Denied, Rejected, Throttled, Transient, TunedropError, Unauthorised, UnknownOutcome
from tunedrop.providers import PROFILES, ProviderProfile, UnknownProvider, is_base_url, profile_of, read_profiles
from tunedrop.refusals import recognise, without_quotations
from tunedrop.secret_store import KeySecret, Secret, StoredSecret, keys_of
from tunedrop.settings import ProviderSettings, load

PURPOSE: Final = "fine-tune"
PAGE = 100
CALL_SECONDS = 60.0
ANSWER_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
UPLOAD_SECONDS = 300.0  # for one read or write, not for the whole transfer
PART_SECONDS = 60.0  # likewise, of a part
DEFAULT_PAUSE_SECONDS = 30.0
MAX_PAUSE_SECONDS = 3600.0
# In whose place some services (Bedrock, gateways) answer 403.
_KEY_REFUSED = re.compile(
    r"(invalid|expired)_?api_?key|Expired_?Token|UnrecognizedClient"
    r"|\b(invalid|expired|revoked) (api[- ]key|(bearer )?token|credentials?)\b"
    r"|\b(api[- ]key|(bearer )?token|credentials?)\b.{0,40}\b(invalid|not valid|is valid|expired|revoked)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ProviderFile:
    """A file that the service holds; ``created_at`` in epoch seconds."""

    id: str
    name: str
    size: int
    status: str
    created_at: int


@dataclass(frozen=True, slots=True)
class ProviderUpload:
    """A file that is sent in parts, until ``expires_at`` (epoch seconds)."""

    id: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class ProviderJob:
    """A fine-tuning job as the service tells it; times in epoch seconds. ``document`` is the whole answer."""

    id: str
    status: str
    model: str
    training_file: str
    created_at: int
    estimated_finish: int | None
    fine_tuned_model: str | None
    trained_tokens: int | None
    error_code: str | None
    error_message: str | None
    result_files: tuple[str, ...]
    document: Mapping[str, Any]

    @classmethod
    def of(cls, job: FineTuningJob) -> Self:
        """The job in the client's form; fields that a compatible service leaves out are taken as absent."""
        error = getattr(job, "error", None)
        return cls(
            id=job.id,
            status=job.status,
            model=job.model,
            training_file=job.training_file,
            created_at=int(job.created_at),
            estimated_finish=getattr(job, "estimated_finish", None),
            fine_tuned_model=getattr(job, "fine_tuned_model", None),
            trained_tokens=getattr(job, "trained_tokens", None),
            # Some services answer an empty error object for a job that is well.
            error_code=getattr(error, "code", None),
            error_message=getattr(error, "message", None),
            result_files=tuple(getattr(job, "result_files", None) or ()),
            document=job.to_dict(mode="json", warnings=False),
        )


@dataclass(frozen=True, slots=True)
class ProviderModel:
    """What the service itself says of a model.

    ``tells_end``: whether it says anything of the model's end; ``end`` is the date from which on it cannot be trained.
    ``tunable`` is None where it does not say.
    """

    tells_end: bool = False
    end: date | None = None
    tunable: bool | None = None

    @classmethod
    def of(cls, model: Model) -> Self:
        """The model in the client's form.

        OpenAI answers ``shutdown_date`` (an ISO date), Azure ``deprecation.fine_tune`` (epoch seconds) and
        ``capabilities.fine_tune``.
        """
        told = model.to_dict(mode="json", warnings=False)
        deprecation, capabilities = (_mapping(told.get(name)) for name in ("deprecation", "capabilities"))
        ends = [_date(value) for value in (told.get("shutdown_date"), deprecation.get("fine_tune"))]
        tunable = capabilities.get("fine_tune")
        return cls(
            tells_end="shutdown_date" in told or "fine_tune" in deprecation,
            end=next((end for end in ends if end), None),
            tunable=tunable if isinstance(tunable, bool) else None,
        )


class Provider(Protocol):
    """The fine-tuning service, as the steps of a run use it.

    Reading raises Transient, Throttled, Unauthorised, Denied or Rejected; creating UnknownOutcome instead of Transient.
    """

    profile: ProviderProfile
    at_home: bool
    """Whether it is the profile's own service, rather than another that speaks its API."""

    def model(self, name: str) -> ProviderModel | None:
        """What the service says of a model; None where it does not say. Rejected where it has no such model."""

    def files_named(self, name: str) -> list[ProviderFile]:
        """Every file of that name, oldest first."""

    def upload(self, name: str, chunks: Iterable[bytes], size: int) -> ProviderFile:
        """Uploads a dataset of ``size`` bytes, as it is read."""

    def begin_upload(self, name: str, size: int) -> ProviderUpload:
        """Begins a dataset of ``size`` bytes that is sent in parts; there is no file before it is completed."""

    def add_part(self, upload_id: str, chunks: Sequence[bytes]) -> str:
        """Sends a part and returns its id; several may be sent at the same time, and one that is not named at the end
        does no harm."""

    def complete_upload(self, upload_id: str, part_ids: Sequence[str], md5: str) -> ProviderFile:
        """Makes the file of the parts, in the order given; ``md5`` (hexadecimal) is that of the whole."""

    def cancel_upload(self, upload_id: str) -> None:
        """Drops the parts; an upload that has ended is no fault."""

    def file(self, file_id: str) -> ProviderFile:
        """A file's state."""

    def delete_file(self, file_id: str) -> None:
        """Deletes a file; one that is gone is no fault."""

    def jobs_on(self, training_file: str) -> list[ProviderJob]:
        """Every job that trains on that file, oldest first."""

    def create_job(self, **parameters: Any) -> ProviderJob:
        """Creates a job: this is what costs money."""

    def job(self, job_id: str) -> ProviderJob:
        """A job's state."""

    def cancel_job(self, job_id: str) -> ProviderJob:
        """Cancels a job; one that has ended stays as it is."""

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """A job's events, oldest first."""

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """A job's checkpoints as the service tells them, oldest first."""

    def content(self, file_id: str) -> bytes:
        """A result file's content."""

    def chunks(self, file_id: str) -> Iterator[bytes]:
        """A result file's content as it is read; memory does not grow with it."""

    def ask(self, model: str, prompt: str, max_tokens: int) -> str:
        """A model's answer to a prompt."""


class OpenAIProvider:
    """Any service that the ``openai`` client can talk to."""

    def __init__(self, profile: ProviderProfile, base_url: str, api_key: Secret) -> None:
        """Raises :class:`~tunedrop.providers.UnknownProvider` where neither stack nor profile has a usable base URL."""
        self.profile = profile
        url = base_url or profile.base_url
        if not url:
            raise UnknownProvider(f"the provider {profile.name} needs a base URL: ProviderBaseUrl, or one in Providers")
        if not is_base_url(url):
            raise UnknownProvider(f"the base URL of the provider {profile.name} must be an https address")
        known = PROFILES.get(profile.like)
        self.at_home = known is not None and url == known.base_url
        self._api_key = api_key
        # Made before the key is known, since making it takes time that initialisation has and a request has not.
        self._client = openai.OpenAI(api_key="not known yet", base_url=url, max_retries=0, timeout=CALL_SECONDS)
        # The client imports these at their first use.
        _ = self._client.files, self._client.uploads, self._client.models, self._client.fine_tuning.jobs.checkpoints

    def model(self, name: str) -> ProviderModel | None:
        """See :class:`Provider`; a service that has no such question, or not for our key, says nothing."""

        def ask(client: openai.OpenAI) -> ProviderModel | None:
            try:
                return ProviderModel.of(_expect(client.models.retrieve(name), Model))
            except (_UnreadableAnswer, AttributeError, TypeError, ValueError):
                return None

        try:
            return self._read(ask)
        except Denied:
            return None

    def files_named(self, name: str) -> list[ProviderFile]:
        """See :class:`Provider`; no filter of the listing is trusted."""
        files = self._read(lambda client: [_file(file) for file in _pages(client.files.list(limit=PAGE))])
        return sorted((file for file in files if file.name == name), key=_age)

    def upload(self, name: str, chunks: Iterable[bytes], size: int) -> ProviderFile:
        """See :class:`Provider`; memory does not grow with ``size``."""
        body = io.BufferedReader(_Stream(chunks, size), buffer_size=1 << 16)

        def create(client: openai.OpenAI) -> ProviderFile:
            patient = client.with_options(timeout=UPLOAD_SECONDS)
            return _file(patient.files.create(file=(name, body, "application/jsonl"), purpose=PURPOSE))

        # What was read of the dataset cannot be read again: no second try with a fresh key here.
        return self._create(create, again=False, with_data=True)

    def begin_upload(self, name: str, size: int) -> ProviderUpload:
        """See :class:`Provider`."""

        def begin(client: openai.OpenAI) -> ProviderUpload:
            begun = client.uploads.create(bytes=size, filename=name, mime_type="application/jsonl", purpose=PURPOSE)
            upload = _expect(begun, Upload)
            return ProviderUpload(upload.id, int(upload.expires_at))

        return self._create(begin)

    def add_part(self, upload_id: str, chunks: Sequence[bytes]) -> str:
        """See :class:`Provider`; the chunks are not copied."""
        size = sum(map(len, chunks))

        def add(client: openai.OpenAI) -> str:
            data = io.BufferedReader(_Stream(chunks, size), buffer_size=1 << 16)
            patient = client.with_options(timeout=PART_SECONDS)
            return _expect(patient.uploads.parts.create(upload_id, data=("part", data)), UploadPart).id

        return self._create(add, with_data=True)

    def complete_upload(self, upload_id: str, part_ids: Sequence[str], md5: str) -> ProviderFile:
        """See :class:`Provider`."""

        def complete(client: openai.OpenAI) -> ProviderFile:
            patient = client.with_options(timeout=UPLOAD_SECONDS)  # the parts are put together in the meantime
            completed = _expect(patient.uploads.complete(upload_id, part_ids=list(part_ids), md5=md5), Upload)
            return _file(completed.file)

        return self._create(complete)

    def cancel_upload(self, upload_id: str) -> None:
        """See :class:`Provider`."""

        def cancel(client: openai.OpenAI) -> None:
            try:
                client.uploads.cancel(upload_id)
            except (openai.NotFoundError, openai.BadRequestError):
                return

        self._read(cancel)

    def file(self, file_id: str) -> ProviderFile:
        """See :class:`Provider`."""
        return self._read(lambda client: _file(client.files.retrieve(file_id)))

    def delete_file(self, file_id: str) -> None:
        """See :class:`Provider`."""

        def delete(client: openai.OpenAI) -> None:
            try:
                client.files.delete(file_id)
            except openai.NotFoundError:
                return

        self._read(delete)

    def jobs_on(self, training_file: str) -> list[ProviderJob]:
        """See :class:`Provider`; every job on every page is compared."""
        jobs = self._read(lambda client: [_job(job) for job in _pages(client.fine_tuning.jobs.list(limit=PAGE))])
        return sorted((job for job in jobs if job.training_file == training_file), key=_age)

    def create_job(self, **parameters: Any) -> ProviderJob:
        """See :class:`Provider`."""
        return self._create(lambda client: _job(client.fine_tuning.jobs.create(**parameters)))

    def job(self, job_id: str) -> ProviderJob:
        """See :class:`Provider`."""
        return self._read(lambda client: _job(client.fine_tuning.jobs.retrieve(job_id)))

    def cancel_job(self, job_id: str) -> ProviderJob:
        """See :class:`Provider`."""

        def cancel(client: openai.OpenAI) -> ProviderJob:
            try:
                return _job(client.fine_tuning.jobs.cancel(job_id))
            except (openai.BadRequestError, openai.ConflictError):
                # It has ended in the meantime: the service refuses, and its state says how it ended.
                return _job(client.fine_tuning.jobs.retrieve(job_id))

        return self._read(cancel)

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """See :class:`Provider`."""
        newest_first = self._read(
            lambda client: [
                _expect(event, FineTuningJobEvent).to_dict(mode="json")
                for event in _pages(client.fine_tuning.jobs.list_events(job_id, limit=PAGE))
            ]
        )
        return newest_first[::-1]

    def content(self, file_id: str) -> bytes:
        """See :class:`Provider`."""
        return self._read(lambda client: client.files.content(file_id).read())

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """See :class:`Provider`."""
        newest_first = self._read(
            lambda client: [
                _expect(checkpoint, FineTuningJobCheckpoint).to_dict(mode="json")
                for checkpoint in _pages(client.fine_tuning.jobs.checkpoints.list(job_id, limit=PAGE))
            ]
        )
        return newest_first[::-1]

    def chunks(self, file_id: str) -> Iterator[bytes]:
        """See :class:`Provider`."""
        with ExitStack() as opened:
            answer = self._read(
                lambda client: opened.enter_context(client.files.with_streaming_response.content(file_id))
            )
            rest = answer.iter_bytes(CHUNK_BYTES)
            while (chunk := _translated(lambda: next(rest, None), "", creating=False)) is not None:
                yield chunk

    def ask(self, model: str, prompt: str, max_tokens: int) -> str:
        """See :class:`Provider`."""

        def complete(client: openai.OpenAI) -> str:
            create = client.with_options(timeout=ANSWER_SECONDS).chat.completions.create
            messages: list[Any] = [{"role": "user", "content": prompt}]
            try:
                answer = create(model=model, messages=messages, max_completion_tokens=max_tokens)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                answer = create(model=model, messages=messages, max_tokens=max_tokens)  # its former name
            choices = _expect(answer, ChatCompletion).choices
            if not choices:
                raise _UnreadableAnswer
            return choices[0].message.content or ""

        return self._read(complete)

    def _create[Created](
        self, call: Callable[[openai.OpenAI], Created], *, again: bool = True, with_data: bool = False
    ) -> Created:
        """``with_data``: what the service says of the call may quote a dataset, and is not told."""
        return self._authorised(call, creating=True, again=again, with_data=with_data)

    def _read[Read](self, call: Callable[[openai.OpenAI], Read]) -> Read:
        return self._authorised(call, creating=False, again=True)

    def _authorised[Answer](
        self, call: Callable[[openai.OpenAI], Answer], *, creating: bool, again: bool, with_data: bool = False
    ) -> Answer:
        def attempt(key: str) -> Answer:
            client = self._client.with_options(api_key=_sendable(key))
            return _translated(lambda: call(client), key, creating=creating, with_data=with_data)

        key = self._api_key.value()
        try:
            return attempt(key)
        except Unauthorised:
            fresh = self._api_key.value(fresh=True)
            if fresh == key or not again:
                raise
        # The key was rotated. A call that was refused for its key has done nothing, a creating one neither.
        return attempt(fresh)


class Registry(Protocol):
    """The fine-tuning services of a stack, by name."""

    default: str

    def of(self, name: str | None) -> Provider:
        """The service of that name, None: the default. Unauthorised where a run's service is no longer configured."""

    def configured(self) -> Mapping[str, ProviderProfile]:
        """The services that have both a base URL and a key, by name."""


class OpenAIRegistry:
    """Services that the ``openai`` client can talk to, each with its key; a client is made when it is first asked for,
    the default's at once."""

    def __init__(self, profiles: Mapping[str, ProviderProfile], default: str, base_url: str, secret: Secret) -> None:
        """``base_url`` is the default's, empty for its profile's own; ``secret`` holds its key, or JSON: that of each.

        Raises:
            UnknownProvider: the default has no profile or no base URL.
        """
        self.default = default
        self._profiles = profiles
        self._secret = secret
        self._made: dict[str, Provider] = {default: self._make(profile_of(default, profiles), base_url)}

    def of(self, name: str | None) -> Provider:
        """See :class:`Registry`."""
        name = name or self.default
        if name not in self._made:
            try:
                self._made[name] = self._make(profile_of(name, self._profiles), "")
            except UnknownProvider as error:
                raise Unauthorised(f"{error}; a run waits for it until its deadline") from None
        return self._made[name]

    def configured(self) -> Mapping[str, ProviderProfile]:
        """See :class:`Registry`. Raises Unauthorised and Transient as fetching the secret does."""
        keys = keys_of(self._secret.value(), self.default)
        reachable = {n: p for n, p in self._profiles.items() if p.base_url or n == self.default}
        return {name: reachable[name] for name in sorted(keys.keys() & reachable.keys())}

    def _make(self, profile: ProviderProfile, base_url: str) -> OpenAIProvider:
        return OpenAIProvider(profile, base_url, KeySecret(self._secret, profile.name, self.default))


def connect(environment: Mapping[str, str]) -> OpenAIRegistry:
    """The fine-tuning services that ``environment`` names."""
    settings = load(ProviderSettings, environment)
    secret = StoredSecret(settings.provider_secret_arn)
    return OpenAIRegistry(read_profiles(settings.providers), settings.provider, settings.provider_base_url, secret)


class _UnreadableAnswer(Exception):
    """The service answered something that is not what its API promises."""


class _Stream(io.RawIOBase):
    """Chunks as a file of known size that can be read once; the client asks for its size by seeking."""

    def __init__(self, chunks: Iterable[bytes], size: int) -> None:
        super().__init__()
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if target not in (self._position, self._size):
            raise io.UnsupportedOperation("what was read is gone")
        return target

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            # Its length was told: a body of another would be the protocol's fault, not the dataset's.
            if self._position + len(chunk or b"") > self._size or (chunk is None and self._position < self._size):
                raise Transient(f"the dataset has another size than the {self._size} bytes that it was said to have")
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._position += count
        return count


def _sendable(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise Unauthorised("the provider secret holds characters that no API key has: put the key alone into it")
    return key


def _file(answer: object) -> ProviderFile:
    file = _expect(answer, FileObject)
    return ProviderFile(file.id, file.filename, file.bytes, file.status, int(file.created_at))


def _job(answer: object) -> ProviderJob:
    return ProviderJob.of(_expect(answer, FineTuningJob))


def _age(thing: ProviderFile | ProviderJob) -> tuple[int, str]:
    # Creation times count whole seconds; of two in one second the smaller id counts as the older.
    return thing.created_at, thing.id


def _expect[Kind](answer: object, kind: type[Kind]) -> Kind:
    # The client hands an HTML page with status 200 through as text, and an empty object as a model without its fields.
    if not isinstance(answer, kind) or not getattr(answer, "id", None):
        raise _UnreadableAnswer
    return answer


def _pages(first: Any) -> Iterator[object]:
    """Every item on every page, once."""
    seen: set[str] = set()
    for page in first.iter_pages():
        # The client takes whatever is no list for an empty one, and would make a job look as if it were not there.
        if not isinstance(page.data, list):
            raise _UnreadableAnswer
        new = [item for item in page.data if getattr(item, "id", None) not in seen]
        if not new:
            return  # a service that repeats its pages would otherwise be read for ever
        yield from new
        seen.update(item.id for item in new)


def _translated[Answer](call: Callable[[], Answer], key: str, *, creating: bool, with_data: bool = False) -> Answer:
    """Makes the call; whatever it raises comes out as an error of ours, with nothing in it or behind it that quotes
    the key or a dataset."""
    unknown = UnknownOutcome if creating else Transient
    try:
        return call()
    except TunedropError:
        raise  # of the bucket, from which an upload reads while it sends
    except openai.APIStatusError as error:
        raise _status_error(error, "" if with_data else _said(error, key), creating=creating) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__
        if isinstance(cause, TunedropError):
            raise cause from None
        raise unknown(f"the fine-tuning service did not answer ({type(error).__name__})") from None
    except httpx2.HTTPError as error:  # in the middle of what is streamed
        raise unknown(f"the fine-tuning service's answer broke off ({type(error).__name__})") from None
    except (openai.OpenAIError, _UnreadableAnswer, AttributeError, TypeError, ValueError) as error:
        # An HTML page, an empty or a cut body: the client lets each through in another way.
        raise unknown(f"the fine-tuning service answered something unreadable ({type(error).__name__})") from None


def _status_error(error: openai.APIStatusError, said: str, *, creating: bool) -> TunedropError:
    status, code = error.status_code, _code(error)
    if status == 401 or (status == 403 and _KEY_REFUSED.search(f"{code} {_message(error)}")):
        # The service's own sentence quotes part of the key.
        return Unauthorised(
            f"the fine-tuning service refused our API key ({status}): put a valid one into the provider secret"
        )
    if status < 500 and (refusal := recognise((error.code, error.type), _message(error), status)):
        return refusal.error(said)
    if status == 429:
        return Throttled("the fine-tuning service asks for a pause (429)", _pause(error.response.headers))
    if creating and status in (400, 413, 415, 422):
        return Rejected(code or f"http_{status}", f"the fine-tuning service refused the request ({status}){said}")
    if status >= 500 or status in (408, 409):
        what = f"the fine-tuning service answered {status}{said}"
        return UnknownOutcome(what) if creating else Transient(what)
    return Denied(code or f"http_{status}", f"the fine-tuning service does not permit this ({status}){said}")


def _code(error: openai.APIStatusError) -> str:
    code = str(error.code or error.type or "")
    return code if _CODE.fullmatch(code) else ""


def _said(error: openai.APIStatusError, key: str) -> str:
    text = without_quotations(_message(error).replace(key, "…"))[:300]
    return f": {text}" if text else ""


def _message(error: openai.APIStatusError) -> str:
    # Where there is no error object, as in FastAPI's {"detail": "..."}, the client hands the body on as it is.
    body = _mapping(error.body)
    return next((text for name in ("message", "detail") if isinstance(text := body.get(name), str)), "")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _date(value: object) -> date | None:
    try:
        if isinstance(value, str):
            return date.fromisoformat(value[:10])
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC).date()
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _pause(headers: Mapping[str, str]) -> float:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return _bounded(seconds)
    try:
        return _bounded(parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return DEFAULT_PAUSE_SECONDS


def _bounded(seconds: float) -> float:
    return min(max(seconds, 1.0), MAX_PAUSE_SECONDS)
