"""Idempotency-Keys in the file: what a claim has come to is what its entry has come to."""

import hashlib
import sqlite3
from pathlib import Path

import pytest

from oxlo_local import claims
from oxlo_local.claims import FREE, HELD, Demand, Found
from oxlo_local.db import Connection, migrate
from oxlo_local.errors import IdempotencyConflict, Unavailable

NOW, SINCE = 100_000, 50_000


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


DEMAND = Demand(claims.scope_of("k_1", "/v1/chat/completions", "order-7"), digest("body"))
OTHER_BODY = Demand(DEMAND.scope, digest("another body"))


@pytest.fixture
def file(tmp_path: Path) -> Connection:
    """A ledger file of today."""
    connection = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    migrate(connection, tmp_path / "ledger.db", 0)
    return connection


def take(file: Connection, demand: Demand = DEMAND, id: str = "c_1", living: str = "i_1") -> Found:
    return claims.take(file, demand, id, "i_1", NOW, SINCE, living.__eq__)


def look(file: Connection, demand: Demand = DEMAND, since_ms: int = SINCE, living: str = "i_1") -> Found:
    return claims.look(file, demand, since_ms, living.__eq__)


def reserve(file: Connection, claim_id: str = "c_1", entry_id: str = "e_1") -> None:
    file.execute(
        "INSERT INTO entries (id, opened_ms, instance, status, key_id, endpoint, model, units, unit_price_micros,"
        " price_micros, price_version, request_id, address_class)"
        " VALUES (?, 0, 'i_1', 'open', 'local', '/', 'm', 1, 1000, 1000, 'v', 'r', 'loopback')",
        (entry_id,),
    )
    claims.link(file, claim_id, entry_id)


def close(file: Connection, status: str, entry_id: str = "e_1") -> None:
    reason = "cancelled" if status == "refunded" else None
    sql = "UPDATE entries SET status = ?, closed_ms = 1, reason = ? WHERE id = ?"
    file.execute(sql, (status, reason, entry_id))


def test_the_first_gets_it_and_the_second_does_not(file: Connection) -> None:
    assert look(file) is FREE
    assert take(file) is FREE and take(file, id="c_2") is HELD and look(file) is HELD


def test_an_open_entry_holds_it_and_a_settled_one_ends_it(file: Connection) -> None:
    take(file)
    reserve(file)
    assert look(file) is HELD and take(file, id="c_2") is HELD
    close(file, "settled")
    assert look(file) == take(file, id="c_2") == Found("settled", "e_1")


def test_a_refunded_entry_frees_it_for_any_body(file: Connection) -> None:
    take(file)
    reserve(file)
    close(file, "refunded")
    assert look(file) is FREE and look(file, OTHER_BODY) is FREE
    assert take(file, OTHER_BODY, "c_2") is FREE
    with pytest.raises(IdempotencyConflict):
        look(file)


@pytest.mark.parametrize("reached", ["claimed", "open", "settled"])
def test_another_body_is_a_conflict_from_the_first_moment_on(file: Connection, reached: str) -> None:
    take(file)
    if reached != "claimed":
        reserve(file)
    if reached == "settled":
        close(file, "settled")
    with pytest.raises(IdempotencyConflict):
        take(file, OTHER_BODY, "c_2")


def test_a_dead_instance_holds_nothing_before_its_entry(file: Connection) -> None:
    take(file)
    assert look(file, living="none") is FREE
    reserve(file)
    assert look(file, living="none") is HELD  # the ledger's sweep has to refund it first


def test_who_has_lost_the_claim_can_reserve_nothing(file: Connection) -> None:
    take(file)
    assert take(file, id="c_2", living="none") is FREE
    with pytest.raises(Unavailable):
        claims.link(file, "c_1", "e_1")
    claims.link(file, "c_2", "e_2")
    with pytest.raises(Unavailable):
        claims.link(file, "c_2", "e_3")  # one claim, one entry


def test_a_claim_is_dropped_unless_its_entry_stands(file: Connection) -> None:
    take(file)
    claims.drop("c_1", file)
    assert look(file) is FREE
    for status, left in (("refunded", FREE), ("settled", Found("settled", "e_settled"))):
        take(file)
        reserve(file, entry_id=f"e_{status}")
        claims.drop("c_1", file)
        assert look(file) is HELD
        close(file, status, f"e_{status}")
        claims.drop("c_1", file)
        assert look(file) == left


def test_it_is_forgotten_when_its_time_is_over_but_not_while_it_runs(file: Connection) -> None:
    take(file)
    reserve(file)
    assert not claims.any_before(file, NOW) and claims.any_before(file, NOW + 1)
    assert claims.forget(file, NOW + 1) == 0 and look(file, since_ms=NOW + 1) is HELD
    close(file, "settled")
    assert look(file, since_ms=NOW + 1) is FREE and look(file, since_ms=NOW) != FREE
    assert claims.forget(file, NOW) == 0 and claims.forget(file, NOW + 1) == 1
    assert look(file) is FREE


def test_a_scope_is_an_api_key_an_endpoint_and_a_key() -> None:
    scopes = {
        claims.scope_of("k_1", "/v1/chat/completions", "x"),
        claims.scope_of("k_2", "/v1/chat/completions", "x"),
        claims.scope_of("k_1", "/v1/completions", "x"),
        claims.scope_of("k_1", "/v1/completions", "y"),
    }
    assert len(scopes) == 4 and all(len(scope) == 32 for scope in scopes)
