"""Images by address: what may be reached, and how long and how much at most. Real sockets on loopback."""

import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oxlo_local.engines.text.remote import Fetch, Fetched, public, resolve
from oxlo_local.errors import BadRequest

PNG = b"\x89PNG not looked at here"
REFUSED = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.0.192", "192.88.99.1", "192.0.2.1", "198.18.0.1",
    "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1",
    "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1", "3fff::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::1", "2002:c0a8:101::1", "2001:0:7f00:1::1", "fec0::1",
    "100::1", "not an address", "",
]  # fmt: skip
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", REFUSED)
def test_only_public_addresses_are_reached(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_public_addresses_are_public(address: str) -> None:
    assert public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/a.png", "http://localhost:9/a.png", "http://[::1]:9/a.png", "http://2130706433:9/a.png",
        "http://0x7f.1:9/a.png", "http://127.1:9/a.png", "http://0:9/a.png", "http://[::ffff:127.0.0.1]:9/a.png",
        "http://169.254.169.254/latest/meta-data/",
    ],
)  # fmt: skip
def test_no_spelling_of_a_private_address_gets_through(url: str) -> None:
    with pytest.raises(BadRequest, match="not a public one|cannot be fetched") as caught:
        Fetch(url, most=1000, param="here").run()
    assert caught.value.param == "here"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.png",
        "file:///etc/passwd",
        "http://",
        "http://user:secret@example.org/a.png",
        "//x/y",
    ],
)
def test_other_addresses_are_not_fetched(url: str) -> None:
    with pytest.raises(BadRequest):
        Fetch(url, most=1000, param="p", resolve=lambda *_: pytest.fail("it was looked up")).run()


class Site:
    """A web server on loopback; `answers` maps a path to what writes the whole answer."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.asked: list[tuple[str, str]] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append((self.headers["host"], self.path))
                site.answers[self.path](self)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def fetch(self, path: str, **more: object) -> Fetched:
        """Fetch from a name that leads here, as if loopback were public."""
        fields: dict[str, object] = {
            "most": 10_000,
            "resolve": lambda *_: ["127.0.0.1"],
            "allowed": bool,
        } | more
        url = f"http://pictures.test:{self.port}{path}"
        return Fetch(url, param="p", **fields).run()  # type: ignore[arg-type]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def giving(
    data: bytes = PNG, said: str = "image/png", status: int = 200, length: int | None = None, **headers: str
) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("content-type", said)
        handler.send_header("content-length", str(len(data) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def test_an_image_is_fetched_with_its_type(site: Site) -> None:
    site.answers["/a.png?size=1"] = giving(said="image/PNG; charset=x")
    assert site.fetch("/a.png?size=1") == Fetched(PNG, "image/png")
    assert site.asked == [(f"pictures.test:{site.port}", "/a.png?size=1")]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (giving(status=404), "answered 404"),
        (giving(status=500), "answered 500"),
        (giving(said="text/html"), "text/html"),
        (giving(b"x" * 10_001), "more than 10,000 bytes"),
        (giving(length=5000), "hung up|IncompleteRead"),
        (lambda handler: handler.wfile.write(b"SSH-2.0-nonsense\r\n"), "cannot be fetched"),
        (
            lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000),
            "cannot be fetched",
        ),
        (lambda handler: None, "cannot be fetched"),
    ],
)
def test_what_is_no_image_is_refused(
    site: Site, answer: Callable[[http.server.BaseHTTPRequestHandler], None], why: str
) -> None:
    site.answers["/a"] = answer
    with pytest.raises(BadRequest, match=why):
        site.fetch("/a")


def test_redirects_are_followed_and_looked_at_anew(site: Site) -> None:
    site.answers["/a"] = giving(b"", status=302, location=f"http://other.test:{site.port}/b")
    site.answers["/b"] = giving()
    assert site.fetch("/a").data == PNG
    looked_up: list[str] = []

    def name(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if host == "pictures.test" else ["10.1.2.3"]

    with pytest.raises(BadRequest, match="not a public one"):
        site.fetch("/a", resolve=name, allowed=lambda address: address == "127.0.0.1")
    assert looked_up == ["pictures.test", "other.test"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "gopher://x/", "http://u:p@x/"])
def test_redirects_lead_to_the_web_only(site: Site, target: str) -> None:
    site.answers["/a"] = giving(b"", status=301, location=target)
    with pytest.raises(BadRequest, match="only http|password"):
        site.fetch("/a")


def test_a_circle_of_redirects_ends(site: Site) -> None:
    site.answers["/a"] = giving(b"", status=307, location="/a")
    with pytest.raises(BadRequest, match="redirects more than"):
        site.fetch("/a")
    assert len(site.asked) == 4


def test_the_address_that_was_looked_at_is_the_one_connected_to(site: Site) -> None:
    """A name that answers differently the second time is asked only once."""
    site.answers["/a"] = giving()
    answers = iter([["127.0.0.1"]])
    assert site.fetch("/a", resolve=lambda *_: next(answers)).data == PNG


def test_one_private_address_among_public_ones_is_enough(site: Site) -> None:
    with pytest.raises(BadRequest, match="not a public one"):
        site.fetch("/a", resolve=lambda *_: ["8.8.8.8", "127.0.0.1"], allowed=public)
    assert not site.asked


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A byte now and then, for ever: no single wait is long."""
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n")
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            threading.Event().wait(0.01)
    except OSError:
        pass


def drip_headers(handler: http.server.BaseHTTPRequestHandler) -> None:
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            handler.wfile.write(b"y")
            handler.wfile.flush()
            threading.Event().wait(0.01)
    except OSError:
        pass


@pytest.mark.parametrize("slow", [drip, drip_headers])
def test_one_clock_runs_over_it_all(
    site: Site, slow: Callable[[http.server.BaseHTTPRequestHandler], None]
) -> None:
    site.answers["/a"] = slow
    begun = time.monotonic()
    with pytest.raises(BadRequest, match="longer than 0.3 s"):
        site.fetch("/a", seconds=0.3, most=10**9)
    assert time.monotonic() - begun < 2


def test_a_name_that_nobody_answers_for_is_not_waited_for() -> None:
    begun = time.monotonic()
    with pytest.raises(BadRequest, match="longer than 0.2 s"):
        Fetch(
            "http://slow.test/a",
            most=1,
            param="p",
            seconds=0.2,
            resolve=lambda *_: threading.Event().wait(5) and [] or [],
        ).run()
    assert time.monotonic() - begun < 2


def test_nothing_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(BadRequest, match="cannot be fetched"):
        Fetch(f"http://127.0.0.1:{port}/", most=1, param="p", allowed=bool).run()


def test_names_are_resolved() -> None:
    assert set(resolve("localhost", 80)) <= {"127.0.0.1", "::1"}


def test_a_certificate_is_for_the_name_though_the_address_was_chosen(site: Site, tmp_path: Path) -> None:
    """TLS goes to the address that was looked at and still proves the name."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pictures.test",
         "-addext", "subjectAltName=DNS:pictures.test", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    site.server.socket = serving.wrap_socket(site.server.socket, server_side=True)
    site.answers["/a"] = giving()
    trusting = ssl.create_default_context(cafile=str(certificate))

    def fetch(name: str, tls: ssl.SSLContext | None) -> bytes:
        url = f"https://{name}:{site.port}/a"
        fetch = Fetch(url, most=1000, param="p", resolve=lambda *_: ["127.0.0.1"], allowed=bool, tls=tls)
        return fetch.run().data

    assert fetch("pictures.test", trusting) == PNG
    with pytest.raises(BadRequest, match="CERTIFICATE|certificate"):
        fetch("others.test", trusting)
    with pytest.raises(BadRequest, match="CERTIFICATE|certificate"):
        fetch("pictures.test", None)
