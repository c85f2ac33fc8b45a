"""What can go wrong, one leaf class per behaviour.

Step Functions matches a failed task by the exact name of the class that was raised, so the names below are a contract
with ``statemachine/finetune.asl.yaml``: renaming one changes what is retried.

Two families: a :class:`Final` error decides the run; every other error asks for patience of one kind or another.
"""

from __future__ import annotations

from typing import ClassVar


class TunedropError(Exception):
    """Root of Tunedrop's own errors; never raised itself."""


class Transient(TunedropError):
    """A read or an idempotent call failed in a way that passes: repeat it, with back-off and jitter."""


class Throttled(TunedropError):
    """A service asked to be left alone for ``wait_seconds``; nothing was done, so the same call may be made again."""

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class NotYet(TunedropError):
    """Its turn under a limit that all runs share comes in ``wait_seconds``; nothing was done."""

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class Unauthorised(TunedropError):
    """Our credentials were not accepted (401): fetch the secret once more, then wait for the operator and alarm.

    So is a refusal to tell of a job that is paid for, whatever it is refused for.
    """


class UnknownOutcome(TunedropError):
    """A creating call was neither accepted nor refused for certain: look before repeating it."""


class Final(TunedropError):
    """The run ends in ``state``.

    ``code`` is for machines and stable; the message is a sentence a person can act on and holds neither a line of the
    dataset nor a secret.
    """

    state: ClassVar[str]

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Rejected(Final):
    """The dataset or its job specification is invalid: the user's to mend."""

    state = "rejected"


class Denied(Final):
    """The provider refuses for a reason the operator can mend: permission, quota, billing, a closed service."""

    state = "failed"


class Superseded(Final):
    """The object was overwritten after its event: the newer event has a run of its own."""

    state = "superseded"


class Missing(Final):
    """The object is gone."""

    state = "missing"


class Duplicate(Final):
    """The same dataset with the same specification is under way already, or has succeeded."""

    state = "duplicate"


class OverBudget(Final):
    """The estimate exceeds ``max_cost_usd``."""

    state = "over_budget"


class Cancelled(Final):
    """Somebody did not want the run any more."""

    state = "cancelled"


class TimedOut(Final):
    """The run's deadline passed."""

    state = "timed_out"
