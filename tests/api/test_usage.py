"""GET /v1/usage: a key sees its own numbers, an admin's key everybody's."""

from datetime import UTC, datetime

import httpx
import pytest

from oxlo_local.api.usage import Question, question
from oxlo_local.errors import BadRequest
from oxlo_local.limits import Limits, read_budget
from oxlo_local.statement import Period
from tests.api.conftest import Site, StartSite, chat_body

CHAT = "/v1/chat/completions"
NOW = 1_795_348_800.0


def usage(site: Site, secret: str = "", **query: str) -> httpx.Response:
    headers = {"x-api-key": secret} if secret else {}
    return site.client.get("/v1/usage", params=query, headers=headers)


def test_each_key_sees_its_own_and_an_admin_all(start_site: StartSite) -> None:
    site = start_site()
    limits = Limits(rate=10, budget=read_budget("0.01usd/total"), concurrency=2)
    (anna, secret), (ben, other) = (
        site.run(site.keys.create(name, "user", limits if name == "anna" else Limits()))
        for name in ("anna", "ben")
    )
    _, root = site.run(site.keys.create("root", "admin"))
    for key, text in ((secret, "one two"), (secret, "one !fail=1"), (other, "one")):
        site.client.post(CHAT, json=chat_body(text), headers={"x-api-key": key})
    own = usage(site, secret).json()
    assert (own["object"], own["key"], own["by"]) == ("usage", anna.id, "model")
    assert [line["model"] for line in own["data"]] == ["echo"]
    total = own["total"]
    assert (total["requests"], total["settled"], total["refunded"], total["open"]) == (2, 1, 1, 0)
    assert (total["spent_usd"], total["refunded_usd"]) == ("0.0027", "0.0027")
    assert total["completion_tokens"] == 3 and "group" not in total
    money, rate, at_once = own["limits"]
    assert money == {
        "kind": "budget",
        "limit_usd": "0.0100",
        "remaining_usd": "0.0073",
        "reset_seconds": None,
    }
    assert (rate["kind"], rate["limit"], rate["remaining"]) == ("rate", 10, 8) and 0 < rate[
        "reset_seconds"
    ] <= 60
    assert at_once == {"kind": "concurrency", "limit": 2, "remaining": 2, "reset_seconds": None}

    everything = usage(site, root, by="key").json()
    assert everything["key"] is None and everything["limits"] == []
    assert {(line["key"], line["name"], line["requests"]) for line in everything["data"]} == {
        (anna.id, "anna", 2),
        (ben.id, "ben", 1),
    }
    assert everything["total"]["requests"] == 3
    for wanted in ("anna", anna.id):
        seen = usage(site, root, key=wanted).json()
        assert (seen["key"], seen["total"], len(seen["limits"])) == (anna.id, own["total"], 3)
    assert usage(site, secret, key=anna.id).json()["total"] == own["total"]
    assert usage(site, secret, by="key").json()["total"]["requests"] == 2
    refused = usage(site, secret, key=ben.id)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_required")
    assert usage(site, root, key="nobody").status_code == 404
    site.run(site.keys.revoke("anna"))
    assert usage(site, root, key="anna").json()["limits"] == []
    assert usage(site, secret).status_code == 401


def test_without_keys_everyone_sees_all(start_site: StartSite) -> None:
    site = start_site()
    assert usage(site).json()["total"]["requests"] == 0
    site.client.post(CHAT, json=chat_body(), headers={"x-oxlo-chain": "book"})
    for by, group in (
        ("endpoint", CHAT),
        ("chain", "book"),
        ("day", f"{datetime.now(UTC):%Y-%m-%d}"),
        ("key", "local"),
    ):
        (line,) = usage(site, by=by).json()["data"]
        assert line[by] == group and line["requests"] == 1
    assert usage(site, key="local").json()["total"]["requests"] == 1
    assert usage(site, until="1d").json()["total"]["requests"] == 0
    assert usage(site, since="1d").json()["total"]["requests"] == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7d", NOW - 7 * 86_400),
        ("90m", NOW - 5400),
        ("1700000000", 1_700_000_000.0),
        ("2026-11-01", 1_793_491_200.0),
        ("2026-11-01T00:00Z", 1_793_491_200.0),
        ("2026-11-01T01:00+01:00", 1_793_491_200.0),
        ("999999d", 0.0),
        ("0001-01-01T00:00+14:00", 0.0),
        ("9999-12-31T23:59-14:00", 99_999_999_999.0),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert question([("since", text)], NOW) == Question(period=Period(seconds, None))


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ([("by", "colour")], "by"),
        ([("since", "soon")], "since"),
        ([("until", "9999999d9")], "until"),
        ([("since", "1d"), ("until", "2d")], "since"),
        ([("since", "1d"), ("since", "2d")], "since"),
        ([("limit", "3")], "limit"),
    ],
)
def test_what_is_no_question_is_named(query: list[tuple[str, str]], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        question(query, NOW)
    assert refused.value.param == param


def test_moments_without_a_date_are_answered(site: Site) -> None:
    for since in ("999999d", "0001-01-01T00:00+14:00"):
        assert usage(site, since=since).json()["since"] == "1970-01-01T00:00:00.000Z"
    assert usage(site, until="9999-12-31T23:59-14:00").json()["until"].startswith("5138-11-16")


def test_a_bad_query_is_a_400(site: Site) -> None:
    answer = usage(site, by="colour")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "by"
