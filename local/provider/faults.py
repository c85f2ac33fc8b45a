"""Faults that tests ask for: which request is hit, and by what.

A fault holds one or several of these:

- `status`, with `headers` and `body` (an object or a text), or `html` (a status): this answer instead of the true one,
  and the request is not carried out unless `after` is true.
- `reset`: the connection is closed with RST `before` the request is carried out, or `after`.
- `truncate`: the true answer cut after so many bytes; with `whole_length` the header still promises all of them.
- `hang`: so many real seconds of silence before the work, or with `after` between the work and the answer.
- `delay_listing`: what the request creates is missing from listings for so many simulated seconds.
"""

import fnmatch
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from werkzeug.wrappers import Request, Response

from local.provider.shapes import ApiError, anything, boolean, integer, nullable, number, one_of, record, text

_FAULT = record(
    {},
    {
        "status": integer(200, 599),
        "headers": anything,
        "body": anything,
        "reset": one_of("before", "after"),
        "html": integer(200, 599),
        "truncate": integer(0),
        "whole_length": boolean,
        "hang": number(),
        "after": boolean,
        "delay_listing": number(),
    },
)
_ORDER = record(
    {"fault": _FAULT},
    {"method": text(1), "path": text(1), "times": nullable(integer(1)), "after_skipping": integer(0)},
)
_ACTIONS = ("status", "reset", "html", "truncate", "hang", "delay_listing")


@dataclass
class Fault:
    """One order of a test's: `times` None means for ever."""

    method: str
    path: str
    what: dict[str, Any]
    times: int | None
    skip: int

    def hits(self, method: str, path: str) -> bool:
        """Tell whether a request is meant.

        A path with `*`, `?` or `[` is a glob, one ending in `$` is the whole path, any other is a prefix.
        """
        if self.method not in ("*", method):
            return False
        if any(sign in self.path for sign in "*?["):
            return fnmatch.fnmatchcase(path, self.path)
        return path == self.path[:-1] if self.path.endswith("$") else path.startswith(self.path)

    def view(self) -> dict[str, Any]:
        """Return it as it was ordered, with what is left of its counts."""
        return {
            "method": self.method,
            "path": self.path,
            "fault": self.what,
            "times": self.times,
            "after_skipping": self.skip,
        }


class Faults:
    """The faults in force, in the order of their coming."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, order: Any) -> dict[str, Any]:
        """Take an order; raise `ApiError` where it makes no sense."""
        _ORDER(order, "")
        what = order["fault"]
        if not any(action in what for action in _ACTIONS):
            raise ApiError(400, f"A fault is one of {', '.join(_ACTIONS)}.", param="fault")
        method = order.get("method", "*").upper()
        if "delay_listing" in what and method != "POST":
            raise ApiError(400, "delay_listing belongs to the POST that creates.", param="fault.delay_listing")
        fault = Fault(method, order.get("path", "/"), what, order.get("times", 1), order.get("after_skipping", 0))
        with self._lock:
            self._faults.append(fault)
            return fault.view()

    def view(self) -> list[dict[str, Any]]:
        """Return what is still to come."""
        with self._lock:
            return [fault.view() for fault in self._faults]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._faults.clear()

    def take(self, method: str, path: str) -> dict[str, Any]:
        """Return the fault that hits this request, an empty one where none does, and count it."""
        with self._lock:
            for fault in self._faults:
                if not fault.hits(method, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                return fault.what
        return {}


def met[Asked: Request](fault: dict[str, Any], request: Asked, carry_out: Callable[[Asked], Response]) -> Response:
    """Return what a request is answered that is met by `fault`, which may be an empty one.

    Raises ConnectionResetError once it has closed the connection.
    """
    after = fault.get("after", False)
    if "hang" in fault and not after:
        time.sleep(fault["hang"])
    if fault.get("reset") == "before":
        _reset(request)
    replaced = _replacement(fault)
    response = carry_out(request) if after or not replaced else replaced
    if "hang" in fault and after:
        time.sleep(fault["hang"])
    if fault.get("reset") == "after":
        _reset(request)
    return _altered(fault, replaced or response)


def _replacement(fault: dict[str, Any]) -> Response | None:
    """Return what a fault answers instead of the truth, if it does."""
    if "html" in fault:
        page = "<!doctype html><title>Emulated fault</title><h1>Emulated fault</h1>"
        return Response(page, fault["html"], mimetype="text/html")
    if "status" not in fault:
        return None
    error = ApiError(fault["status"], "Emulated fault.", kind="server_error" if fault["status"] >= 500 else "requests")
    body = fault.get("body", error.envelope)
    if isinstance(body, str):
        return Response(body, fault["status"], mimetype="text/plain")
    return Response(json.dumps(body), fault["status"], mimetype="application/json")


def _altered(fault: dict[str, Any], response: Response) -> Response:
    """Return the answer with what a fault adds to it or cuts from it."""
    response.headers.update({key: str(value) for key, value in fault.get("headers", {}).items()})
    if "truncate" in fault:
        response.direct_passthrough = False
        whole = response.get_data()
        response.set_data(whole[: fault["truncate"]])
        if fault.get("whole_length"):
            response.content_length = len(whole)
    return response


def _reset(request: Request) -> NoReturn:
    """Close the connection with RST, as a crashed proxy would, and leave the server nothing to write to."""
    connection: socket.socket = request.environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
    raise ConnectionResetError
