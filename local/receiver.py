"""Where the embedded stack's notifications arrive: a webhook receiver that checks signatures and remembers."""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tunedrop import signatures
from werkzeug import Request, Response

from local.gateway import Server


class Receiver(Server):
    """Accepts run notifications; `refuse` makes it fail for a while, to see them come again."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self.received: list[dict[str, Any]] = []
        self._secret = secret
        self._refusals = 0
        self._refused: Counter[str] = Counter()
        self._status = 503
        self._lock = threading.Lock()
        self.start(Request.application(self._respond))

    def refuse(self, times: int, status: int = 503) -> None:
        """Answer the next `times` messages with `status`."""
        with self._lock:
            self._refusals, self._status = times, status

    def _respond(self, request: Request) -> Response:
        body = request.get_data()
        headers: Mapping[str, str] = {name.lower(): value for name, value in request.headers.items()}
        try:
            signatures.verify([self._secret], headers, body)
        except signatures.NotAuthentic as error:
            return Response(str(error), 401)
        with self._lock:
            if self._refusals:
                self._refusals -= 1
                self._refused[headers["webhook-id"]] += 1
                return Response("as it was told to", self._status)
            message_id = headers["webhook-id"]
            self.received.append(
                {"id": message_id, "message": json.loads(body), "refused": self._refused.pop(message_id, 0)}
            )
        return Response(status=204)
