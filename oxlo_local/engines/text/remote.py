"""Images by address: fetched for a client, who must not thereby reach what only this machine can reach.

A name is resolved once, every address that it has must be a public one, and the connection goes to the very address
that was looked at: a name that answers differently the second time gains nothing. Each redirect starts from there
again. No proxy is asked, no credential is sent, nothing is unpacked on the way, and one clock runs over it all.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from oxlo_local.errors import BadRequest

SECONDS = 10.0  # for everything: names, redirects, the last byte
REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
PIECE = 1 << 16
REDIRECTED = frozenset({301, 302, 303, 307, 308})
HEADERS = {
    "Accept": "image/png, image/jpeg, image/webp, image/gif",
    "User-Agent": "oxlo",
    "Connection": "close",
}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
COMPATIBLE = ipaddress.ip_network("::/96")
# Not of the open internet either, which older Pythons do not know; a cloud's metadata are behind 192.0.0.192.
CLOSED = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))

Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an address held, and of which media type it was said to be."""

    data: bytes
    said: str


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name. Raises OSError where it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def public(address: str) -> bool:
    """Whether an address is one of the open internet, also by what it carries inside (mapped, 6to4, Teredo, NAT64)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.ipv4_mapped is not None or ip in NAT64:
            return _global(last)
        inside = [ip.sixtofour, *(ip.teredo or ()), *([last] if ip in COMPATIBLE else [])]
        if ip.is_site_local or any(part is not None and not _global(part) for part in inside):
            return False
    return _global(ip)


def _global(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    refused = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return ip.is_global and not refused and not any(ip in network for network in CLOSED)


class Fetch:
    """One fetch. `allowed` says which addresses may be connected to; `seconds` is for all of it."""

    def __init__(
        self,
        url: str,
        *,
        most: int,
        param: str,
        seconds: float = SECONDS,
        resolve: Resolve = resolve,
        allowed: Callable[[str], bool] = public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """At most `most` bytes are taken; `param` is the field that errors name."""
        self._url = url
        self._most = most
        self._param = param
        self._seconds = seconds
        self._resolve = resolve
        self._allowed = allowed
        self._tls = tls
        self._deadline = 0.0
        self._stream: socket.socket | None = None

    def run(self) -> Fetched:
        """The image. Raises BadRequest (param) for whatever keeps it from coming."""
        self._deadline = time.monotonic() + self._seconds
        alarm = threading.Timer(self._seconds, self._hang_up)
        alarm.daemon = True
        alarm.start()
        url = self._url
        try:
            for _ in range(REDIRECTS + 1):
                answer = self._ask(url)
                if isinstance(answer, Fetched):
                    return answer
                url = urljoin(url, answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = time.monotonic() >= self._deadline or isinstance(error, TimeoutError)
            why = f"it took longer than {self._seconds:g} s" if late else f"{type(error).__name__}: {error}"
            raise self._refusal(why) from None
        finally:
            alarm.cancel()
            if self._stream is not None:
                self._stream.close()
        raise self._refusal(f"it redirects more than {REDIRECTS} times")

    def _hang_up(self) -> None:
        """A server that sends a byte now and then never trips a timeout: at the deadline the line is cut."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def _refusal(self, why: str) -> BadRequest:
        return BadRequest(f"the image cannot be fetched: {why[:200]}", param=self._param)

    def _ask(self, url: str) -> "Fetched | str":
        """The image, or where to look instead."""
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise self._refusal("only http and https addresses are fetched")
        if parts.username is not None or parts.password is not None:
            raise self._refusal("its address carries a password")
        connection = self._connect(parts)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers=HEADERS)
            response = connection.getresponse()
            self._left()
            if response.status in REDIRECTED and (target := response.headers.get("location")):
                return target
            if response.status != 200:
                raise self._refusal(f"its server answered {response.status}")
            said = response.headers.get_content_type()
            if not said.startswith("image/"):
                raise self._refusal(f"it is {said}, which is no image")
            return Fetched(self._read(response), said)
        finally:
            connection.close()

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        addresses = self._addresses(host, port)
        if not addresses:
            raise self._refusal("its name has no address")
        if not all(map(self._allowed, addresses)):
            raise self._refusal("its address is not a public one")
        self._stream = socket.create_connection((addresses[0], port), timeout=self._left())
        if parts.scheme == "https":
            tls = self._tls or ssl.create_default_context()
            secure = tls.wrap_socket(self._stream, server_hostname=host, do_handshake_on_connect=False)
            self._stream = secure
            secure.do_handshake()
        connection = http.client.HTTPConnection(host, port if port != PORTS[parts.scheme] else None)
        connection.sock = self._stream
        return connection

    def _addresses(self, host: str, port: int) -> list[str]:
        """Every address of a name, in time: a resolver can be waited for, but not interrupted."""
        future: Future[list[str]] = Future()

        def look_up() -> None:
            try:
                future.set_result(self._resolve(host, port))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=look_up, daemon=True).start()
        return future.result(self._left())

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        data = bytearray()
        while piece := response.read1(PIECE):
            data += piece
            if len(data) > self._most:
                raise self._refusal(f"it has more than {self._most:,} bytes")
        self._left()
        if response.length:  # what was announced and did not come
            raise self._refusal("its server hung up in the middle of it")
        return bytes(data)
