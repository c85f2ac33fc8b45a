"""The clock that runs are timed by; the embedded stack replaces it by one that runs as fast as its waits do."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def timestamp(seconds: float) -> str:
    """``seconds`` since the epoch as ISO 8601 in UTC, to the millisecond: the form of every time in a run document."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(timestamp: str) -> float:
    """The reverse of :func:`timestamp`; any ISO 8601 time with an offset is understood.

    Raises:
        ValueError: it is no such time.
    """
    return datetime.fromisoformat(timestamp).timestamp()
