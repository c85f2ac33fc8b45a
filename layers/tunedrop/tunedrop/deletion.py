"""Deletion: a run whose dataset is deleted while it is under way is cancelled, where the stack wants it so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunedrop.clock import seconds
from tunedrop.errors import Cancelled

if TYPE_CHECKING:
    from tunedrop.callback import Waker
    from tunedrop.events import ObjectEvent
    from tunedrop.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Deletions:
    """Cancels the runs of deleted datasets: the wish goes into the ledger, where the run's next step finds it."""

    ledger: Ledger
    waker: Waker

    def take(self, event: ObjectEvent) -> list[str]:
        """Has the runs that train on the deleted object end; their ids.

        Events come in no order: a deletion that happened before the run began is of what was there before.

        Raises:
            Transient: it could not be noted, or a run not be woken.
        """
        try:
            at = seconds(event.deleted_at)
        except ValueError:
            return []
        found = self.ledger.withdraw(event.bucket, event.key, at)
        for _, token in found:
            if token:
                self.waker.wake(token)
        return [run_id for run_id, _ in found]


def dataset_deleted() -> Cancelled:
    """What ends such a run."""
    return Cancelled(
        "dataset_deleted",
        "its dataset was deleted while the run was under way, and the stack is set to cancel the run then "
        "(OnDeletion); drop the file again to train on it after all",
    )
