"""A line of a stated speed between programs on one machine: what they ask of a server goes through here.

A function's network is slower than a loopback by an order of magnitude: what is bounded by the processor here may be
bounded by the line there. Each direction has its own speed, as a duplex line has, shared by all connections.
"""

import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

_BLOCK = 1 << 16
_BURST_SECONDS = 0.005


class Line:
    """A duplex line of so many bytes a second in each direction."""

    def __init__(self, bytes_per_second: float) -> None:
        self._pace = bytes_per_second
        self._free_at = {"up": 0.0, "down": 0.0}
        self._turn = threading.Lock()

    def to(self) -> "Proxy":
        """The line's end at a server that is told later."""
        return Proxy(self)

    def carry(self, direction: str, size: int) -> None:
        """Wait until so many bytes have passed."""
        with self._turn:
            at = max(time.monotonic(), self._free_at[direction]) + size / self._pace
            self._free_at[direction] = at
        if (pause := at - time.monotonic() - _BURST_SECONDS) > 0:
            time.sleep(pause)


class Proxy:
    """A port of 127.0.0.1 whose connections lead to a server through the line."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._server: tuple[str, int] | None = None
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def lead_to(self, url: str) -> str:
        """Connect the server; its address through the line."""
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._server = (parts.hostname, parts.port)
        return self.url + parts.path

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                assert self._server
                server = socket.create_connection(self._server)
                for pair in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            while data := source.recv(_BLOCK):
                self._line.carry(direction, len(data))
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
