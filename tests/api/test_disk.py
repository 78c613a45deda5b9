"""A ledger that cannot write: requests are refused with 503 and the reason, and no engine does anything for them."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest

from oxlo_local.api.app import ROUTES
from oxlo_local.calls import EchoOptions
from oxlo_local.db import Connection
from tests.api.conftest import Site, StartSite, chat_body
from tests.conftest import until
from tests.openai_description import judge

CHAT = "/v1/chat/completions"


def set_pragma(site: Site, pragma: str) -> None:
    """Of the writer's own connection."""

    def execute(connection: Connection) -> None:
        connection.execute(f"PRAGMA {pragma}")

    site.run(site.db.write(execute))


@contextmanager
def locked(site: Site) -> Iterator[None]:
    """Another program holds the file's write lock."""
    set_pragma(site, "busy_timeout = 50")
    other = sqlite3.connect(site.settings.ledger_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def full(site: Site) -> Iterator[None]:
    """No page can be added."""
    set_pragma(site, "max_page_count = 1")  # SQLite: no smaller than it is, so full from now on
    yield
    site.db._connection.execute("PRAGMA max_page_count = 1000000")


@contextmanager
def read_only(site: Site) -> Iterator[None]:
    """The file cannot be written."""
    site.db._connection.execute("PRAGMA query_only = ON")
    yield
    site.db._connection.execute("PRAGMA query_only = OFF")


TROUBLES: dict[str, tuple[Callable[[Site], AbstractContextManager[None]], str]] = {
    "locked": (locked, "is locked by another process"),
    "full": (full, "the disk is full"),
    "read-only": (read_only, "cannot be written"),
}


def is_refused(answer: httpx.Response, why: str) -> None:
    judge("ErrorResponse", answer.json())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "ledger_unavailable") and why in error["message"]
    assert int(answer.headers["retry-after"]) >= 1 and "x-oxlo-entry" not in answer.headers


@pytest.mark.parametrize("trouble", TROUBLES)
def test_nothing_is_served_unmetered(start_site: StartSite, trouble: str) -> None:
    site = start_site()
    begin, why = TROUBLES[trouble]

    def words() -> int:
        return site.fleet.status()[0].gauges.generated_tokens

    def ask(**headers: str) -> httpx.Response:
        return site.client.post(CHAT, json=chat_body("one", metadata={"k": "v" * 500}), headers=headers)

    until(words)  # of the warm-up
    before = words()
    with begin(site):
        for _ in range(50):  # a full file takes rows until its last page is full too
            if ask().status_code == 503:
                break
        rows = len(site.rows())
        for headers in ({}, {"idempotency-key": "again"}):
            is_refused(ask(**headers), why)
        assert len(site.rows()) == rows
        for path in ("/healthz", "/readyz", "/v1/models", "/metrics", "/v1/usage"):
            assert site.client.get(path).status_code == 200
    assert ask(**{"idempotency-key": "again"}).status_code == 200
    assert [row["status"] for row in site.rows()] == ["settled"] * (rows + 1)
    until(lambda: words() > before + rows)
    assert words() == before + rows + 1  # a word for each row, and none without


def test_an_answer_under_way_is_finished_and_its_row_closed_when_that_is_possible(
    start_site: StartSite,
) -> None:
    site = start_site(EchoOptions(step_seconds=0.01))
    headers = {"idempotency-key": "owed"}

    def ask() -> httpx.Response:
        return site.client.post(CHAT, json=chat_body("one", max_tokens=30), headers=headers)

    with ThreadPoolExecutor(1) as threads:
        set_pragma(site, "busy_timeout = 50")
        asked = threads.submit(ask)
        until(lambda: any(row["status"] == "open" for row in site.rows()))
        with locked(site):
            first = asked.result()
        assert first.status_code == 200 and first.text.count("one") == 30
        assert [row["status"] for row in site.rows()] == ["open"]
        again = threads.submit(ask)  # waits until it is known what the first has come to
        assert site.run(site.ledger.sweep()) == 1
        repeated = again.result()
    assert repeated.headers["x-oxlo-replayed"] == "true" and repeated.content == first.content
    assert [row["status"] for row in site.rows()] == ["settled"]


def test_every_post_that_is_metered_is_refused(start_site: StartSite) -> None:
    """Whatever the endpoint: one that answers nevertheless has not come along the metered path."""
    site = start_site()
    free = {"/tokenize", "/detokenize", "/apply-template"}
    with read_only(site):
        for endpoint in ROUTES:
            if endpoint.method == "POST" and endpoint.path not in free:
                body = {**chat_body(), "prompt": "x", "input": "x", "query": "x", "documents": ["x"]}
                answer = site.client.post(endpoint.path, json=body)
                works = endpoint.path in (CHAT, "/v1/completions")  # echo is for these
                refused = 415 if endpoint.takes == "form" else 400  # of a body that is none for it
                assert answer.status_code == (503 if works else refused), endpoint.path
                assert "x-oxlo-entry" not in answer.headers
    assert site.rows() == []
