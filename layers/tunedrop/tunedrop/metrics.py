"""A job's metrics: from the table that the service leaves to the few numbers that people look at."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

POINTS = 32
_BARS = "▁▂▃▄▅▆▇█"


def training_loss(table: bytes) -> tuple[float, ...]:
    """The training loss in a table of metrics (CSV with a header), first step to last; empty where it has none.

    The column is called ``train_loss`` by OpenAI, ``training_loss`` by others. More than 32 steps are thinned out;
    the first and the last stay.
    """
    rows = csv.DictReader(io.StringIO(table.decode("utf-8", "replace"), newline=""))
    try:
        name = next((name for name in ("train_loss", "training_loss") if name in (rows.fieldnames or ())), None)
        if name is None:
            return ()
        losses = [loss for row in rows if (loss := _number(row.get(name))) is not None]
    except csv.Error:
        return ()  # whatever a service leaves instead of a table, it must not cost a run that has succeeded
    if len(losses) <= POINTS:
        return tuple(losses)
    return tuple(losses[round(point * (len(losses) - 1) / (POINTS - 1))] for point in range(POINTS))


def curve(losses: Sequence[float]) -> str:
    """The losses as a line of bars between the first and the last, as in ``1.74 █▅▂▁ 0.44``."""
    lowest, highest = min(losses), max(losses)
    span = highest - lowest or 1.0
    bars = "".join(_BARS[round((loss - lowest) / span * (len(_BARS) - 1))] for loss in losses)
    return f"{losses[0]:.3g} {bars} {losses[-1]:.3g}"


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
