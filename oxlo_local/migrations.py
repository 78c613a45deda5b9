"""The steps that bring a ledger file to today's schema: append only, never edited.

A step that has been released is history: some ledger on some disk was made by it. So a change to the schema is a new
`Step` at the end of `STEPS`, and a test holds the hash of every old one. `db.py` runs the missing steps, each in a
transaction with the row that records it. Times are integer milliseconds since 1970 (UTC), money is integer
micro-dollars; the CHECKs refuse a float where money is meant.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One numbered change of the schema."""

    number: int
    name: str
    statements: tuple[str, ...]

    def sha256(self) -> str:
        """What the test remembers of this step."""
        return hashlib.sha256("\n;\n".join((self.name, *self.statements)).encode()).hexdigest()


KEYS = Step(
    1,
    "keys",
    (
        """
        CREATE TABLE keys (
            id         TEXT PRIMARY KEY,
            name       TEXT NOT NULL,
            role       TEXT NOT NULL CHECK (role IN ('user', 'admin')),
            hash       BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
            hint       TEXT NOT NULL,
            created_ms INTEGER NOT NULL,
            revoked_ms INTEGER
        ) WITHOUT ROWID
        """,
        # A name may be used again once its key is revoked.
        "CREATE UNIQUE INDEX keys_live_name ON keys (name) WHERE revoked_ms IS NULL",
        # Once a key has been made, keys stay in force: a forgotten row would open a keyless server again.
        """
        CREATE TRIGGER keys_are_kept BEFORE DELETE ON keys
        BEGIN SELECT RAISE(ABORT, 'a key is revoked, never deleted'); END
        """,
        """
        CREATE TRIGGER keys_stay_revoked BEFORE UPDATE ON keys WHEN OLD.revoked_ms IS NOT NULL
        BEGIN SELECT RAISE(ABORT, 'a revoked key is never edited'); END
        """,
    ),
)

ENTRIES = Step(
    2,
    "entries",
    (
        # Ids begin with their time, so rows are appended and read in order of id: no rowid is needed beside it.
        """
        CREATE TABLE entries (
            id                TEXT PRIMARY KEY,
            opened_ms         INTEGER NOT NULL,
            closed_ms         INTEGER,
            instance          TEXT NOT NULL,
            key_id            TEXT NOT NULL,
            endpoint          TEXT NOT NULL,
            model             TEXT NOT NULL,
            status            TEXT NOT NULL CHECK (status IN ('open', 'settled', 'refunded')),
            reason            TEXT,
            error_code        TEXT,
            units             INTEGER NOT NULL CHECK (typeof(units) = 'integer' AND units >= 0),
            unit_price_micros INTEGER NOT NULL
                              CHECK (typeof(unit_price_micros) = 'integer' AND unit_price_micros >= 0),
            price_micros      INTEGER NOT NULL CHECK (typeof(price_micros) = 'integer'),
            price_version     TEXT NOT NULL,
            prompt_tokens     INTEGER,
            cached_tokens     INTEGER,
            completion_tokens INTEGER,
            reasoning_tokens  INTEGER,
            audio_seconds     REAL,
            images            INTEGER,
            steps             INTEGER,
            queue_ms          REAL,
            first_output_ms   REAL,
            total_ms          REAL,
            request_id        TEXT NOT NULL,
            job_id            TEXT,
            chain_id          TEXT,
            metadata          TEXT,
            address_class     TEXT NOT NULL CHECK (address_class IN ('loopback', 'private', 'public')),
            CHECK (price_micros = units * unit_price_micros),
            CHECK ((status = 'open') = (closed_ms IS NULL)),
            CHECK ((status = 'refunded') = (reason IS NOT NULL))
        ) WITHOUT ROWID
        """,
        "CREATE INDEX entries_open ON entries (instance) WHERE status = 'open'",
        """
        CREATE TRIGGER entries_closed BEFORE UPDATE ON entries WHEN OLD.status <> 'open'
        BEGIN SELECT RAISE(ABORT, 'a closed entry is never edited: a correction is a new row'); END
        """,
        """
        CREATE TRIGGER entries_fixed BEFORE UPDATE OF id, opened_ms, instance, key_id, endpoint, model,
            unit_price_micros, price_version, request_id, job_id, chain_id, metadata, address_class ON entries
        BEGIN SELECT RAISE(ABORT, 'what an entry was reserved for is never edited'); END
        """,
        """
        CREATE TRIGGER entries_are_kept BEFORE DELETE ON entries
        BEGIN SELECT RAISE(ABORT, 'an entry is never deleted'); END
        """,
    ),
)

STEPS: tuple[Step, ...] = (KEYS, ENTRIES)
