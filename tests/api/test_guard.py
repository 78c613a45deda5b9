"""Who may ask: every route, with and without keys, and what a web page in a browser could send."""

from pathlib import Path

import httpx
import pytest
from starlette.requests import HTTPConnection
from starlette.routing import Route

from oxlo_local.api import guard
from oxlo_local.api.app import ROUTES, Endpoint, Guarded, create_app
from oxlo_local.config import Settings
from oxlo_local.errors import HostNotAllowed, UnsupportedMediaType
from oxlo_local.keys import Role
from tests.api.conftest import ADMIN_TOKEN, Site, StartSite, chat_body
from tests.openai_description import judge

CHAT = "/v1/chat/completions"
OPEN = {"/healthz", "/readyz"}
# Whoever knows the name may have the file: browsers and OpenAI's clients fetch it without a key. The name is 128 random
# bits that expire, is told to nobody but the client that asked for the image, and stands in no log.
CAPABILITIES = {"/v1/outputs/{name}"}
GUARDED = [endpoint for endpoint in ROUTES if endpoint.path not in OPEN | CAPABILITIES]


def ask(site: Site, endpoint: Endpoint, **headers: str) -> httpx.Response:
    """Ask with a body that some endpoints will find something missing in: who may ask is looked at before."""
    path = endpoint.path.replace("{model:path}", "echo").replace("{name}", "0" * 32 + ".png")
    body = {**chat_body(), "prompt": "x"} if "json" in endpoint.takes else None
    files = {"file": ("a.wav", b"x")} if endpoint.takes == "form" else None
    return site.client.request(endpoint.method, path, headers=headers, json=body, files=files)


def admitted(answer: httpx.Response) -> bool:
    return answer.status_code not in (401, 403, 415)


def make_key(site: Site, name: str, role: Role) -> str:
    return site.run(site.keys.create(name, role))[1]


def is_error(answer: httpx.Response, status: int, code: str) -> None:
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-should-retry"] == "false"


def test_only_health_and_outputs_are_open_to_anyone() -> None:
    assert {endpoint.path for endpoint in ROUTES if endpoint.who == "anyone"} == OPEN | CAPABILITIES
    assert {endpoint.path for endpoint in ROUTES if endpoint.secret} == CAPABILITIES
    admin = {endpoint.path for endpoint in ROUTES if endpoint.who == "admin"}
    assert {"/metrics", "/admin/workers"} <= admin
    assert {endpoint.path for endpoint in ROUTES if "admin" in endpoint.path} <= admin


def test_the_application_has_no_other_routes_than_those_listed(site: Site) -> None:
    inner = create_app(site.state)._app  # type: ignore[attr-defined]  # the frame around Starlette
    found = set()
    for route in inner.routes:
        assert isinstance(route, Route) and isinstance(route.app, Guarded)
        found |= {(method, route.path) for method in route.methods or () if method != "HEAD"}
    assert found == {(endpoint.method, endpoint.path) for endpoint in ROUTES}


WRONG_KEYS: tuple[dict[str, str], ...] = (
    {},
    {"authorization": "Bearer sk-none"},
    {"authorization": "Basic {user}"},
    {"x-api-key": "{cut}"},
    {"x-api-key": "{changed}"},
    {"authorization": "Bearer"},
    {"authorization": "Bearer x", "x-api-key": "{user}"},  # whoever sends the one is not asked for the other
)


def test_with_keys_in_force_every_route_wants_one(start_site: StartSite) -> None:
    site = start_site()
    assert all(admitted(ask(site, endpoint)) for endpoint in ROUTES)
    user, admin = make_key(site, "anna", "user"), make_key(site, "root", "admin")
    forms = {"user": user, "cut": user[:-1], "changed": user[:-1] + ("A" if user[-1] != "A" else "B")}
    rows = len(site.rows())
    for endpoint in ROUTES:
        for headers in WRONG_KEYS:
            answer = ask(site, endpoint, **{name: value.format(**forms) for name, value in headers.items()})
            if endpoint.path in OPEN:
                assert answer.status_code == 200
            elif endpoint.path in CAPABILITIES:
                is_error(answer, 404, "not_found")
            else:
                is_error(answer, 401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer" and user not in answer.text
    assert len(site.rows()) == rows
    for endpoint in ROUTES:
        assert admitted(ask(site, endpoint, authorization=f"bearer {admin}"))
        assert admitted(ask(site, endpoint, **{"x-api-key": admin}))
        assert admitted(ask(site, endpoint, authorization=f"Bearer {ADMIN_TOKEN}"))
        answer = ask(site, endpoint, authorization=f"Bearer {user}")
        if endpoint.who == "admin":
            is_error(answer, 403, "admin_required")
        else:
            assert admitted(answer)
    keys = [row["key_id"] for row in site.rows()[rows:]]
    assert len(set(keys)) == 3 and "local" in keys  # two keys, and the admin token of this machine's user


@pytest.mark.parametrize("method", ["HEAD", "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_no_method_of_any_route_gets_round_the_guard(start_site: StartSite, method: str) -> None:
    site = start_site(auth="always")
    for endpoint in GUARDED:
        answer = site.client.request(method, endpoint.path.replace("{model:path}", "echo"))
        asks = method == endpoint.method or (method == "HEAD" and endpoint.method == "GET")
        expected = 401 if asks else 204 if method == "OPTIONS" else 405
        assert answer.status_code == expected, endpoint
        assert answer.status_code != 204 or not answer.content


def test_a_key_of_any_bytes_is_only_a_wrong_key(start_site: StartSite) -> None:
    site = start_site(auth="always")
    for value in (
        b"Bearer caf\xe9",
        b"Bearer " + bytes(range(128, 256)),
        b"Bearer a b c",
        b"Bearer " + b"x" * 5000,
    ):
        is_error(site.client.get("/v1/models", headers={b"authorization": value}), 401, "invalid_api_key")


def test_keys_stay_in_force_when_all_are_revoked(start_site: StartSite) -> None:
    site = start_site()
    key, secret = site.run(site.keys.create("anna", "user"))
    assert site.client.get("/v1/models", headers={"x-api-key": secret}).status_code == 200
    site.run(site.keys.revoke(key.id))
    is_error(site.client.get("/v1/models", headers={"x-api-key": secret}), 401, "invalid_api_key")
    is_error(site.client.get("/v1/models"), 401, "invalid_api_key")


def test_without_keys_any_authorization_will_do(site: Site) -> None:
    for headers in (
        {},
        {"authorization": "Bearer sk-anything"},
        {"authorization": "Basic eDp5"},
        {"x-api-key": "x"},
    ):
        assert site.client.get("/v1/models", headers=headers).status_code == 200


def test_auth_always_wants_a_key_on_loopback_too(start_site: StartSite) -> None:
    is_error(start_site(auth="always").client.get("/v1/models"), 401, "invalid_api_key")


def test_auth_never_wants_none_though_one_was_made(start_site: StartSite) -> None:
    site = start_site(auth="never")
    make_key(site, "anna", "user")
    assert site.client.get("/v1/models").status_code == 200
    is_error(site.client.get("/v1/models", headers={"host": "evil.example"}), 403, "origin_not_allowed")


def test_beyond_loopback_a_key_is_wanted_although_none_was_made(start_site: StartSite) -> None:
    is_error(start_site(host="0.0.0.0").client.get("/v1/models"), 401, "invalid_api_key")


# -- web pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "localhost.",
     "a.localhost", "192.168.1.7:8000", "[2001:db8::1]:8000", "0.0.0.0", "127.0.0.1:8000:x", "[::1", "",
     "localhost@evil"],
)  # fmt: skip
def test_dns_rebinding_is_refused(site: Site, host: str) -> None:
    for endpoint in GUARDED:
        is_error(ask(site, endpoint, host=host), 403, "origin_not_allowed")
    assert site.client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.8.8:9", "[::1]", "[::1]:8000"]
)
def test_loopback_names_are_welcome(site: Site, host: str) -> None:
    assert site.client.get("/v1/models", headers={"host": host}).status_code == 200


def test_two_hosts_are_refused(tmp_path: Path) -> None:
    scope = {"type": "http", "headers": [(b"host", b"localhost"), (b"host", b"evil.example")]}
    settings = Settings(home=tmp_path, config=tmp_path)
    with pytest.raises(HostNotAllowed):
        guard.refuse_web_pages(HTTPConnection(scope), settings)


def test_a_page_cannot_post_across_sites(site: Site) -> None:
    """These types need no preflight: a browser sends them to anybody."""
    rows = len(site.rows())
    body = b'{"model": "echo", "messages": [{"role": "user", "content": "x"}]}'
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        headers = {"content-type": kind} if kind else {}
        is_error(site.client.post(CHAT, content=body, headers=headers), 415, "unsupported_media_type")
        is_error(
            site.client.post("/v1/completions", content=body, headers=headers), 415, "unsupported_media_type"
        )
    assert len(site.rows()) == rows


def test_a_foreign_origin_is_refused(site: Site) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:3000", site.url):
        for endpoint in GUARDED:
            answer = ask(site, endpoint, origin=origin)
            is_error(answer, 403, "origin_not_allowed")
            assert "access-control-allow-origin" not in answer.headers


def test_a_preflight_from_a_foreign_origin_allows_nothing(site: Site) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = site.client.options(CHAT, headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_listed_origins_may_use_the_server(start_site: StartSite) -> None:
    site = start_site(cors_origins=["http://app.local:3000"])
    good, bad = "http://app.local:3000", "http://app.local:3001"
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-api-key",
    }
    answer = site.client.options(CHAT, headers={"origin": good, **preflight})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == good
    assert "x-api-key" in answer.headers["access-control-allow-headers"]
    assert (
        "access-control-allow-origin"
        not in site.client.options(CHAT, headers={"origin": bad, **preflight}).headers
    )
    answer = site.client.post(CHAT, json=chat_body(), headers={"origin": good})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == good
    assert "x-oxlo-entry" in answer.headers["access-control-expose-headers"]
    is_error(site.client.post(CHAT, json=chat_body(), headers={"origin": bad}), 403, "origin_not_allowed")
    refused = site.client.post(CHAT, json=chat_body(n=0), headers={"origin": good})
    assert refused.status_code == 400 and refused.headers["access-control-allow-origin"] == good


# -- pieces -----------------------------------------------------------------------------------------------------------


def connection(**headers: str) -> HTTPConnection:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw, "client": None})


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ;",
    ],
)
def test_json_is_known_by_its_type(kind: str) -> None:
    guard.require_json(connection(content_type=kind))


@pytest.mark.parametrize(
    "kind", ["application/jsonp", "application/json; charset=latin-1", "text/json", "*/*"]
)
def test_other_types_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        guard.require_json(connection(content_type=kind))


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="Content-Encoding"):
        guard.require_json(connection(content_type="application/json", content_encoding="gzip"))


@pytest.mark.parametrize(
    ("peer", "distance"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("192.168.1.5", "private"),
        ("fd00::1", "private"),
        ("8.8.8.8", "public"),
        ("2a00:1450::1", "public"),
        ("testclient", "loopback"),
        (None, "loopback"),
    ],
)
def test_how_far_away_a_peer_is(peer: str | None, distance: str) -> None:
    scope: dict[str, object] = {
        "type": "http",
        "headers": [],
        "client": None if peer is None else (peer, 1234),
    }
    assert guard.address_class(HTTPConnection(scope)) == distance
