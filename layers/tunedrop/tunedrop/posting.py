"""Posting to addresses that others choose: over https, to public addresses alone, and never further than they say."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from time import monotonic

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

TIMEOUT_SECONDS = 15
_PORTS = {"https": 443, "http": 80}

_GLOBAL_UNICAST = ip_network("2000::/3")  # of IPv6; outside of it are NAT64, mapped IPv4 and the like
# What Python counts among the global addresses although it is another thing's way in, or nobody's:
# https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry
_SPECIAL = (
    ip_network("192.0.0.0/24"),  # protocol assignments
    ip_network("192.88.99.0/24"),  # 6to4 relays
    ip_network("2001::/23"),  # protocol assignments, Teredo among them
    ip_network("2002::/16"),  # 6to4
    ip_network("3fff::/20"),  # documentation
)


class InvalidAddress(ValueError):
    """The text is no address that anything is posted to; the message says why, and does not quote it."""


class NotDelivered(Exception):
    """The destination did not accept the message; the message of this names no address."""


class NotAllowed(NotDelivered):
    """The name leads to where nothing may be sent."""


def read_address(text: str, *, allow_loopback: bool = False) -> Url:
    """An https address, as it is posted to; with ``allow_loopback`` an http one too.

    Raises:
        InvalidAddress: it is none.
    """
    try:
        url = parse_url(text)
    except LocationParseError:
        raise InvalidAddress("is no https address") from None
    if not url.host or url.scheme not in (("https", "http") if allow_loopback else ("https",)):
        raise InvalidAddress("is no https address")
    if url.auth is not None:
        raise InvalidAddress("has a user name in its address")
    return url


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is of one machine on the public internet, and of no special kind."""
    if not address.is_global or address.is_multicast or any(address in network for network in _SPECIAL):
        return False
    return isinstance(address, IPv4Address) or address in _GLOBAL_UNICAST


class HttpSender:
    """Posts over HTTPS; follows no redirect, repeats nothing, and reads no more than the answer's head.

    A name is resolved once, every address that it has must be public, and the connection goes to one of those: what the
    name leads to a moment later is not asked. With ``allow_loopback`` this machine itself is no forbidden address, and
    the only one that is posted to over plain http.
    """

    def __init__(self, *, allow_loopback: bool = False) -> None:
        self._allow_loopback = allow_loopback
        self._tls = ssl.create_default_context()

    def post(self, url: str, headers: Mapping[str, str], body: str) -> None:
        """Posts ``body`` to ``url``; what is not accepted with 2xx within 15 seconds counts as not delivered.

        Raises:
            NotAllowed: nothing may be sent there.
            NotDelivered: it was not accepted.
        """
        try:
            status = self._status(read_address(url, allow_loopback=self._allow_loopback), headers, body.encode())
        except InvalidAddress as error:
            raise NotAllowed(str(error)) from None
        except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
            raise NotDelivered(f"did not answer ({type(error).__name__})") from None
        if 300 <= status < 400:
            raise NotDelivered(f"answered {status}: a redirect, and none is followed; give the address it leads to")
        if not 200 <= status < 300:
            raise NotDelivered(f"answered {status}")

    def _status(self, url: Url, headers: Mapping[str, str], body: bytes) -> int:
        host = (url.host or "").strip("[]").rstrip(".")
        port = url.port or _PORTS[url.scheme or ""]
        with _connected(self._addresses(host, port, url.scheme == "http"), port) as plain:
            connection = http.client.HTTPConnection(host, port)
            connection.default_port = _PORTS[url.scheme or ""]  # which the header Host leaves out
            secure = url.scheme == "https"
            connection.sock = self._tls.wrap_socket(plain, server_hostname=host) if secure else plain
            try:
                connection.request("POST", url.request_uri, body, dict(headers))
                # Its status says all: a text that breaks off must not have an accepted message repeated.
                return connection.getresponse().status
            finally:
                connection.close()

    def _addresses(self, host: str, port: int, plain: bool) -> list[str]:
        """Every address of the host, if something may be sent to each."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in map(ip_address, addresses):
            if not ((self._allow_loopback and address.is_loopback) or (not plain and is_public(address))):
                raise NotAllowed("leads to a private or special address, which nothing is sent to")
        return addresses


@contextmanager
def _connected(addresses: list[str], port: int) -> Iterator[socket.socket]:
    """A connection to the first of the addresses that answers, which ends after 15 seconds whatever it is doing.

    A time-out of the socket's own begins anew with each byte, and one byte at a time can last for ever.
    """
    ends = monotonic() + TIMEOUT_SECONDS
    connection = _connect(addresses, port, ends)
    with connection, connection.dup() as same:  # TLS takes the one over; the other ends both
        timer = threading.Timer(max(ends - monotonic(), 0), _end, [same])
        timer.start()
        try:
            yield connection
        finally:
            timer.cancel()
            timer.join()


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side has ended it
        connection.shutdown(socket.SHUT_RDWR)


def _connect(addresses: list[str], port: int, ends: float) -> socket.socket:
    failure: OSError = TimeoutError()
    for address in addresses:
        try:
            return socket.create_connection((address, port), max(ends - monotonic(), 0.1))
        except OSError as error:
            failure = error
    raise failure
