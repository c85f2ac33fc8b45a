"""Sending a dataset while it is being read, and committing it only once it is known to be valid.

Bytes leave as they are checked; a file comes into being at the service with :meth:`Outgoing.commit` alone. Up to what
the provider's profile says this is one streaming call whose end is held back until then; above, an upload in parts,
which are sent at the same time, noted in the ledger, and not sent again by an attempt that continues a dead one's work.
Memory grows with the parts under way, never with the dataset.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from queue import Full, Queue
from types import TracebackType
from typing import Any, Protocol, Self

from tunedrop.clock import now
from tunedrop.errors import (
    Denied,
    Final,
    NotYet,
    Rejected,
    Throttled,
    Transient,
    TunedropError,
    Unauthorised,
    UnknownOutcome,
)
from tunedrop.ledger import Ledger
from tunedrop.limits import FILES, in_turn, limit_of
from tunedrop.provider import Provider, ProviderFile

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
RESERVE_SECONDS = 60.0
"""So long before the function's time is over, no more is begun."""
ATTEMPTS_WITHOUT_TIME = 5
"""So often may the function's time be over before a dataset is through: in the hour that an upload in parts lives, a
function of 15 minutes has no more attempts."""
LAST_LOOK_SECONDS = 120.0
"""A commit whose outcome is unknown is looked for so long before it is repeated: listings lag behind."""
WHOLE_BYTES = 8 << 20
"""What is no larger is sent as a whole after the verdict. Of a larger one the last chunk is held back until then."""
WAITING_CHUNKS = 16
"""So many may have been read while a call has not got under way: the service's turn has to be asked for first."""
SENDERS = 3
ATTEMPTS = 4
LONGEST_PAUSE_SECONDS = 30.0
NOTE_SECONDS = 1.0
"""A death costs the parts of so long."""
ENDING_SECONDS = 20.0
LONGEST_CALL_SECONDS = 930.0
"""The function is ended before that, and with it the call."""

type _Turn = Callable[[], AbstractContextManager[None]]


class OutOfTime(Exception):
    """The function's time is nearly over, and another attempt is worth while."""


class Outgoing:
    """A dataset on its way to the service, as a context manager.

    Hand it all chunks in order, through :meth:`through` or :meth:`send`, then call :meth:`commit`. Where the block is
    left without, nothing of it becomes a file; after a final error what was sent is dropped, after any other it is kept
    for the next attempt.
    """

    def __init__(
        self,
        run_id: str,
        name: str,
        size: int,
        *,
        provider: Provider,
        ledger: Ledger,
        seconds_left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """``size`` bytes are to come and will be the file called ``name``, without a byte order mark at their start."""
        self._name = name
        self._size = size
        self._provider = provider
        self._notes = _Notes(ledger, run_id, name)
        self._seconds_left = seconds_left
        self._turn = partial(in_turn, run_id, name, limit_of(provider.profile, FILES), LONGEST_CALL_SECONDS, ledger)
        self._opening = b""
        self._seen = 0
        self._way: _Way | None = None
        self._not_yet: NotYet | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._way:
            self._way.end(drop=isinstance(error, Final))
        elif isinstance(error, Final):
            self._drop_what_is_noted()

    def in_time(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Hands the chunks on, as long as there is time, and sends nothing.

        Raises:
            OutOfTime: before the function's time is over.
            Denied: it was over too often; other attempts would fare no better.
        """
        for chunk in chunks:
            self._look_at_the_clock()
            self._seen += len(chunk)
            yield chunk

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Sends the chunks as somebody else reads them; raises as :meth:`send`.

        Before its turn nothing of it leaves, but it is read: what is wrong with it is not to wait.
        """
        for chunk in self.in_time(chunks):
            if self._not_yet is None:
                try:
                    self.send(chunk)
                except NotYet as error:
                    self._not_yet = error
            yield chunk

    def stop(self) -> None:
        """Sends nothing more, and drops what was sent: it is known by now that nothing will be committed."""
        if self._way:
            self._way.end(drop=True)
        self._way = _Nowhere()

    def send(self, chunk: bytes) -> None:
        """Sends a chunk, sooner or later; waits while too many are under way.

        Raises:
            OutOfTime, Denied: as :meth:`in_time`, while it waits.
            NotYet: the service's limit is used up for now.
            UnknownOutcome: an earlier attempt's commit may still show; or a call failed, and nothing was committed.
            Rejected, Denied, Throttled, Unauthorised, Transient: as the service answered.
        """
        if self._way is None:
            chunk = self._opening = self._opening + chunk
            if len(chunk) < min(len(BYTE_ORDER_MARK), self._size):
                return
            data = chunk.removeprefix(BYTE_ORDER_MARK)
            self._way = self._choose(self._size - len(chunk) + len(data))
            self._opening, chunk = b"", data
        self._way.send(chunk)

    def commit(self) -> ProviderFile:
        """Makes a file of what was sent, or finds the one that an earlier attempt has made.

        Raises:
            OutOfTime, Denied: as :meth:`in_time`, before anything was committed.
            NotYet: the service's limit is used up for now; nothing was committed.
            UnknownOutcome: the service may have made the file; the next attempt looks for it.
            Rejected, Denied, Throttled, Unauthorised, Transient: as the service answered; there is no file.
        """
        if self._not_yet:
            raise self._not_yet
        assert self._way, "an empty dataset is not valid"  # noqa: S101 - ours to keep
        return self._way.commit()

    def _choose(self, size: int) -> _Way:
        # A completed upload cannot be read: whatever made the file, it is found in the list.
        whole = [file for file in self._provider.files_named(self._name) if file.size == size]
        for surplus in whole[1:]:
            self._provider.delete_file(surplus.id)
        if whole:
            return _Arrived(whole[0], self._provider)
        committed_at = self._notes.values.get("committed_at")
        if committed_at is not None and now() < committed_at + LAST_LOOK_SECONDS:
            raise UnknownOutcome("whether the dataset has arrived is not known yet")
        above = self._provider.profile.uploads_above
        task = _Task(self._name, size, self._provider, self._notes, self._turn, self._look_at_the_clock)
        return _InParts(task) if above is not None and size > above else _OneCall(task)

    def _drop_what_is_noted(self) -> None:
        """Drops what earlier attempts left, where this one did not come to look for it."""
        with suppress(TunedropError):
            if upload := self._notes.values.get("upload"):
                self._provider.cancel_upload(upload["id"])
            if "committed_at" in self._notes.values:
                for file in self._provider.files_named(self._name):
                    self._provider.delete_file(file.id)

    def _look_at_the_clock(self) -> None:
        if self._seconds_left() >= RESERVE_SECONDS:
            return
        times = self._notes.values.get("out_of_time", 0) + 1
        self._notes.write(out_of_time=times)
        if times < ATTEMPTS_WITHOUT_TIME:
            raise OutOfTime
        raise Denied(
            "too_slow",
            f"the upload function's time was over {times} times before the dataset was checked and sent, the last time "
            f"after {self._seen:,} bytes: give UploadFunction more memory in template.yaml, which makes it faster, or "
            "drop the dataset in pieces",
        )


class _Way(Protocol):
    """How the bytes travel."""

    def send(self, chunk: bytes) -> None: ...

    def commit(self) -> ProviderFile: ...

    def end(self, *, drop: bool) -> None: ...


class _Nowhere:
    """Nothing is sent any more."""

    def send(self, chunk: bytes) -> None:
        pass

    def commit(self) -> ProviderFile:
        raise AssertionError("what was given up is not committed")

    def end(self, *, drop: bool) -> None:
        pass


class _Arrived:
    """An earlier attempt has committed it; only the check is made again."""

    def __init__(self, file: ProviderFile, provider: Provider) -> None:
        self._file = file
        self._provider = provider

    def send(self, chunk: bytes) -> None:
        pass

    def commit(self) -> ProviderFile:
        return self._file

    def end(self, *, drop: bool) -> None:
        if drop:
            with suppress(TunedropError):
                self._provider.delete_file(self._file.id)


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be sent, and what a way of sending it works with."""

    name: str
    size: int
    provider: Provider
    notes: _Notes
    turn: _Turn
    be_patient: Callable[[], None]

    @property
    def part_bytes(self) -> int:
        return self.provider.profile.part_bytes


class _OneCall:
    """One multipart request. It is as long as it says it is: without its last bytes the service makes no file of it."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._held: deque[bytes] = deque()
        self._waiting: Queue[bytes | None] = Queue(WAITING_CHUNKS)
        self._given_up = threading.Event()
        self._pool = ThreadPoolExecutor(1, "send")
        self._call: Future[ProviderFile] | None = None

    def send(self, chunk: bytes) -> None:
        if chunk:  # an empty one holds nothing back
            self._held.append(chunk)
        while len(self._held) > 1 and self._task.size > WHOLE_BYTES:
            self._hand_on(self._held.popleft())

    def commit(self) -> ProviderFile:
        with self._task.notes.committing():
            if self._call is None:
                with self._task.turn():
                    return self._upload(self._held)
            for chunk in (*self._held, None):
                self._hand_on(chunk)
            return self._call.result()

    def end(self, *, drop: bool) -> None:  # noqa: ARG002 - there is nothing to keep
        if self._call is None:
            return
        self._given_up.set()
        with suppress(Full):
            self._waiting.put_nowait(None)
        wait([self._call], ENDING_SECONDS)
        self._pool.shutdown(wait=False)

    def _hand_on(self, chunk: bytes | None) -> None:
        if self._call is None:
            self._call = self._begun()
        while True:
            if self._call.done():
                self._call.result()
                raise UnknownOutcome("the fine-tuning service answered before it had the whole dataset")
            try:
                return self._waiting.put(chunk, timeout=1)
            except Full:
                self._task.be_patient()

    def _begun(self) -> Future[ProviderFile]:
        # The turn is asked for here: a thread beside the check would be kept waiting for it, and the line with it.
        turn = ExitStack()
        turn.enter_context(self._task.turn())

        def call() -> ProviderFile:
            with turn:
                return self._upload(self._chunks())

        return self._pool.submit(call)

    def _upload(self, chunks: Iterable[bytes]) -> ProviderFile:
        return self._task.provider.upload(self._task.name, chunks, self._task.size)

    def _chunks(self) -> Iterator[bytes]:
        while (chunk := self._waiting.get()) is not None:
            if self._given_up.is_set():
                break
            yield chunk
        if self._given_up.is_set():
            raise Transient("sending was given up")


class _InParts:
    """An upload in parts, several at the same time. What has arrived is noted, and is sent no second time."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._upload = _Upload.noted(task.notes, task.size, task.part_bytes)
        self._resumed = self._upload is not None
        self._md5 = hashlib.md5(usedforsecurity=False)  # what the service compares
        self._part: list[bytes] = []
        self._room = task.part_bytes
        self._count = 0
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(SENDERS, "send")
        self._under_way: deque[Future[None]] = deque()

    def send(self, chunk: bytes) -> None:
        self._md5.update(chunk)
        while len(chunk) >= self._room:
            self._part.append(chunk[: self._room])
            chunk = chunk[self._room :]
            self._send_part()
        if chunk:
            self._part.append(chunk)
            self._room -= len(chunk)

    def commit(self) -> ProviderFile:
        if self._part:
            self._send_part()
        while self._under_way:
            self._wait_for_one()
        upload = self._begun()
        ids = [upload.parts[number] for number in range(self._count)]
        with self._task.notes.committing():
            return self._complete(upload, ids)

    def end(self, *, drop: bool) -> None:
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(self._under_way, ENDING_SECONDS)
        if self._upload and not drop:
            self._task.notes.complete(self._upload)
        elif self._upload:
            # What cannot be cancelled now expires within the hour.
            with suppress(TunedropError):
                self._task.provider.cancel_upload(self._upload.id)
                self._task.notes.write(upload=None, committed_at=None)

    def _send_part(self) -> None:
        number, chunks = self._count, self._part
        self._count, self._part, self._room = number + 1, [], self._task.part_bytes
        upload = self._begun()
        if number in upload.parts:
            return
        while len(self._under_way) >= SENDERS:
            self._wait_for_one()
        self._under_way.append(self._pool.submit(self._arrive, upload, number, chunks))

    def _begun(self) -> _Upload:
        if self._upload is None:
            with self._task.turn():
                begun = self._task.provider.begin_upload(self._task.name, self._task.size)
            self._upload = _Upload(begun.id, begun.expires_at, self._task.size, self._task.part_bytes, {})
            self._task.notes.write(upload=asdict(self._upload))
        return self._upload

    def _wait_for_one(self) -> None:
        while not wait([self._under_way[0]], 1).done:
            self._task.be_patient()
        self._under_way.popleft().result()

    def _arrive(self, upload: _Upload, number: int, chunks: list[bytes]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                part_id = self._task.provider.add_part(upload.id, chunks)
                break
            except (UnknownOutcome, Throttled) as error:
                pause = error.wait_seconds if isinstance(error, Throttled) else attempt - 1
                # Sent again all the same if it did arrive: a part that is not named at the end does no harm.
                if attempt == ATTEMPTS or pause > LONGEST_PAUSE_SECONDS or self._stopping.wait(pause):
                    raise
            except (Rejected, Denied) as error:
                raise self._unless_gone(error, upload) from error
        self._task.notes.arrived(upload, number, part_id)

    def _complete(self, upload: _Upload, ids: list[str]) -> ProviderFile:
        unknown: UnknownOutcome | None = None
        for attempt in range(ATTEMPTS):
            try:
                return self._task.provider.complete_upload(upload.id, ids, self._md5.hexdigest())
            except UnknownOutcome as error:
                unknown = error
                self._stopping.wait(attempt)
            except (Rejected, Denied) as error:
                if unknown:  # completed by the call that was not answered, it seems: the list will tell
                    break
                raise self._unless_gone(error, upload) from error
        assert unknown, "the loop is left only by an answer, a refusal, or this"  # noqa: S101 - ours to keep
        raise unknown

    def _unless_gone(self, error: Final, upload: _Upload) -> TunedropError:
        """The error to raise where the service refuses: its own, unless the reason is likely to be the upload's end."""
        if not self._resumed and now() < upload.expires_at:
            return error
        self._task.notes.write(upload=None, committed_at=None)
        return Transient("an upload in parts is no longer there; the next attempt begins another")


@dataclass(slots=True)
class _Upload:
    """An upload in parts; ``parts`` are the ids of those that have arrived, by number."""

    id: str
    expires_at: int
    size: int
    part_bytes: int
    parts: dict[int, str]

    @classmethod
    def noted(cls, notes: _Notes, size: int, part_bytes: int) -> Self | None:
        """The one that an earlier attempt has begun, if it can be continued."""
        if "upload" not in notes.values:
            return None
        upload = cls(**notes.values["upload"])
        if (upload.size, upload.part_bytes) != (size, part_bytes) or upload.expires_at <= now():
            return None
        upload.parts = {int(number): part_id for number, part_id in upload.parts.items()}
        return upload


class _Notes:
    """What is left in the ledger for the next attempt: the upload in parts, and since when the end may have come."""

    def __init__(self, ledger: Ledger, run_id: str, name: str) -> None:
        self._ledger = ledger
        self._run_id = run_id
        self._name = name
        self._writing = threading.Lock()
        self._written_at = -math.inf
        self._unwritten = False
        self.values = ledger.noted(run_id, name)

    def write(self, **changes: Any) -> None:
        """Changes some of the values; None forgets one."""
        with self._writing:
            self._write(changes)

    def arrived(self, upload: _Upload, number: int, part_id: str) -> None:
        """Adds a part; several may arrive at the same time. Not each is worth a write, which holds all of them."""
        with self._writing:
            upload.parts[number] = part_id
            self._unwritten = self._is_noted(upload)
            if self._unwritten and time.monotonic() >= self._written_at + NOTE_SECONDS:
                self._write({"upload": asdict(upload)})

    def complete(self, upload: _Upload) -> None:
        """Writes what is not written yet."""
        with self._writing:
            if self._unwritten and self._is_noted(upload):
                self._write({"upload": asdict(upload)})

    def _is_noted(self, upload: _Upload) -> bool:
        """Whether it still stands there: one that turned out to be gone is not to come back with a part's arrival."""
        return bool(self.values.get("upload", {}).get("id") == upload.id)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Notes the time before what makes the file; takes it back where there is none for certain."""
        self.write(committed_at=now())
        try:
            yield
        except (NotYet, Rejected, Denied, Throttled, Transient, Unauthorised):
            self.write(committed_at=None)
            raise

    def _write(self, changes: dict[str, Any]) -> None:
        values = {name: value for name, value in {**self.values, **changes}.items() if value is not None}
        self._ledger.note(self._run_id, self._name, values)
        self._written_at = time.monotonic()
        self._unwritten = False
        self.values = values
