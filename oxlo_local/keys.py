"""API keys: made once, shown once, kept as a hash; a revoked one is refused from the next request on.

A key is `oxlo_` + 32 random characters (190 bits) + 6 of checksum. The checksum (CRC-32) proves nothing: it lets a
typo be told from a wrong key without a database, and a scanner recognise a leaked one in public text. The file holds
SHA-256 of the key: slow hashes exist to protect guessable passwords, and these bits cannot be guessed, so a slow one
would only tax every request.

`verify` looks the hash up in the file each time, by its index. A cache would have to learn of a `keys revoke` in
another process, and SQLite's own signal for that (PRAGMA data_version) changes with every commit of our own writer,
which commits with every request: the check would cost what the look-up costs (about 0.1 ms, nearly all of it the hop
to the reader's thread and back).
"""

import hashlib
import hmac
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from oxlo_local.db import Connection, Database
from oxlo_local.errors import BadRequest, NotFound, Unauthorized

Role = Literal["user", "admin"]

PREFIX: Final = "oxlo_"
LOCAL: Final = "local"  # the key id in rows of a keyless loopback server
RANDOM_CHARACTERS: Final = 32
CHECKSUM_CHARACTERS: Final = 6  # 62 ** 6 > 2 ** 32
LONGEST_NAME: Final = 64
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Key:
    """What is known of a key; the secret itself is not. Times are seconds since 1970."""

    id: str  # public: `k_` + 10 characters
    name: str
    role: Role
    hint: str  # the secret's first characters, to recognise it by
    created: float
    revoked: float | None

    @property
    def admin(self) -> bool:
        """Whether it may see everything and manage keys."""
        return self.role == "admin"


# -- the secret, without a database -----------------------------------------------------------------------------------


def mint() -> str:
    """A new secret."""
    body = "".join(secrets.choice(_BASE62) for _ in range(RANDOM_CHARACTERS))
    return PREFIX + body + _checksum(body)


def well_formed(secret: str) -> bool:
    """Whether this can be a key at all: prefix, length, alphabet and checksum. Needs no database."""
    if not secret.startswith(PREFIX) or len(secret) != len(PREFIX) + RANDOM_CHARACTERS + CHECKSUM_CHARACTERS:
        return False
    body, checksum = secret[len(PREFIX) : -CHECKSUM_CHARACTERS], secret[-CHECKSUM_CHARACTERS:]
    return all(character in _BASE62 for character in body) and _checksum(body) == checksum


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


# -- the table --------------------------------------------------------------------------------------------------------

_COLUMNS: Final = "id, name, role, hint, created_ms, revoked_ms"


def _key(row: tuple[str, str, Role, str, int, int | None]) -> Key:
    identity, name, role, hint, created_ms, revoked_ms = row
    revoked = None if revoked_ms is None else revoked_ms / 1000
    return Key(identity, name, role, hint, created_ms / 1000, revoked)


class Keys:
    """The keys of one ledger file."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.time) -> None:
        self._db = db
        self._clock = clock
        self._any_made = False

    async def verify(self, secret: str) -> Key:
        """The key that this secret belongs to. Raises Unauthorized: malformed, unknown or revoked."""
        if not well_formed(secret):
            raise Unauthorized(
                "this is no oxlo key, or it has a typo: a key is oxlo_ and 38 letters and digits, as "
                "`oxlo keys create NAME` printed it"
            )
        digest = _hash(secret)

        def look_up(connection: Connection) -> tuple[bytes, Key] | None:
            sql = f"SELECT hash, {_COLUMNS} FROM keys WHERE hash = ?"
            row = connection.execute(sql, (digest,)).fetchone()
            return None if row is None else (row[0], _key(row[1:]))

        found = await self._db.read(look_up)
        if found is None or not hmac.compare_digest(found[0], digest):
            raise Unauthorized("unknown key: make one with `oxlo keys create NAME`")
        key = found[1]
        if key.revoked is not None:
            raise Unauthorized(f"key {key.id} has been revoked: make another with `oxlo keys create NAME`")
        return key

    async def any_made(self) -> bool:
        """Whether a key has ever been made, revoked or not: from then on keys are in force."""
        if not self._any_made:  # only "yes" may be remembered: another process may make the first key
            exists = "SELECT EXISTS (SELECT 1 FROM keys)"
            self._any_made = await self._db.read(
                lambda connection: bool(connection.execute(exists).fetchone()[0])
            )
        return self._any_made

    async def create(self, name: str, role: Role = "user") -> tuple[Key, str]:
        """A new key and its secret, which is nowhere else. Raises BadRequest: a bad name, or one in use."""
        key, secret = self._draft(name, role)

        def insert(connection: Connection) -> None:
            in_use = "SELECT id FROM keys WHERE name = ? AND revoked_ms IS NULL"
            row = connection.execute(in_use, (name,)).fetchone()
            if row is not None:
                raise BadRequest(
                    f"key {row[0]} has the name {name!r} already: take another, or revoke it first"
                )
            _insert(connection, key, secret)

        await self._db.write(insert)
        return key, secret

    async def create_first(self, name: str) -> tuple[Key, str] | None:
        """An admin key if no key has ever been made, else None; of two servers that start at once, one makes it."""
        key, secret = self._draft(name, "admin")

        def insert(connection: Connection) -> bool:
            if connection.execute("SELECT 1 FROM keys LIMIT 1").fetchone():
                return False
            _insert(connection, key, secret)
            return True

        return (key, secret) if await self._db.write(insert) else None

    def _draft(self, name: str, role: Role) -> tuple[Key, str]:
        if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise BadRequest(f"a key's name is 1 to {LONGEST_NAME} printable characters", param="name")
        if name.startswith("k_") or name == LOCAL:
            raise BadRequest(f"{name!r} reads like the id of a key: take another name", param="name")
        secret = mint()
        identity = "k_" + "".join(secrets.choice(_BASE62) for _ in range(10))
        created_ms = int(self._clock() * 1000)
        return Key(identity, name, role, secret[: len(PREFIX) + 4], created_ms / 1000, None), secret

    async def list(self) -> list[Key]:
        """All keys ever made, oldest first."""
        sql = f"SELECT {_COLUMNS} FROM keys ORDER BY created_ms, id"
        return await self._db.read(lambda connection: [_key(row) for row in connection.execute(sql)])

    async def find(self, id_or_name: str) -> Key:
        """The key with this id, else the living one of this name, else its newest revoked one. Raises NotFound."""
        return await self._db.read(lambda connection: _find(connection, id_or_name))

    async def revoke(self, id_or_name: str) -> Key:
        """Refuse the key from now on, in every process. Raises NotFound, BadRequest (revoked already)."""
        revoked_ms = int(self._clock() * 1000)

        def update(connection: Connection) -> Key:
            key = _find(connection, id_or_name)
            if key.revoked is not None:
                raise BadRequest(f"key {key.id} ({key.name}) has been revoked already")
            connection.execute("UPDATE keys SET revoked_ms = ? WHERE id = ?", (revoked_ms, key.id))
            return _find(connection, key.id)

        return await self._db.write(update)


def _insert(connection: Connection, key: Key, secret: str) -> None:
    connection.execute(
        "INSERT INTO keys (id, name, role, hash, hint, created_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (key.id, key.name, key.role, _hash(secret), key.hint, round(key.created * 1000)),
    )


def _find(connection: Connection, id_or_name: str) -> Key:
    sql = (
        f"SELECT {_COLUMNS} FROM keys WHERE id = ?1 OR name = ?1"
        " ORDER BY id = ?1 DESC, revoked_ms IS NULL DESC, revoked_ms DESC LIMIT 1"
    )
    row = connection.execute(sql, (id_or_name,)).fetchone()
    if row is None:
        raise NotFound(f"no key with the id or name {id_or_name!r}: `oxlo keys list` shows them")
    return _key(row)
