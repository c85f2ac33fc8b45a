"""Posting over HTTP: to whom, and to whom not."""

import http.server
import itertools
import socket
import ssl
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tunedrop import posting
from tunedrop.posting import HttpSender, InvalidAddress, NotAllowed, NotDelivered, is_public, read_address
from tunedrop.settings import NotifySettings, load

NAME = "receiver.example"
SECRET_PART = "token-in-address"


class _Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.got.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.server.status)
        for name, value in self.server.headers:
            self.send_header(name, value)
        self.send_header("content-length", self.server.length)
        self.end_headers()

    do_GET = do_POST  # noqa: N815 - what a redirect could become

    def log_message(self, *_):
        pass


@contextmanager
def receiver(status=204, headers=(), length="0", tls=None):
    """A receiver that answers with ``status``; yields its port and what it got."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Receiver) as server:
        server.status, server.headers, server.length, server.got = status, headers, length, []
        server.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port, server.got
        server.shutdown()
        thread.join()


def url(port):
    return f"http://127.0.0.1:{port}/{SECRET_PART}"


@pytest.fixture
def names(monkeypatch):
    """What names resolve to, in place of DNS; counts the questions."""
    asked = []

    def resolving(**known):
        answers = {name.replace("_", "."): itertools.cycle(lists) for name, lists in known.items()}

        def getaddrinfo(host, port, *_, **__):
            asked.append(host)
            addresses = next(answers[host]) if host in answers else [host]
            return [
                (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                for address in addresses
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return resolving


# What is answered


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_message_is_delivered_when_it_is_accepted(status):
    with receiver(status) as (port, got):
        HttpSender(allow_loopback=True).post(url(port), {"webhook-id": "msg_1"}, '{"ü": 1}')
    [(headers, body)] = got
    assert (headers["webhook-id"], body.decode()) == ("msg_1", '{"ü": 1}')
    assert headers["Host"] == f"127.0.0.1:{port}"


def test_a_message_that_is_accepted_is_delivered_whatever_becomes_of_the_answers_text():
    with receiver(200, length="1000") as (port, got):
        HttpSender(allow_loopback=True).post(url(port), {}, "{}")
    assert len(got) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 410, 429, 500, 503])
def test_a_message_that_is_refused_is_not_delivered_and_not_repeated(status):
    with receiver(status) as (port, got), pytest.raises(NotDelivered, match=str(status)):
        HttpSender(allow_loopback=True).post(url(port), {}, "{}")
    assert len(got) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_that_says_so(status):
    with (
        receiver(200) as (elsewhere, led),
        receiver(status, [("location", url(elsewhere))]) as (port, _),
        pytest.raises(NotDelivered, match=f"{status}: a redirect") as caught,
    ):
        HttpSender(allow_loopback=True).post(url(port), {}, "{}")
    assert led == []
    assert SECRET_PART not in str(caught.value)


@pytest.mark.parametrize(
    "address", [f"http://127.0.0.1:9/{SECRET_PART}", f"https://{SECRET_PART}.invalid/", f"https://{'a' * 64}.example/"]
)
def test_a_receiver_that_is_not_there_is_told_without_its_address(address):
    with pytest.raises(NotDelivered, match="did not answer") as caught:
        HttpSender(allow_loopback=True).post(address, {}, "{}")
    assert SECRET_PART not in str(caught.value)
    assert caught.value.__cause__ is None, "a traceback would quote the address"


def test_a_receiver_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(posting, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(NotDelivered, match="did not answer"):
        HttpSender(allow_loopback=True).post(url(server.getsockname()[1]), {}, "{}")


@pytest.mark.parametrize(
    ("head", "outcome"),
    [
        (b"", pytest.raises(NotDelivered, match="did not answer")),
        (b"HTTP/1.1 503 Down\r\nx: ", pytest.raises(NotDelivered, match="503")),
        (b"HTTP/1.1 200 OK\r\nx: ", nullcontext()),  # it has said that it accepts
    ],
)
def test_a_receiver_that_answers_a_byte_at_a_time_is_given_up(monkeypatch, head, outcome):
    monkeypatch.setattr(posting, "TIMEOUT_SECONDS", 0.5)

    def trickle(server):
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(head)
            while True:
                connection.sendall(b"H")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=trickle, args=[server])
        thread.start()
        began = time.monotonic()
        with outcome:
            HttpSender(allow_loopback=True).post(url(server.getsockname()[1]), {}, "{}")
        assert time.monotonic() - began < 5
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("flood", [b"x: " + b"y" * 70_000, b"x: y\r\n" * 1000])
def test_an_answer_that_is_all_headers_is_given_up(flood):
    def answer(server):
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            with suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + flood)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=[server])
        thread.start()
        with pytest.raises(NotDelivered, match="did not answer"):
            HttpSender(allow_loopback=True).post(url(server.getsockname()[1]), {}, "{}")
        thread.join(5)


# Where nothing is sent to

SPECIAL = {
    "loopback": "127.0.0.1 127.8.8.8 ::1",
    "unspecified": "0.0.0.0 0.1.2.3 ::",
    "private": "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 fc00::1 fd00:ec2::254",
    "link-local": "169.254.169.254 169.254.170.2 fe80::1",
    "site-local": "fec0::1",
    "CGNAT": "100.64.0.1 100.127.255.255",
    "protocol assignments": "192.0.0.1 192.0.0.8 192.0.0.9 192.0.0.10 192.0.0.170 192.0.0.192 2001:1::1 2001:20::1",
    "6to4 relay": "192.88.99.1",
    "benchmarking": "198.18.0.1 198.19.255.255 2001:2::1",
    "documentation": "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1",
    "multicast": "224.0.0.1 239.255.255.255 ff02::1 ff0e::1",
    "reserved and broadcast": "240.0.0.1 255.255.255.255",
    "NAT64": "64:ff9b::127.0.0.1 64:ff9b::8.8.8.8 64:ff9b:1::1",
    "6to4": "2002:7f00:1:: 2002:a9fe:a9fe:: 2002:808:808::",
    "mapped and compatible": "::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:8.8.8.8 ::127.0.0.1 ::8.8.8.8",
    "Teredo": "2001:: 2001::1 2001:0:7f00:1::",
    "discard-only and segment routing": "100::1 5f00::1",
}
PUBLIC = "8.8.8.8 1.1.1.1 172.32.0.1 100.128.0.1 198.20.0.1 223.255.255.255 2606:4700::1111 2a00:1450:4001::1"


@pytest.mark.parametrize("address", " ".join(SPECIAL.values()).split())
def test_an_address_of_a_special_kind_is_not_public(address):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC.split())
def test_an_address_of_one_machine_on_the_internet_is_public(address):
    assert is_public(ip_address(address))


@pytest.fixture
def no_connection(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was begun")

    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.usefixtures("no_connection")
@pytest.mark.parametrize("address", " ".join(SPECIAL.values()).split())
def test_nothing_is_sent_to_a_special_address(address):
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(NotAllowed):
        HttpSender().post(f"https://{host}/", {}, "{}")


@pytest.mark.usefixtures("no_connection")
@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.1", "0", "017700000001", "localhost", "2852039166"),
        *("127.0.0.1.", "localhost.", "127.0.0.1:443", "[::ffff:7f00:1]", "LOCALHOST", "①②⑦.0.0.1"),
        *(
            "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
            "127。0。0。1",
            "good.example@127.0.0.1",
            "127.0.0.1#good.example",
            "127.0.0.1?good.example",
        ),
    ],
)
def test_another_way_to_write_it_is_no_way_round(host):
    with pytest.raises(NotAllowed):
        HttpSender().post(f"https://{host}/", {}, "{}")


@pytest.mark.usefixtures("no_connection")
@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["2606:4700::1111", "::1"], ["8.8.8.8", "169.254.169.254"]]
)
def test_a_name_one_of_whose_addresses_is_special_is_refused(names, addresses):
    names(rebinding_example=[addresses])
    with pytest.raises(NotAllowed, match="private or special") as caught:
        HttpSender().post(f"https://rebinding.example/{SECRET_PART}", {}, "{}")
    assert "rebinding" not in str(caught.value)
    assert SECRET_PART not in str(caught.value)


@pytest.mark.usefixtures("no_connection")
@pytest.mark.parametrize("address", ["http://8.8.8.8/", "ftp://8.8.8.8/", "https://user@8.8.8.8/", "8.8.8.8", ""])
def test_what_is_no_https_address_is_refused(address):
    with pytest.raises(NotAllowed):
        HttpSender().post(address, {}, "{}")
    with pytest.raises(InvalidAddress):
        read_address(address)


def test_a_name_is_resolved_once_and_what_it_leads_to_is_all_that_is_connected_to(names, monkeypatch):
    asked = names(rebinding_example=[["8.8.8.8", "1.1.1.1"], ["127.0.0.1"]])
    connected = []

    def refuse(address, *_, **__):
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(NotDelivered, match="did not answer"):
        HttpSender().post("https://rebinding.example:8443/", {}, "{}")
    assert asked == ["rebinding.example"]
    assert connected == [("8.8.8.8", 8443), ("1.1.1.1", 8443)]


# This machine itself


def test_this_machine_is_told_nothing_unless_the_setting_says_so():
    settings = load(NotifySettings, {"NOTIFICATION_SECRET_ARN": "a", "NOTIFY_QUEUE_URL": "q"})
    with receiver() as (port, got):
        for scheme in ("http", "https"):
            with pytest.raises(NotAllowed):
                HttpSender(allow_loopback=settings.allow_loopback).post(f"{scheme}://127.0.0.1:{port}/", {}, "{}")
    assert got == []


@pytest.mark.usefixtures("no_connection")
@pytest.mark.parametrize("host", ["8.8.8.8", "10.0.0.1", "169.254.169.254", "public.example", "0.0.0.0"])
def test_where_this_machine_may_be_told_nobody_else_is_over_plain_http(names, host):
    names(public_example=[["8.8.8.8"]])
    with pytest.raises(NotAllowed):
        HttpSender(allow_loopback=True).post(f"http://{host}/", {}, "{}")


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of NAME and of its IDN cousin: its path, with the key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(NAME), x509.DNSName("xn--bcher-kva.example")]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "receiver.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def secure(certificate):
    """A TLS receiver that says which name it was asked for: its port, what it got, the names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    wanted = []
    context.sni_callback = lambda _, name, __: wanted.append(name)
    with receiver(tls=context) as (port, got):
        yield port, got, wanted


@pytest.fixture
def trusting(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return HttpSender(allow_loopback=True)


@pytest.mark.parametrize(
    ("host", "sent"),
    [(NAME, NAME), (f"{NAME}.", NAME), (NAME.upper(), NAME), ("bücher.example", "xn--bcher-kva.example")],
)
def test_tls_and_the_host_are_the_names_though_the_address_is_connected_to(names, secure, trusting, host, sent):
    names(**{sent.replace(".", "_"): [["127.0.0.1"]]})
    port, got, wanted = secure
    trusting.post(f"https://{host}:{port}/ü", {}, "{}")
    assert wanted == [sent]
    [(headers, _)] = got
    assert headers["Host"] == f"{sent}:{port}"


def test_a_certificate_of_another_name_is_refused(names, secure, trusting):
    names(another_example=[["127.0.0.1"]])
    port, got, _ = secure
    with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
        trusting.post(f"https://another.example:{port}/", {}, "{}")
    assert got == []


def test_a_certificate_that_nobody_vouches_for_is_refused(names, secure):
    names(receiver_example=[["127.0.0.1"]])
    port, got, _ = secure
    with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
        HttpSender(allow_loopback=True).post(f"https://{NAME}:{port}/", {}, "{}")
    assert got == []


def test_a_handshake_that_never_ends_is_given_up(monkeypatch, names):
    monkeypatch.setattr(posting, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(NotDelivered, match="did not answer"):
        HttpSender(allow_loopback=True).post(f"https://127.0.0.1:{server.getsockname()[1]}/", {}, "{}")
