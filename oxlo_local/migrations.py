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

_CLOSED = """
        CREATE TRIGGER entries_closed BEFORE UPDATE ON entries WHEN OLD.status <> 'open'
        BEGIN SELECT RAISE(ABORT, 'a closed entry is never edited: a correction is a new row'); END
        """

LIMITS = Step(
    3,
    "limits",
    (
        # What a key may do, as JSON: limits.py knows its form.
        "ALTER TABLE keys ADD COLUMN limits TEXT NOT NULL DEFAULT '{}'",
        # Secrets that a rotation has replaced, valid until their time.
        """
        CREATE TABLE old_secrets (
            hash     BLOB PRIMARY KEY CHECK (length(hash) = 32),
            key_id   TEXT NOT NULL,
            until_ms INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        # Rows are numbered without a gap in the order of their writing, so that a missing one is seen.
        "DROP TRIGGER entries_closed",
        "ALTER TABLE entries ADD COLUMN number INTEGER",
        "CREATE TABLE numbered (id TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID",
        "INSERT INTO numbered SELECT id, row_number() OVER (ORDER BY id) FROM entries",
        "UPDATE entries SET number = (SELECT number FROM numbered WHERE numbered.id = entries.id)",
        "DROP TABLE numbered",
        _CLOSED,
        """
        CREATE TRIGGER entries_numbered BEFORE UPDATE OF number ON entries
        BEGIN SELECT RAISE(ABORT, 'what an entry was reserved for is never edited'); END
        """,
        "CREATE INDEX entries_by_key ON entries (key_id, opened_ms)",
        "CREATE INDEX entries_open_by_key ON entries (key_id) WHERE status = 'open'",
        # Running sums of a key's rows, one row a window that a limit of it is counted in; key '' = all keys, for ever.
        # The current windows are those that end last, so they come last among the rows of their key.
        """
        CREATE TABLE sums (
            key_id         TEXT NOT NULL,
            ends_ms        INTEGER NOT NULL,
            starts_ms      INTEGER NOT NULL,
            opened         INTEGER NOT NULL,
            charged        INTEGER NOT NULL CHECK (charged >= 0 AND charged <= opened),
            spent_micros   INTEGER NOT NULL CHECK (typeof(spent_micros) = 'integer' AND spent_micros >= 0),
            credits_micros INTEGER NOT NULL CHECK (typeof(credits_micros) = 'integer'),
            PRIMARY KEY (key_id, ends_ms, starts_ms)
        ) WITHOUT ROWID
        """,
        """
        INSERT INTO sums SELECT '', 4611686018427387904, 0, count(*), ifnull(sum(status <> 'refunded'), 0),
            ifnull(sum(CASE WHEN status <> 'refunded' THEN price_micros ELSE 0 END), 0), 0 FROM entries
        """,
        """
        CREATE TRIGGER entries_summed AFTER INSERT ON entries
        BEGIN UPDATE sums SET opened = opened + 1, charged = charged + (NEW.status <> 'refunded'),
            spent_micros = spent_micros + CASE WHEN NEW.status <> 'refunded' THEN NEW.price_micros ELSE 0 END
            WHERE key_id IN ('', NEW.key_id) AND ends_ms > NEW.opened_ms AND starts_ms <= NEW.opened_ms; END
        """,
        """
        CREATE TRIGGER entries_summed_again AFTER UPDATE OF status, price_micros ON entries
        WHEN NEW.status = 'refunded' OR NEW.price_micros <> OLD.price_micros
        BEGIN UPDATE sums SET charged = charged - (NEW.status = 'refunded'), spent_micros = spent_micros
            - OLD.price_micros + CASE WHEN NEW.status <> 'refunded' THEN NEW.price_micros ELSE 0 END
            WHERE key_id IN ('', NEW.key_id) AND ends_ms > NEW.opened_ms AND starts_ms <= NEW.opened_ms; END
        """,
        # Every price list that a row was charged by, under the name that the rows carry.
        """
        CREATE TABLE price_lists (
            version TEXT PRIMARY KEY,
            at_ms   INTEGER NOT NULL,
            prices  TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        # Who changed what: keys, their limits, prices, credits. A credit is its event.
        """
        CREATE TABLE events (
            id            TEXT PRIMARY KEY,
            at_ms         INTEGER NOT NULL,
            who           TEXT NOT NULL,
            action        TEXT NOT NULL,
            key_id        TEXT,
            entry_id      TEXT,
            amount_micros INTEGER CHECK (typeof(amount_micros) IN ('integer', 'null')),
            why           TEXT,
            detail        TEXT,
            CHECK ((action = 'credited') = (amount_micros IS NOT NULL)),
            CHECK (action <> 'credited' OR (key_id IS NOT NULL AND why IS NOT NULL))
        ) WITHOUT ROWID
        """,
        "CREATE INDEX events_credits ON events (key_id, at_ms) WHERE action = 'credited'",
        """
        CREATE TRIGGER events_summed AFTER INSERT ON events WHEN NEW.action = 'credited'
        BEGIN UPDATE sums SET credits_micros = credits_micros + NEW.amount_micros
            WHERE key_id IN ('', NEW.key_id) AND ends_ms > NEW.at_ms AND starts_ms <= NEW.at_ms; END
        """,
        *(
            f"""
        CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'history is never edited: a correction is a new row'); END
        """
            for table in ("price_lists", "events")
            for verb in ("update", "delete")
        ),
    ),
)

CLAIMS = Step(
    4,
    "claims",
    (
        # Idempotency-Keys. `scope` and `body` are SHA-256; `entry_id` is null until the row is reserved.
        """
        CREATE TABLE claims (
            scope    BLOB PRIMARY KEY CHECK (length(scope) = 32),
            body     BLOB NOT NULL CHECK (length(body) = 32),
            id       TEXT NOT NULL UNIQUE,
            instance TEXT NOT NULL,
            at_ms    INTEGER NOT NULL,
            entry_id TEXT
        ) WITHOUT ROWID
        """,
        "CREATE INDEX claims_by_time ON claims (at_ms)",
    ),
)

PEPPER = Step(
    5,
    "pepper",
    (
        # Hashes of keys become keyed ones, those of revoked keys too: see pepper.py, whose functions these are.
        "ALTER TABLE keys ADD COLUMN pepper TEXT NOT NULL DEFAULT ''",
        "DROP TRIGGER keys_stay_revoked",
        "UPDATE keys SET hash = peppered(hash), pepper = pepper_name()",
        "UPDATE old_secrets SET hash = peppered(hash)",
        """
        CREATE TRIGGER keys_stay_revoked BEFORE UPDATE ON keys WHEN OLD.revoked_ms IS NOT NULL
        BEGIN SELECT RAISE(ABORT, 'a revoked key is never edited'); END
        """,
    ),
)

OPEN_ROWS = Step(
    6,
    "one index of open rows",
    (
        # Two of them were two more pages in each transaction, a quarter of what it writes.
        "DROP INDEX entries_open",
        "DROP INDEX entries_open_by_key",
        "CREATE INDEX entries_open ON entries (key_id, instance) WHERE status = 'open'",
    ),
)

HEARD = Step(
    7,
    "what was heard in a file",
    (
        "ALTER TABLE entries ADD COLUMN language TEXT",
        "ALTER TABLE entries ADD COLUMN real_time_factor REAL",
    ),
)

DRAWN = Step(
    8,
    "how images were drawn",
    (
        "ALTER TABLE entries ADD COLUMN size TEXT",
        "ALTER TABLE entries ADD COLUMN draw_seconds REAL",
    ),
)

STEPS: tuple[Step, ...] = (KEYS, ENTRIES, LIMITS, CLAIMS, PEPPER, OPEN_ROWS, HEARD, DRAWN)
