"""Who may ask. One function decides for every route: `admit`.

The bind address decides, never the peer's (behind a proxy every peer is loopback). A server without keys on loopback
trusts every program of the machine, and a browser is one of them: it runs pages of strangers. So there, besides,

- the Host must be a loopback name, or a page could rebind its own name to 127.0.0.1 and read the answers;
- an Origin must be one of `cors_origins`;
- a POST must carry the endpoint's own Content-Type, which a page cannot send across origins without asking first.
"""

import hmac
import ipaddress
import re

from starlette.requests import HTTPConnection

from oxlo_local.api.exchange import State
from oxlo_local.config import Settings
from oxlo_local.errors import AdminRequired, HostNotAllowed, Unauthorized, UnsupportedMediaType
from oxlo_local.inference import Caller
from oxlo_local.keys import LOCAL
from oxlo_local.ledger import AddressClass

JSON = "application/json"
FORM = "multipart/form-data"
_HOST = re.compile(r"(?:\[(?P<address>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::\d{1,5})?")


async def admit(state: State, connection: HTTPConnection, *, admin: bool) -> Caller:
    """The caller of a route that is not open to all. Raises Unauthorized, AdminRequired, HostNotAllowed."""
    caller = await _caller(state, connection)
    if admin and caller.role != "admin":
        raise AdminRequired(
            "This route needs an admin key: make one with `oxlo keys create NAME --role admin`."
        )
    return caller


async def _caller(state: State, connection: HTTPConnection) -> Caller:
    address = address_class(connection)
    secret = presented_key(connection)
    if secret is not None and hmac.compare_digest(secret.encode(), state.admin_token.encode()):
        return Caller(key_id=LOCAL, role="admin", address_class=address)
    if await _keyless(state):
        refuse_web_pages(connection, state.settings)
        return Caller(key_id=LOCAL, role="admin", address_class=address)
    if secret is None:
        raise Unauthorized(
            "This server needs a key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
        )
    key = await state.keys.verify(secret)
    return Caller(key_id=key.id, role=key.role, address_class=address, limits=key.limits)


async def _keyless(state: State) -> bool:
    """Whether every caller is welcome: on loopback, until the first key is made."""
    settings = state.settings
    if not settings.loopback or settings.auth == "always":
        return False
    return settings.auth == "never" or not await state.keys.any_made()


def presented_key(connection: HTTPConnection) -> str | None:
    """The secret in `Authorization: Bearer` or, without that header, in `x-api-key`. Raises Unauthorized for others."""
    authorization = connection.headers.get("authorization")
    if authorization is None:
        return connection.headers.get("x-api-key")
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def refuse_web_pages(connection: HTTPConnection, settings: Settings) -> None:
    """Raise HostNotAllowed for what a foreign web page in a browser of this machine could send."""
    hosts = connection.headers.getlist("host")
    if len(hosts) != 1 or not _is_own_name(hosts[0], settings):
        shown = ", ".join(hosts).encode("ascii", "backslashreplace").decode()[:100] or "none"
        raise HostNotAllowed(
            f"The Host header ({shown}) is no loopback name. Without keys this server answers to localhost and "
            "127.0.0.1 only; make a key with `oxlo keys create NAME` to reach it by other names."
        )
    origins = connection.headers.getlist("origin")
    if any(origin not in settings.cors_origins and "*" not in settings.cors_origins for origin in origins):
        raise HostNotAllowed(
            "This web origin may not use the server. Add it to `cors_origins` in config.toml to allow it."
        )


def _is_own_name(host: str, settings: Settings) -> bool:
    """Whether a Host header (name with or without port) names this machine's loopback, or the configured host."""
    match = _HOST.fullmatch(host.lower())
    if match is None:
        return False
    name = match["address"] or match["name"]
    if name in ("localhost", settings.host.lower().strip("[]")):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_form(connection: HTTPConnection) -> bool:
    """Whether the body is declared as a form with files."""
    return connection.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


def require_json(connection: HTTPConnection) -> None:
    """Raise UnsupportedMediaType unless the body is declared as plain UTF-8 JSON."""
    kind, _, parameters = connection.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != JSON or charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMediaType(f"Send the body with `Content-Type: {JSON}`, in UTF-8.")
    _refuse_encoding(connection)


def require_form(connection: HTTPConnection) -> None:
    """Raise UnsupportedMediaType unless the body is declared as a form with files.

    A page can send one across origins without asking; its Origin gives it away (`refuse_web_pages`).
    """
    if not is_form(connection):
        raise UnsupportedMediaType(f"Send the body as a form with its file: `Content-Type: {FORM}`.")
    _refuse_encoding(connection)


def _refuse_encoding(connection: HTTPConnection) -> None:
    if connection.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body without Content-Encoding.")


def address_class(connection: HTTPConnection) -> AddressClass:
    """How far away the peer is, for the ledger's row. Decides nothing."""
    if connection.client is None:
        return "loopback"
    try:
        address = ipaddress.ip_address(connection.client.host)
    except ValueError:
        return "loopback"
    if address.is_loopback:
        return "loopback"
    return "private" if address.is_private else "public"
