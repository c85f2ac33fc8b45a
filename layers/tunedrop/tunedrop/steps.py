"""What the steps of a run have in common: how a step's outcome becomes an answer to the state machine."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tunedrop.clock import now, seconds
from tunedrop.errors import Final, NotYet, Throttled, TimedOut, Unauthorised, UnknownOutcome
from tunedrop.runs import Run
from tunedrop.texts import message_of, subject_of

UNAUTHORISED_PAUSE_SECONDS = 300
FIRST_LOOK_SECONDS = 5
LONGEST_LOOK_SECONDS = 120
LONGEST_PATIENT_SECONDS = 900
LONGEST_SLEEP_SECONDS = 3600
"""A run whose turn comes later than that is asked half-way whether it is still wanted: in a queue of weeks thousands of
runs that ask every hour would leave no room for those whose turn it is."""

_logger = logging.getLogger("tunedrop")


@dataclass(frozen=True, slots=True)
class Wait:
    """The step wants to be asked again in ``seconds``; ``notice`` (see :mod:`tunedrop.texts`) is told meanwhile."""

    seconds: float
    state: str
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The step is done; the run goes on in ``state``. A final one leads to the collection of its results."""

    state: str
    fine_tuned_model: str | None = None


def take(step: Callable[[], Wait | Done], run: Run, deadline_hours: float) -> dict[str, Any]:
    """Takes a step of ``run`` and answers the state machine.

    The answer is ``run_id`` and ``state``, with ``wait_seconds`` (a whole number of at least 1) when the step wants to
    be asked again, ``notice`` when something is to be told of before, ``error`` when it has ended the run,
    ``fine_tuned_model`` once there is one. A run that is older than its deadline is timed out instead of stepping on,
    and one that has ended already takes no step: its end is only told once more.

    Raises:
        Transient: the state machine repeats the step.
    """
    answer: dict[str, Any] = {"run_id": run.run_id, "state": run.state}
    if run.is_final:
        return answer | _end(run)
    deadline = seconds(run.created_at) + deadline_hours * 3600
    try:
        if now() > deadline:
            raise TimedOut("deadline", f"the run did not end within the {deadline_hours:g} h that it may take")
        outcome = step()
    except Final as error:
        return answer | {"state": error.state, "error": {"code": error.code, "message": error.message}}
    except NotYet as error:
        half_way = max(error.wait_seconds / 2, LONGEST_SLEEP_SECONDS)
        outcome = Wait(min(error.wait_seconds, half_way), run.state)
    except Throttled as error:
        outcome = Wait(_patient(error.wait_seconds, run), run.state)
    except Unauthorised as error:
        # Nothing is lost by waiting, and what is lost by ending cannot be had back: an operator can still mend it.
        # Without the traceback: what the service said of the key is in its causes.
        _logger.error("%s", error, extra={"alarm": "unauthorised", "run_id": run.run_id})  # noqa: TRY400 - not its causes
        outcome = Wait(_patient(UNAUTHORISED_PAUSE_SECONDS, run), run.state)
    except UnknownOutcome as error:
        _logger.warning("%s; looking again before anything is repeated", error, extra={"run_id": run.run_id})
        outcome = Wait(_patient(FIRST_LOOK_SECONDS, run), run.state)
    if isinstance(outcome, Wait):
        told = {"notice": _notice(run, outcome.notice)} if outcome.notice else {}
        # No wait outlasts the deadline: a job that runs on costs money.
        pause = min(outcome.seconds, deadline - now() + 1)
        return answer | {"state": outcome.state, "wait_seconds": max(1, math.ceil(pause))} | told
    model = {"fine_tuned_model": outcome.fine_tuned_model} if outcome.fine_tuned_model else {}
    return answer | {"state": outcome.state} | model


def _end(run: Run) -> dict[str, Any]:
    error = {"error": asdict(run.error)} if run.error else {}
    return error | ({"fine_tuned_model": run.fine_tuned_model} if run.fine_tuned_model else {})


def _notice(run: Run, notice: str) -> dict[str, Any]:
    return {"kind": notice, "subject": subject_of(run, notice), "message": message_of(run, notice)}


def _patient(pause: float, run: Run) -> float:
    # Trouble can last for days, and asking again every few seconds would fill the 25,000 events that an execution may
    # have: it would then end without a final state. A sixtieth of the run's age is little beside what was waited.
    return max(pause, min((now() - seconds(run.created_at)) / 60, LONGEST_PATIENT_SECONDS))


def next_look_seconds(since: float, last_look_seconds: float) -> float | None:
    """Seconds until a lost creation is looked for again, ``since`` epoch seconds; growing, at most 120.

    None when the last look, ``last_look_seconds`` after it, is over.
    """
    waited = now() - since
    if waited >= last_look_seconds:
        return None
    return min(max(waited, FIRST_LOOK_SECONDS), LONGEST_LOOK_SECONDS, max(last_look_seconds - waited, 1))
