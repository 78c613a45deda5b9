"""Idempotency-Keys in the ledger's file: one row for each, which says what its request has come to.

    free --take--> claimed --link--> reserved --settled--> charged once: an answer is repeated, never made again
      ^---------------'---------------'  refunded, refused, or its process died: whoever asks next may run

`link` belongs into the transaction that reserves the entry, so that from its first moment on a row in the ledger is
known to be that of a key. What a claim has come to is then never written down a second time: it is the status of its
entry. After a crash the ledger refunds that as `crashed`, and with it the key is free.

Nothing of the client is in here: scopes and bodies are SHA-256.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from oxlo_local.db import Connection
from oxlo_local.errors import IdempotencyConflict, Unavailable

LONGEST_KEY: Final = 255


@dataclass(frozen=True)
class Demand:
    """A request under an Idempotency-Key: `scope` says which key, `body` is the SHA-256 of what it asks for."""

    scope: bytes
    body: bytes


@dataclass(frozen=True)
class Found:
    """What a claim has come to; `entry_id` once it is settled."""

    state: Literal["free", "held", "settled"]
    entry_id: str = ""


FREE: Final = Found("free")
HELD: Final = Found("held")


def scope_of(key_id: str, endpoint: str, idempotency_key: str) -> bytes:
    """The same Idempotency-Key is another one for another API key, and at another endpoint."""
    return hashlib.sha256("\0".join((key_id, endpoint, idempotency_key)).encode()).digest()


_LOOK: Final = (
    "SELECT body, claims.instance, entry_id, at_ms, status FROM claims"
    " LEFT JOIN entries ON entries.id = entry_id WHERE scope = ?"
)


def look(connection: Connection, demand: Demand, since_ms: int, lives: Callable[[str], bool]) -> Found:
    """What is known of this Idempotency-Key; claims of before `since_ms` are forgotten unless they run.

    `lives` tells whether an instance can still be running a claim that has no entry yet. Raises IdempotencyConflict.
    """
    row = connection.execute(_LOOK, (demand.scope,)).fetchone()
    if row is None:
        return FREE
    body, instance, entry_id, at_ms, status = row
    if (
        status == "refunded"
        or (status != "open" and at_ms < since_ms)
        or (not entry_id and not lives(instance))
    ):
        return FREE
    if body != demand.body:
        raise conflict()
    return Found("settled", entry_id) if status == "settled" else HELD


def conflict() -> IdempotencyConflict:
    """The error for another body."""
    return IdempotencyConflict(
        "This Idempotency-Key has been used for another body. Send the same body to have its answer again, or another "
        "key for another request."
    )


def take(
    connection: Connection,
    demand: Demand,
    claim_id: str,
    instance: str,
    at_ms: int,
    since_ms: int,
    lives: Callable[[str], bool],
) -> Found:
    """Look, and claim the key if it is free. Runs inside a write. Raises IdempotencyConflict."""
    found = look(connection, demand, since_ms, lives)
    if found is FREE:
        connection.execute(
            "INSERT OR REPLACE INTO claims (scope, body, id, instance, at_ms) VALUES (?, ?, ?, ?, ?)",
            (demand.scope, demand.body, claim_id, instance, at_ms),
        )
    return found


def link(connection: Connection, claim_id: str, entry_id: str) -> None:
    """Note which entry the claim is for, in the transaction that reserves it. Raises Unavailable if it is lost."""
    sql = "UPDATE claims SET entry_id = ? WHERE id = ? AND entry_id IS NULL"
    if connection.execute(sql, (entry_id, claim_id)).rowcount != 1:
        raise Unavailable("Another server has taken over this Idempotency-Key. Send the request again.")


def drop(claim_id: str, connection: Connection) -> None:
    """Free the key of a request that has ended, unless its entry stands."""
    connection.execute(
        "DELETE FROM claims WHERE id = ? AND NOT EXISTS"
        " (SELECT 1 FROM entries WHERE entries.id = entry_id AND status <> 'refunded')",
        (claim_id,),
    )


def forget(connection: Connection, before_ms: int) -> int:
    """Delete the claims from before then, but those that run; returns how many."""
    sql = (
        "DELETE FROM claims WHERE at_ms < ? AND NOT EXISTS"
        " (SELECT 1 FROM entries WHERE entries.id = entry_id AND status = 'open')"
    )
    return connection.execute(sql, (before_ms,)).rowcount


def any_before(connection: Connection, before_ms: int) -> bool:
    """Whether `forget` would find something to look at."""
    sql = "SELECT EXISTS (SELECT 1 FROM claims WHERE at_ms < ?)"
    return bool(connection.execute(sql, (before_ms,)).fetchone()[0])
