"""Limits on how often something may be created in any hour, strict to the moment."""

import math
from collections import defaultdict, deque
from typing import Any

from local.provider.shapes import ApiError

HOUR = 3600.0


class Rates:
    """What was created in the last hour, and the breaches. The caller holds the lock of `State`."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = defaultdict(deque)
        self._breaches: list[dict[str, Any]] = []
        self._most: dict[str, int] = {}

    def count(self, what: str, limit: int | None, now: float) -> None:
        """Count one more; raise `ApiError` where that is beyond the limit, as OpenAI does.

        The headers are those of https://platform.openai.com/docs/guides/rate-limits.
        """
        times = self._times[what]
        while times and times[0] <= now - HOUR:
            times.popleft()
        if limit is not None and len(times) >= limit:
            self._breaches.append({"what": what, "at": now})
            wait = math.ceil(times[-limit] + HOUR - now)
            headers = {
                "retry-after": str(wait),
                "x-ratelimit-limit-requests": str(limit),
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": f"{wait}s",
            }
            message = f"Rate limit reached for {what}: Limit {limit} / hour. Please try again in {wait}s."
            raise ApiError(429, message, code="rate_limit_exceeded", kind="requests", headers=headers)
        times.append(now)
        self._most[what] = max(self._most.get(what, 0), len(times))

    def view(self) -> dict[str, Any]:
        """Return the breaches, and the most that any hour has seen of each."""
        return {"breaches": list(self._breaches), "most_in_an_hour": dict(self._most)}
