"""A clock that runs a fixed number of times faster than the real one."""

import time


class Clock:
    """Simulated epoch seconds: the real time at its start, then `scale` simulated seconds per real one."""

    def __init__(self, scale: float = 1.0, start: float | None = None) -> None:
        """`start` is the epoch second from which on time runs fast, now unless given."""
        self.scale = scale
        real = time.time()
        origin = real if start is None else start
        self._started_at = origin + (real - origin) * scale
        self._started = time.monotonic()

    def now(self) -> float:
        """Return the simulated time."""
        return self._started_at + (time.monotonic() - self._started) * self.scale

    def real_seconds_until(self, moment: float) -> float:
        """Return how long to wait in real seconds, at least 0."""
        return max(0.0, (moment - self.now()) / self.scale)
