"""API keys: made once, shown once, kept as a hash, with limits; a revoked one is refused from the next request on.

A key is `oxlo_` + 32 random characters (190 bits) + 6 of checksum. The checksum (CRC-32) proves nothing: it lets a
typo be told from a wrong key without a database, and a scanner recognise a leaked one in public text. The file holds
a fast keyed hash of the key (pepper.py says why).

`verify` looks the hash up in the file each time, by its index. A cache would have to learn of a `keys revoke` in
another process, and SQLite's own signal for that (PRAGMA data_version) changes with every commit of our own writer,
which commits with every request: the check would cost what the look-up costs (about 0.1 ms, nearly all of it the hop
to the reader's thread and back).

A rotation gives a key a new secret; the old one stays valid for a time of grace, and older ones no longer than it.
Whatever is done to a key is written down with it (audit.py).
"""

import hmac
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from msgspec import Struct

from oxlo_local import audit, pepper
from oxlo_local.allowance import Account
from oxlo_local.db import Connection, Database
from oxlo_local.errors import BadRequest, NotFound, OxloError, Unauthorized
from oxlo_local.limits import UNLIMITED, Limits, from_json
from oxlo_local.pepper import Pepper

Role = Literal["user", "admin"]

PREFIX: Final = "oxlo_"
LOCAL: Final = "local"  # the key id in rows of a keyless loopback server
RANDOM_CHARACTERS: Final = 32
CHECKSUM_CHARACTERS: Final = 6  # 62 ** 6 > 2 ** 32
LONGEST_NAME: Final = 64
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class KeyMade(Struct, frozen=True):
    """The detail of the event `key_created`."""

    name: str
    role: Role
    limits: Limits


class LimitsChanged(Struct, frozen=True):
    """The detail of the event `key_limited`."""

    before: Limits
    after: Limits


class Rotated(Struct, frozen=True):
    """The detail of the event `key_rotated`: how the secrets begin, and until when the old one is valid."""

    before: str
    after: str
    until_ms: int


@dataclass(frozen=True)
class Key:
    """What is known of a key; the secret itself is not. Times are seconds since 1970."""

    id: str  # public: `k_` + 10 characters
    name: str
    role: Role
    hint: str  # the secret's first characters, to recognise it by
    created: float
    revoked: float | None
    limits: Limits = UNLIMITED

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


# -- the table --------------------------------------------------------------------------------------------------------

_COLUMNS: Final = "id, name, role, hint, created_ms, revoked_ms, limits"
_BY_HASH: Final = (
    f"SELECT hash, {_COLUMNS} FROM keys WHERE hash = ?1 UNION ALL"
    f" SELECT old_secrets.hash, {_COLUMNS} FROM old_secrets JOIN keys ON keys.id = old_secrets.key_id"
    " WHERE old_secrets.hash = ?1 AND until_ms > ?2"
)
NAMED: Final = 5  # keys in an error's words
LONGEST_GRACE_MS: Final = 90 * 86_400_000


def _key(row: tuple[str, str, Role, str, int, int | None, str]) -> Key:
    identity, name, role, hint, created_ms, revoked_ms, limits = row
    revoked = None if revoked_ms is None else revoked_ms / 1000
    return Key(identity, name, role, hint, created_ms / 1000, revoked, from_json(limits))


class Keys:
    """The keys of one ledger file. `who` changes them: `key ID` of an admin, else the user who runs this process."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.time, who: str | None = None) -> None:
        self._db = db
        self._clock = clock
        self._who = who if who is not None else audit.os_user()
        self._any_made = False
        self._pepper_path = pepper.path_beside(db.path)
        self._pepper: Pepper | None = None

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def verify(self, secret: str) -> Key:
        """The key that this secret belongs to. Raises Unauthorized: malformed, unknown, revoked, expired, replaced."""
        if not well_formed(secret):
            raise Unauthorized(
                "this is no oxlo key, or it has a typo: a key is oxlo_ and 38 letters and digits, as "
                "`oxlo keys create NAME` printed it"
            )
        now_ms = self._now_ms()

        def look_up(connection: Connection) -> Key | None:
            for one in self._peppers():
                digest = one.hash(secret)
                row = connection.execute(_BY_HASH, (digest, now_ms)).fetchone()
                if row is not None and hmac.compare_digest(row[0], digest):
                    return _key(row[1:])
            return None

        key = await self._db.read(look_up)
        if key is None:
            raise Unauthorized(
                "unknown key: make one with `oxlo keys create NAME`; after a rotation use the newer secret"
            )
        if key.revoked is not None:
            raise Unauthorized(f"key {key.id} has been revoked: make another with `oxlo keys create NAME`")
        if key.limits.expires_ms is not None and now_ms >= key.limits.expires_ms:
            raise Unauthorized(
                f"key {key.id} has expired: make another with `oxlo keys create NAME`, or have an admin extend it "
                "with `oxlo keys limit KEY --expires 90d`"
            )
        return key

    def _peppers(self) -> Iterator[Pepper]:
        """The pepper as it is known here, then as the file has it if another process has made it, or a new one."""
        known = self._pepper
        if known is not None:
            yield known
        found = pepper.load(self._pepper_path)
        if found is not None and found != known:
            self._pepper = found
            yield found

    async def check(self) -> None:
        """Raises OxloError, with what to do, if there are keys that no secret can be checked against any more."""
        self._pepper = pepper.load(self._pepper_path)
        await self._db.read(self._refuse_lost)

    def _refuse_lost(self, connection: Connection) -> None:
        found = pepper.load(self._pepper_path)
        sql = "SELECT name FROM keys WHERE revoked_ms IS NULL AND pepper <> ? ORDER BY name"
        lost = [row[0] for row in connection.execute(sql, (found.name if found else "",))]
        if not lost:
            return
        what = "is missing" if found is None else "is not the file that they were made with"
        names = ", ".join(lost[:NAMED]) + (f" and {len(lost) - NAMED} more" if len(lost) > NAMED else "")
        raise OxloError(
            f"these keys cannot be checked: {names}. {self._pepper_path} {what}. Put it back from your backup; if it "
            "is lost, give each of them a new secret with `oxlo keys rotate KEY --grace 0s`, or revoke it"
        )

    def _pepper_to_hash_with(self) -> Pepper:
        self._pepper = pepper.make(self._pepper_path)
        return self._pepper

    async def any_made(self) -> bool:
        """Whether a key has ever been made, revoked or not: from then on keys are in force."""
        if not self._any_made:  # only "yes" may be remembered: another process may make the first key
            exists = "SELECT EXISTS (SELECT 1 FROM keys)"
            self._any_made = await self._db.read(
                lambda connection: bool(connection.execute(exists).fetchone()[0])
            )
        return self._any_made

    async def create(self, name: str, role: Role = "user", limits: Limits = UNLIMITED) -> tuple[Key, str]:
        """A new key and its secret, which is nowhere else.

        Raises BadRequest (a bad name, or one in use), OxloError (the pepper of the other keys is lost).
        """
        key, secret = self._draft(name, role, limits)

        def insert(connection: Connection) -> None:
            in_use = "SELECT id FROM keys WHERE name = ? AND revoked_ms IS NULL"
            row = connection.execute(in_use, (name,)).fetchone()
            if row is not None:
                raise BadRequest(
                    f"key {row[0]} has the name {name!r} already: take another, or revoke it first"
                )
            self._insert(connection, key, secret)

        await self._db.write(insert)
        return key, secret

    async def create_first(self, name: str) -> tuple[Key, str] | None:
        """An admin key if no key has ever been made, else None; of two servers that start at once, one makes it."""
        key, secret = self._draft(name, "admin", UNLIMITED)

        def insert(connection: Connection) -> bool:
            if connection.execute("SELECT 1 FROM keys LIMIT 1").fetchone():
                return False
            self._insert(connection, key, secret)
            return True

        return (key, secret) if await self._db.write(insert) else None

    def _draft(self, name: str, role: Role, limits: Limits) -> tuple[Key, str]:
        if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise BadRequest(f"a key's name is 1 to {LONGEST_NAME} printable characters", param="name")
        if name.startswith("k_") or name == LOCAL:
            raise BadRequest(f"{name!r} reads like the id of a key: take another name", param="name")
        secret = mint()
        identity = "k_" + "".join(secrets.choice(_BASE62) for _ in range(10))
        return Key(identity, name, role, _hint(secret), self._now_ms() / 1000, None, limits), secret

    def _insert(self, connection: Connection, key: Key, secret: str) -> None:
        self._refuse_lost(connection)
        created_ms, limits, with_ = (
            round(key.created * 1000),
            key.limits.to_json(),
            self._pepper_to_hash_with(),
        )
        connection.execute(
            "INSERT INTO keys (id, name, role, hash, pepper, hint, created_ms, limits) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key.id, key.name, key.role, with_.hash(secret), with_.name, key.hint, created_ms, limits),
        )
        _keep_prices(connection, created_ms, key.limits)
        made = KeyMade(key.name, key.role, key.limits)
        audit.write(connection, created_ms, self._who, "key_created", key_id=key.id, detail=made)

    async def list(self) -> list[Key]:
        """All keys ever made, oldest first."""
        sql = f"SELECT {_COLUMNS} FROM keys ORDER BY created_ms, id"
        return await self._db.read(lambda connection: [_key(row) for row in connection.execute(sql)])

    async def find(self, id_or_name: str) -> Key:
        """The key with this id, else the living one of this name, else its newest revoked one. Raises NotFound."""
        return await self._db.read(lambda connection: _find(connection, id_or_name))

    async def revoke(self, id_or_name: str) -> Key:
        """Refuse the key from now on, in every process. Raises NotFound, BadRequest (revoked already)."""
        now_ms = self._now_ms()

        def update(connection: Connection) -> Key:
            key = _find_valid(connection, id_or_name)
            connection.execute("UPDATE keys SET revoked_ms = ? WHERE id = ?", (now_ms, key.id))
            audit.write(connection, now_ms, self._who, "key_revoked", key_id=key.id)
            return _find(connection, key.id)

        return await self._db.write(update)

    async def limit(self, id_or_name: str, change: Callable[[Limits], Limits]) -> Key:
        """Put `change` of its limits into force, in every process, for its next request.

        Raises NotFound, BadRequest (revoked), and what `change` raises.
        """
        now_ms = self._now_ms()

        def update(connection: Connection) -> Key:
            key = _find_valid(connection, id_or_name)
            limits = change(key.limits)
            connection.execute("UPDATE keys SET limits = ? WHERE id = ?", (limits.to_json(), key.id))
            _keep_prices(connection, now_ms, limits)
            changed = LimitsChanged(key.limits, limits)
            audit.write(connection, now_ms, self._who, "key_limited", key_id=key.id, detail=changed)
            # Sums of a window that nobody has needed yet are made here, not in the next request.
            Account.of(connection, key.id, now_ms, writable=True).standings()
            return _find(connection, key.id)

        return await self._db.write(update)

    async def rotate(self, id_or_name: str, grace_ms: int) -> tuple[Key, str]:
        """Give the key a new secret, which is nowhere else; none of those that it had stays valid beyond `grace_ms`.

        Raises NotFound, BadRequest (revoked, a grace of over 90 days, or one for a secret whose pepper is lost).
        """
        if not 0 <= grace_ms <= LONGEST_GRACE_MS:
            raise BadRequest("an old secret may stay valid for at most 90d")
        secret, now_ms = mint(), self._now_ms()

        def update(connection: Connection) -> Key:
            key, found = _find_valid(connection, id_or_name), pepper.load(self._pepper_path)
            (made_with,) = connection.execute("SELECT pepper FROM keys WHERE id = ?", (key.id,)).fetchone()
            if grace_ms and made_with != (found.name if found else ""):
                raise BadRequest(
                    f"the old secret of key {key.id} ({key.name}) cannot be checked any more, because "
                    f"{self._pepper_path} is not what it was: put it back, or rotate the key with --grace 0s"
                )
            with_ = self._pepper_to_hash_with()
            # Whoever ends a secret that leaked means every older one too, whatever grace those were given.
            shorten = "UPDATE old_secrets SET until_ms = min(until_ms, ?) WHERE key_id = ?"
            connection.execute(shorten, (now_ms + grace_ms, key.id))
            if grace_ms:
                keep = "INSERT INTO old_secrets SELECT hash, id, ? FROM keys WHERE id = ?"
                connection.execute(keep, (now_ms + grace_ms, key.id))
            connection.execute(
                "UPDATE keys SET hash = ?, pepper = ?, hint = ? WHERE id = ?",
                (with_.hash(secret), with_.name, _hint(secret), key.id),
            )
            rotated = Rotated(key.hint, _hint(secret), now_ms + grace_ms)
            audit.write(connection, now_ms, self._who, "key_rotated", key_id=key.id, detail=rotated)
            return _find(connection, key.id)

        return await self._db.write(update), secret

    async def credit(
        self, id_or_name: str, amount_micros: int, why: str, entry_id: str | None = None
    ) -> tuple[Key, audit.Event]:
        """Add to what the key may spend in the current window of its budget; below zero takes a credit back.

        Raises NotFound (also for a row that is none of the key's), BadRequest.
        """
        if not amount_micros:
            raise BadRequest("a credit of nothing changes nothing")
        if not why.strip():
            raise BadRequest("a credit needs its reason: --why")
        now_ms = self._now_ms()

        def insert(connection: Connection) -> tuple[Key, audit.Event]:
            key = _find_valid(connection, id_or_name)
            if entry_id is not None:
                row = connection.execute("SELECT key_id FROM entries WHERE id = ?", (entry_id,)).fetchone()
                if row is None or row[0] != key.id:
                    raise NotFound(f"key {key.id} has no entry {entry_id!r}")
            return key, audit.write(
                connection,
                now_ms,
                self._who,
                "credited",
                key_id=key.id,
                entry_id=entry_id,
                amount_micros=amount_micros,
                why=why,
            )

        return await self._db.write(insert)


def _hint(secret: str) -> str:
    return secret[: len(PREFIX) + 4]


def _keep_prices(connection: Connection, at_ms: int, limits: Limits) -> None:
    if limits.prices:
        audit.keep_prices(connection, at_ms, limits.prices)


def _find_valid(connection: Connection, id_or_name: str) -> Key:
    key = _find(connection, id_or_name)
    if key.revoked is not None:
        raise BadRequest(f"key {key.id} ({key.name}) has been revoked already")
    return key


def _find(connection: Connection, id_or_name: str) -> Key:
    sql = (
        f"SELECT {_COLUMNS} FROM keys WHERE id = ?1 OR name = ?1"
        " ORDER BY id = ?1 DESC, revoked_ms IS NULL DESC, revoked_ms DESC LIMIT 1"
    )
    row = connection.execute(sql, (id_or_name,)).fetchone()
    if row is None:
        raise NotFound(f"no key with the id or name {id_or_name!r}: `oxlo keys list` shows them")
    return _key(row)
