"""Sending, to the emulated service with the real client: whatever happens, what is committed is whole, and once."""

import hashlib
import itertools
import threading
import time

import pytest
from msgspec.structs import replace
from tunedrop import provider as adapter
from tunedrop import transfer
from tunedrop.errors import Denied, Rejected, Superseded, Throttled, Transient, Unauthorised, UnknownOutcome
from tunedrop.provider import OpenAIProvider
from tunedrop.providers import PROFILES
from tunedrop.runs import Run, RunRequest
from tunedrop.transfer import ATTEMPTS_WITHOUT_TIME, BYTE_ORDER_MARK, LAST_LOOK_SECONDS, Outgoing, OutOfTime

from tests.local.provider_support import KEY, Provider, until
from tests.unit.fakes import FakeSecret

PART = 40_000
ABOVE = 100_000
PARTS = 6
LARGE = bytes(range(256)) * 900  # 230,400 bytes: five parts and a bit
SMALL = LARGE[:ABOVE]
PROFILE = replace(PROFILES["openai"], uploads_above=ABOVE, part_bytes=PART)
NUMBERS = itertools.count()

FAULTS = {
    "500": {"status": 500},
    "500 after": {"status": 500, "after": True},
    "HTML": {"html": 200},
    "HTML after": {"html": 502, "after": True},
    "reset before": {"reset": "before"},
    "reset after": {"reset": "after"},
    "empty": {"truncate": 0},
    "cut": {"truncate": 20, "whole_length": True},
    "hang": {"hang": 1.2},
    "hang after": {"hang": 1.2, "after": True},
    "401": {"status": 401},
    "429": {"status": 429, "headers": {"retry-after": "1"}},
}


@pytest.fixture(scope="module")
def emulation():
    emulation = Provider.start(time_scale=1)
    yield emulation
    emulation.stop()


@pytest.fixture
def service(emulation):
    """The emulated service, with no fault left over."""
    yield emulation
    emulation.order("DELETE", "/faults")
    emulation.order("PATCH", "/manners", {"upload_lifetime": 3600})


@pytest.fixture
def provider(service, monkeypatch):
    monkeypatch.setattr(adapter, "PART_SECONDS", 0.8)
    monkeypatch.setattr(adapter, "UPLOAD_SECONDS", 0.8)
    monkeypatch.setattr(transfer, "WHOLE_BYTES", 20_000)
    monkeypatch.setattr(transfer, "NOTE_SECONDS", 0)
    return OpenAIProvider(PROFILE, service.url, FakeSecret(KEY))


@pytest.fixture
def run(ledger):
    """A run that no other test has."""
    return ledger.begin(Run.of(RunRequest(f"{next(NUMBERS):032}", "datasets", "a.jsonl", "e1", 100)))


def chunked(body, size=3000):
    return (body[at : at + size] for at in range(0, len(body), size))


def send(run, body, provider, ledger, *, before_commit=lambda: None, **options):
    """One attempt, as the upload step makes it."""
    with Outgoing(run.run_id, f"{run.run_id}.jsonl", len(body), provider=provider, ledger=ledger, **options) as sending:
        for _ in sending.through(chunked(body)):
            pass
        before_commit()
        return sending.commit()


def persist(run, body, provider, ledger, clock, attempts=40):
    """Attempt after attempt, as the state machine makes them: the file, and how many attempts it took."""
    for attempt in range(1, attempts + 1):
        try:
            return send(run, body, provider, ledger), attempt
        except (Transient, UnknownOutcome, Unauthorised):
            clock.advance(5)
            time.sleep(0.1)  # what hangs at the service lands before the last look
        except Throttled as error:
            clock.advance(error.wait_seconds)
    raise AssertionError("it never arrived")


def committed(service, run):
    """Digests of every file that the service has ever made for the run."""
    return [f["sha256"] for f in service.order("GET", "/ledger")["files"] if run.run_id in f["filename"]]


def uploads(service, run):
    """How each of the run's uploads in parts has ended."""
    return [u["status"] for u in service.order("GET", "/ledger")["uploads"] if run.run_id in u["filename"]]


def parts_sent(service, since):
    asked = service.order("GET", "/ledger")["requests"][since:]
    return sum(request["path"].endswith("/parts") for request in asked)


def requests(service):
    return len(service.order("GET", "/ledger")["requests"])


def posts(service):
    return sum(request["method"] == "POST" for request in service.order("GET", "/ledger")["requests"])


def digest(body):
    return hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize(
    "size", [1, 2, 3, 19_999, 20_000, 23_001, ABOVE, ABOVE + 1, 3 * PART - 1, 3 * PART, len(LARGE)]
)
@pytest.mark.parametrize("mark", [b"", BYTE_ORDER_MARK], ids=["", "marked"])
def test_a_dataset_arrives_byte_by_byte_without_its_byte_order_mark(service, provider, ledger, run, size, mark):
    body = LARGE[:size]
    file = send(run, mark + body, provider, ledger)
    assert (file.name, file.size) == (f"{run.run_id}.jsonl", size)
    assert committed(service, run) == [digest(body)]
    assert uploads(service, run) == (["completed"] if size > ABOVE else [])


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_byte_order_mark_may_come_in_pieces(service, provider, ledger, run, size):
    body = BYTE_ORDER_MARK + SMALL[:5000]
    with Outgoing(run.run_id, f"{run.run_id}.jsonl", len(body), provider=provider, ledger=ledger) as sending:
        assert b"".join(sending.through(chunked(body, size))) == body
        sending.commit()
    assert committed(service, run) == [digest(SMALL[:5000])]


@pytest.mark.parametrize("body", [SMALL[:900], SMALL, LARGE], ids=["small", "one call", "parts"])
@pytest.mark.parametrize("error", [Rejected("invalid", "it is"), Superseded("changed", "it is"), Transient("cut")])
def test_what_is_not_committed_never_becomes_a_file(service, provider, ledger, run, body, error):
    def refuse():
        raise error

    with pytest.raises(type(error)):
        send(run, body, provider, ledger, before_commit=refuse)
    assert committed(service, run) == []
    if body is LARGE:  # kept for the next attempt only where there will be one
        assert uploads(service, run) == (["pending"] if isinstance(error, Transient) else ["cancelled"])


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("skip", [0, 2, PARTS - 1])
def test_a_fault_at_a_part_is_mended(service, provider, ledger, clock, run, skip, fault):
    service.fault("POST", "/v1/uploads/*/parts", fault, after_skipping=skip)
    _, attempts = persist(run, LARGE, provider, ledger, clock)
    assert committed(service, run) == [digest(LARGE)]
    assert attempts == 1 or fault == FAULTS["401"], "a part is repeated, not the attempt"


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("path", ["/v1/uploads$", "/v1/uploads/*/complete"], ids=["begin", "complete"])
def test_a_fault_at_the_ends_of_an_upload_is_mended(service, provider, ledger, clock, run, path, fault):
    service.fault("POST", path, fault)
    persist(run, LARGE, provider, ledger, clock)
    assert committed(service, run) == [digest(LARGE)]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("body", [SMALL[:900], SMALL], ids=["small", "streamed"])
def test_a_fault_at_the_one_call_is_mended(service, provider, ledger, clock, run, body, fault):
    service.fault("POST", "/v1/files$", fault)
    persist(run, body, provider, ledger, clock)
    assert committed(service, run) == [digest(body)]


@pytest.mark.parametrize(("path", "body"), [("/v1/files$", SMALL), ("/v1/uploads/*/complete", LARGE)])
@pytest.mark.parametrize("lag", [0.5, 2])
def test_a_file_that_listings_do_not_show_yet_is_not_made_again(service, provider, ledger, clock, run, path, body, lag):
    service.fault("POST", path, {"reset": "after", "delay_listing": lag})
    with pytest.raises(UnknownOutcome):
        send(run, body, provider, ledger)
    began = posts(service)
    with pytest.raises(UnknownOutcome, match="not known yet"):
        send(run, body, provider, ledger)
    assert posts(service) == began, "nothing is sent while it is not known"
    until(lambda: service.client.files.list().data, lambda files: any(run.run_id in f.filename for f in files))
    send(run, body, provider, ledger)
    assert committed(service, run) == [digest(body)]


def test_a_commit_that_is_lost_for_good_is_made_again_after_the_last_look(service, provider, ledger, clock, run):
    service.fault("POST", "/v1/files$", {"reset": "before"})
    with pytest.raises(UnknownOutcome):
        send(run, SMALL, provider, ledger)
    clock.advance(LAST_LOOK_SECONDS)
    send(run, SMALL, provider, ledger)
    assert committed(service, run) == [digest(SMALL)]


@pytest.mark.parametrize(("path", "body"), [("/v1/files$", SMALL), ("/v1/uploads/*/parts", LARGE)])
@pytest.mark.parametrize(("status", "kind"), [(400, Rejected), (413, Rejected), (403, Denied)])
def test_a_refusal_is_final_and_drops_what_was_sent(service, provider, ledger, run, path, body, status, kind):
    service.fault("POST", path, {"status": status}, times=None)
    with pytest.raises(kind):
        send(run, body, provider, ledger)
    assert committed(service, run) == []
    assert "pending" not in uploads(service, run)


class Dead(BaseException):
    """The function was killed."""


class Mortal:
    """Hands calls on until so many have been made; then this one and all that follow find the function dead."""

    def __init__(self, whole, calls, left, *, after):
        self._whole, self._calls, self._left, self._after = whole, calls, left, after

    def __getattr__(self, name):
        found = getattr(self._whole, name)
        return self._mortal(found) if name in self._calls else found

    def _mortal(self, found):
        def call(*arguments, **named):
            left = next(self._left)
            if left > 0 or (left == 0 and self._after):
                answer = found(*arguments, **named)
                if left > 0:
                    return answer
            raise Dead

        return call


EFFECTS = {"upload", "begin_upload", "add_part", "complete_upload", "note"}


def die(run, body, provider, ledger, boundary, *, after):
    """An attempt that is killed at its so-manieth effect; tells whether it came so far."""
    left = itertools.count(boundary, -1)
    mortals = {
        "provider": Mortal(provider, EFFECTS, left, after=after),
        "ledger": Mortal(ledger, EFFECTS, left, after=after),
    }
    sending = Outgoing(run.run_id, f"{run.run_id}.jsonl", len(body), **mortals)
    try:  # without the end of the block: the dead do not tidy up
        for _ in sending.through(chunked(body)):
            pass
        sending.commit()
    except Dead:
        return True
    finally:
        if sending._way:
            sending._way._pool.shutdown(wait=True)
    return False


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("boundary", range(2 * PARTS + 4))
def test_death_at_any_boundary_of_an_upload_is_survived(service, provider, ledger, clock, run, boundary, after):
    assert die(run, LARGE, provider, ledger, boundary, after=after)
    noted = len(ledger.noted(run.run_id, f"{run.run_id}.jsonl").get("upload", {}).get("parts", {}))
    since = requests(service)

    persist(run, LARGE, provider, ledger, clock)

    assert committed(service, run) == [digest(LARGE)]
    if len(uploads(service, run)) == 1 and boundary < 2 * PARTS + 2:
        assert parts_sent(service, since) == PARTS - noted, "what has arrived is sent no second time"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("boundary", range(2))
@pytest.mark.parametrize("body", [SMALL[:900]], ids=["small"])
def test_death_at_any_boundary_of_one_call_is_survived(service, provider, ledger, clock, run, body, boundary, after):
    assert die(run, body, provider, ledger, boundary, after=after)
    persist(run, body, provider, ledger, clock)
    assert committed(service, run) == [digest(body)]


@pytest.mark.parametrize("seconds", range(0, 71, 7))
def test_an_attempt_short_of_time_is_continued(service, provider, ledger, run, seconds):
    since = requests(service)
    left = itertools.count(transfer.RESERVE_SECONDS + seconds, -1)
    with pytest.raises(OutOfTime):
        send(run, LARGE, provider, ledger, seconds_left=lambda: next(left))
    assert committed(service, run) == []
    send(run, LARGE, provider, ledger)
    assert committed(service, run) == [digest(LARGE)]
    assert parts_sent(service, since) == PARTS


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["one call", "parts"])
def test_attempts_that_are_always_short_of_time_come_to_a_clear_end(service, provider, ledger, run, body):
    def attempt():
        left = itertools.count(transfer.RESERVE_SECONDS + 20, -1)
        send(run, body, provider, ledger, seconds_left=lambda: next(left))

    for _ in range(ATTEMPTS_WITHOUT_TIME - 1):
        with pytest.raises(OutOfTime):
            attempt()
    with pytest.raises(Denied, match=r"over 5 times .* after 63,000 bytes: give UploadFunction more memory") as ended:
        attempt()
    assert ended.value.code == "too_slow"
    assert committed(service, run) == []
    assert "pending" not in uploads(service, run)


def refuse(run, chunks, provider, ledger, look=lambda sending, chunk: None):
    """An attempt at `LARGE` that reads the chunks and then finds that the run has ended; `look` sees each of them."""
    with Outgoing(run.run_id, f"{run.run_id}.jsonl", len(LARGE), provider=provider, ledger=ledger) as sending:
        for chunk in sending.through(chunks):
            look(sending, chunk)
        raise Rejected("invalid", "it is")


@pytest.mark.parametrize("at", [1, 5_000, 90_000, len(LARGE) - 1])
@pytest.mark.parametrize("above", [ABOVE, None], ids=["parts", "one call"])
def test_what_is_known_to_be_dropped_is_sent_no_further(service, provider, ledger, run, above, at):
    provider.profile = replace(PROFILE, uploads_above=above)
    since, read, sent = requests(service), [], []

    def look(sending, chunk):
        read.append(len(chunk))
        if sum(read) >= at and not sent:
            sending.stop()
            sent.append(parts_sent(service, since))
            assert "pending" not in uploads(service, run), "it is dropped at once, not at the end"

    with pytest.raises(Rejected):
        refuse(run, chunked(LARGE), provider, ledger, look)
    assert sum(read) == len(LARGE), "it is read to its end all the same"
    assert sent == [parts_sent(service, since)]
    assert sent[0] <= (at // PART + 1 if above else 0)
    assert committed(service, run) == []


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["one call", "parts"])
def test_a_dataset_that_ends_early_never_becomes_a_file(service, provider, ledger, run, body):
    def attempt():
        with Outgoing(run.run_id, f"{run.run_id}.jsonl", len(body), provider=provider, ledger=ledger) as sending:
            for _ in sending.through(chunked(body[:-1])):
                pass
            sending.commit()

    with pytest.raises((Transient, Rejected)):
        attempt()
    assert committed(service, run) == []


@pytest.mark.parametrize("effects", range(2, 2 * PARTS + 4))
@pytest.mark.parametrize("chunks", [(), (LARGE,)], ids=["nothing read", "all read"])
def test_what_a_dead_attempt_left_is_dropped_by_one_that_ends_the_run(
    service, provider, ledger, clock, run, chunks, effects
):
    die(run, LARGE, provider, ledger, effects, after=True)
    assert uploads(service, run) == ["completed" if effects == 2 * PARTS + 3 else "pending"]
    clock.advance(LAST_LOOK_SECONDS)
    with pytest.raises(Rejected):
        refuse(run, chunks, provider, ledger)
    assert not provider.files_named(f"{run.run_id}.jsonl")
    assert "pending" not in uploads(service, run)


def test_an_upload_that_has_expired_between_attempts_is_begun_anew(service, provider, ledger, clock, run):
    die(run, LARGE, provider, ledger, 6, after=True)
    expires_at = ledger.noted(run.run_id, f"{run.run_id}.jsonl")["upload"]["expires_at"]
    clock.advance(expires_at - clock.at)
    send(run, LARGE, provider, ledger)
    assert committed(service, run) == [digest(LARGE)]
    assert uploads(service, run) == ["pending", "completed"]


def test_an_upload_that_was_cancelled_between_attempts_is_begun_anew(service, provider, ledger, clock, run):
    die(run, LARGE, provider, ledger, 6, after=True)
    service.client.uploads.cancel(ledger.noted(run.run_id, f"{run.run_id}.jsonl")["upload"]["id"])
    _, attempts = persist(run, LARGE, provider, ledger, clock)
    assert attempts == 2
    assert committed(service, run) == [digest(LARGE)]
    assert uploads(service, run) == ["cancelled", "completed"]


def test_an_upload_that_expires_in_mid_attempt_is_begun_anew(service, provider, ledger, clock, run):
    def expire():
        clock.advance(1e9)  # past the hour by our clock, too
        service.client.uploads.cancel(ledger.noted(run.run_id, f"{run.run_id}.jsonl")["upload"]["id"])

    with pytest.raises(Transient, match="no longer there"):
        send(run, LARGE, provider, ledger, before_commit=expire)
    clock.at -= 1e9
    send(run, LARGE, provider, ledger)
    assert committed(service, run) == [digest(LARGE)]


def test_an_upload_of_other_parts_is_not_continued(service, provider, ledger, run):
    die(run, LARGE, provider, ledger, 6, after=True)
    provider.profile = replace(PROFILE, part_bytes=PART + 1)
    send(run, LARGE, provider, ledger)
    assert committed(service, run) == [digest(LARGE)]


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["one call", "parts"])
def test_what_has_arrived_is_not_sent_again(service, provider, ledger, run, body):
    file = send(run, body, provider, ledger)
    since = posts(service)
    assert send(run, body, provider, ledger) == file
    assert posts(service) == since


def test_of_two_files_of_the_run_the_older_is_kept(service, provider, ledger, run):
    first, second = (provider.upload(f"{run.run_id}.jsonl", [SMALL], len(SMALL)) for _ in range(2))
    kept = send(run, SMALL, provider, ledger)
    assert kept.id == min(first, second, key=lambda file: (file.created_at, file.id)).id
    assert len(provider.files_named(kept.name)) == 1


class Stuck:
    """Hands every call on; of these, none before it is let go."""

    def __init__(self, whole, calls):
        self._whole, self._calls, self.let_go = whole, calls, threading.Event()

    def __getattr__(self, name):
        found = getattr(self._whole, name)
        return self._waiting(found) if name in self._calls else found

    def _waiting(self, found):
        def call(*arguments, **named):
            self.let_go.wait(20)
            return found(*arguments, **named)

        return call


@pytest.mark.parametrize(
    ("above", "most"),
    [(ABOVE, (transfer.SENDERS + 1) * PART), (None, (transfer.WAITING_CHUNKS + 3) * 3000)],
    ids=["parts", "one call"],
)
def test_a_slow_service_holds_the_reader_up(service, provider, ledger, run, above, most):
    provider.profile = replace(PROFILE, uploads_above=above)
    stuck = Stuck(provider, {"add_part", "upload"})
    read = []

    def chunks():
        for chunk in chunked(LARGE):
            read.append(len(chunk))
            yield chunk

    def attempt():
        with Outgoing(run.run_id, f"{run.run_id}.jsonl", len(LARGE), provider=stuck, ledger=ledger) as sending:
            for _ in sending.through(chunks()):
                pass
            sending.commit()

    thread = threading.Thread(target=attempt)
    thread.start()
    try:
        until(lambda: sum(read), lambda total: total > most - 10_000)
        time.sleep(0.2)
        assert sum(read) <= most + 3000
    finally:
        stuck.let_go.set()
        thread.join()
    assert committed(service, run) == [digest(LARGE)]
