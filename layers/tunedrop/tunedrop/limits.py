"""Limits of a fine-tuning service: how often something may be asked of it, shared by all runs through the ledger.

A limit of L calls an hour is L cells, each of which serves one call at a time and opens again an hour after that call
was over: whatever delays a call, no hour ever sees more than L of them. Slots are dealt out ahead, cell after cell, so
that a run knows at once when its turn comes and sleeps until then; at its turn the cell is asked whether it is open.

What is decided is here, without a clock or a store; the ledger makes each decision in one conditional write. Times are
whole milliseconds since the epoch: sums of them stay exact.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from zlib import crc32

from tunedrop.clock import now
from tunedrop.errors import NotYet, Throttled, Transient, TunedropError

if TYPE_CHECKING:
    from tunedrop.ledger import Ledger
    from tunedrop.providers import ProviderProfile

JOBS = "jobs"
FILES = "files"

HOUR = 3_600_000
CLOCKS_DIFFER = 1_000
"""Milliseconds that a cell stays shut for longer: the clocks of two functions, and the service's, are not the same."""
MOST_CELLS = 100
"""An item of the ledger is written whole: a cell of a higher limit serves several calls an hour instead."""
SPACING = 1.02
"""Slots of a cell are dealt out so many times its period apart: a call takes time, and a run comes to its turn a little
late. What was late at one turn is made up for by the next, and nobody has to be asked to wait once more."""

_TELL_APART = 1_000
"""Milliseconds over which the ends of runs' calls are spread: an admission is known by its end, and who was not
admitted must not take another run's back that began in the same millisecond."""

_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")

_logger = logging.getLogger("tunedrop")


@dataclass(frozen=True, slots=True)
class Limit:
    """Calls of one kind: ``cells`` at most in any ``period`` of milliseconds; without cells no limit is known."""

    name: str
    cells: int = 0
    period: int = HOUR

    @classmethod
    def hourly(cls, name: str, calls: int | None) -> Self:
        """So many calls in any hour, None: no limit is known."""
        if calls is None:
            return cls(name)
        turns = math.ceil(calls / MOST_CELLS)  # of a cell in an hour
        return cls(name, calls // turns, math.ceil(HOUR / turns) + CLOCKS_DIFFER)

    @property
    def spacing(self) -> int:
        """Milliseconds between two slots of a cell."""
        return math.ceil(self.period * SPACING)


@dataclass(frozen=True, slots=True)
class Slot:
    """A turn: ``cell`` of the limit called ``limit``, not before ``at``."""

    limit: str
    cell: int
    at: int


@dataclass(frozen=True, slots=True)
class Book:
    """What the ledger holds of a limit.

    A cell ``opens`` again at one time, and its next slot is to be dealt out for another, ``frees``. ``tickets`` counts
    reservations, ``returned`` are the slots that were given back, and nobody is served before ``closed_until``. There
    may be more cells than ``cells``, of the time when the limit was higher.
    """

    cells: int = 0
    period: int = 0
    tickets: int = 0
    opens: tuple[int, ...] = ()
    frees: tuple[int, ...] = ()
    returned: frozenset[Slot] = frozenset()
    closed_until: int = 0

    def shaped(self, limit: Limit, at: int) -> Self:
        """The book under a limit that has changed.

        Of more calls than there are cells now, the last are what keeps the cells shut. Where a cell's period changes,
        what it has served is not known well enough: all stay shut for an hour.
        """
        more = (0,) * (limit.cells - len(self.opens))
        opens = tuple(sorted(self.opens, reverse=True)) + more
        if self.period not in (0, limit.period):
            opens = tuple(max(at + HOUR + CLOCKS_DIFFER, opened) for opened in opens)
        return type(self)(
            limit.cells, limit.period, self.tickets, opens, self.frees + more, self.returned, self.closed_until
        )

    @property
    def turn(self) -> int:
        """The cell that the last ticket stands for."""
        return self.tickets % self.cells

    def worth(self, given: Slot, limit: Limit, at: int) -> int | None:
        """The time that a slot which was given back is good for: its own, or ``at`` while nobody is behind it."""
        if given.cell >= self.cells:
            return None
        if given.at >= at:
            return given.at
        return at if self.frees[given.cell] == given.at + limit.spacing else None

    def best_returned(self, limit: Limit, at: int) -> Slot | None:
        """The slot given back that is good for an earlier time than the cell whose turn it is, if there is one."""
        good = [(worth, given.cell, given) for given in self.returned if (worth := self.worth(given, limit, at))]
        if not good:
            return None
        worth, _, given = min(good, key=lambda one: one[:2])
        return given if worth < max(self.frees[self.turn], at) else None


def limit_of(profile: ProviderProfile, endpoint: str, model: str | None = None) -> Limit:
    """The limit of a service's ``endpoint``; that of jobs is the model's own.

    A model's snapshots, its undated name and what was trained from it count as one: which of them a service counts
    together is not documented.
    """
    if endpoint == FILES:
        return Limit.hourly(f"{profile.name}/{FILES}", profile.files_per_hour)
    return Limit.hourly(f"{profile.name}/{_family(model or '')}/{endpoint}", profile.creations_per_hour)


def _family(model: str) -> str:
    base = model.split(":")[1] if model.startswith("ft:") else model
    return _DATE.sub("", base)


def refuse_before_turn(run_id: str, use: str, ledger: Ledger) -> None:
    """Refuses what can only end in waiting, before it costs anything: the call has a turn, and that is still to come.

    A run whose dataset was deleted goes on all the same, to its end.

    Raises:
        NotYet: with the time that is left until then.
        Transient: the ledger cannot be reached.
    """
    slot = ledger.reserved(run_id, use)
    if slot and not ledger.withdrawn(run_id):
        _refuse_until(slot.at)


@contextmanager
def in_turn(run_id: str, use: str, limit: Limit, longest_call_seconds: float, ledger: Ledger) -> Iterator[None]:
    """Lets a call of the run's into the block when it is its turn; ``use`` tells its calls apart.

    A process that dies within the block costs the limit as much as a call of ``longest_call_seconds``: no call can
    outlast that. A 429 shuts the limit for all.

    Raises:
        NotYet: it is not; nothing was done.
        Transient: the ledger cannot be reached; nothing was done.
    """
    if not limit.cells:
        _refuse_until(ledger.closed_until(limit))
    else:
        slot = ledger.reserve(run_id, use, limit)
        _refuse_until(slot.at)
        over = milliseconds(now() + longest_call_seconds) + crc32(run_id.encode()) % _TELL_APART
        try:
            turn = ledger.admit(run_id, use, slot, limit, over)
        except Transient:
            # It may have been admitted all the same, and makes no call: the cell is open to the next one, or to itself.
            _unless_it_fails(lambda: ledger.settle(slot, limit, over, milliseconds(now()) - limit.period))
            raise
        if turn:  # whatever the time is by now: it was not admitted
            raise _not_yet(turn)
    try:
        yield
    except Throttled as error:
        until = milliseconds(now() + error.wait_seconds)
        _unless_it_fails(lambda: ledger.close(limit, until))
        raise
    finally:
        if limit.cells:
            _unless_it_fails(lambda: ledger.settle(slot, limit, over, milliseconds(now())))


def milliseconds(seconds: float) -> int:
    """Epoch seconds as whole milliseconds."""
    return math.ceil(seconds * 1000)


def _refuse_until(at: int) -> None:
    if at > milliseconds(now()):
        raise _not_yet(at)


def _not_yet(at: int) -> NotYet:
    return NotYet("the fine-tuning service's limit is used up for now", max(0.0, at / 1000 - now()))


def _unless_it_fails(write: Callable[[], None]) -> None:
    # What cannot be written costs capacity alone, and the call was made: its outcome is what counts.
    try:
        write()
    except TunedropError as error:
        _logger.warning("a limit could not be brought up to date: %s", error)
