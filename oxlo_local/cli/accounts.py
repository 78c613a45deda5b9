"""What `oxlo keys` does: open the file, read or change keys, and print.

A running server has the same file open and is not disturbed. Tables show local times; JSON has them in UTC.
"""

import sys
import time
from functools import partial

import msgspec
from rich.table import Table

from oxlo_local import statement
from oxlo_local.allowance import Account
from oxlo_local.cli.sheet import local, print_json, print_pairs, print_table, safe, with_ledger
from oxlo_local.db import Connection, Database
from oxlo_local.errors import Standing
from oxlo_local.keys import Key, Keys, Role
from oxlo_local.limits import UNLIMITED, Given, Limits, changed, shown_expiry, shown_patterns, usd
from oxlo_local.statement import Line, Plain


def create_key(name: str, role: Role, given: Given, as_json: bool) -> None:
    """Make a key; the secret alone goes to stdout."""

    async def run(db: Database) -> tuple[Key, str, bool]:
        keys = Keys(db)
        first = not await keys.any_made()
        return *await keys.create(name, role, changed(UNLIMITED, given, _now_ms())), first

    key, secret, first = with_ledger(run)
    if as_json:
        print_json({**_plain_key(key), "key": secret})
    else:
        print(secret)
        print(f"made {role} key {key.id} ({name}); it is shown only now", file=sys.stderr)
    if first:
        print("from now on every request needs a key, on loopback too", file=sys.stderr)


def list_keys(as_json: bool) -> None:
    """All keys ever made."""
    keys = with_ledger(lambda db: Keys(db).list())
    if as_json:
        print_json([_plain_key(key) for key in keys])
        return
    headings = ("id", "name", "role", "begins with", "created", "limits", "revoked")
    table = Table(*headings, box=None, pad_edge=False)
    for key in keys:
        revoked = "" if key.revoked is None else local(key.revoked)
        limits = "; ".join(f"{name} {text}" for name, text in _limits(key.limits) if name != "time zone")
        created = local(key.created)
        table.add_row(key.id, safe(key.name), key.role, key.hint, created, safe(limits), revoked)
    print_table(table)


def show_key(id_or_name: str, as_json: bool) -> None:
    """One key, its limits and how they stand, and the sums of its rows."""

    async def run(db: Database) -> tuple[Key, Line, tuple[Standing, ...]]:
        key = await Keys(db).find(id_or_name)
        used = statement.total(await statement.summary(db, "key", key_id=key.id))
        return key, used, await db.read(partial(_standings, key))

    key, used, standings = with_ledger(run)
    if as_json:
        usage = {name: value for name, value in used.plain().items() if name != "group"}
        print_json({**_plain_key(key), "usage": usage, "standings": list(map(_plain_standing, standings))})
        return
    print_pairs(
        ("id", key.id),
        ("name", key.name),
        ("role", key.role),
        ("begins with", key.hint),
        ("created", local(key.created)),
        ("revoked", "no" if key.revoked is None else local(key.revoked)),
        *_limits(key.limits),
        *((f"{one.kind} left", _left(one)) for one in standings),
        ("requests", f"{used.requests} ({used.settled} settled, {used.refunded} refunded, {used.open} open)"),
        ("spent", f"{usd(used.spent_micros)} USD"),
    )


def limit_key(id_or_name: str, given: Given, as_json: bool) -> None:
    """Change what a key may do, and print what it may do now."""
    now_ms = _now_ms()
    key = with_ledger(lambda db: Keys(db).limit(id_or_name, lambda limits: changed(limits, given, now_ms)))
    if as_json:
        print_json(_plain_key(key))
        return
    limits = "; ".join(f"{name} {text}" for name, text in _limits(key.limits))
    print(f"key {key.id} ({key.name}): {limits or 'no limits'}")


def rotate_key(id_or_name: str, grace_ms: int, as_json: bool) -> None:
    """Give a key a new secret; the secret alone goes to stdout."""
    until = time.time() + grace_ms / 1000
    key, secret = with_ledger(lambda db: Keys(db).rotate(id_or_name, grace_ms))
    if as_json:
        print_json({**_plain_key(key), "key": secret, "old_until": statement.iso(round(until * 1000))})
        return
    print(secret)
    old = f"the old one is valid until {local(until)}" if grace_ms else "the old one is refused from now on"
    print(f"key {key.id} ({key.name}) has a new secret, shown only now; {old}", file=sys.stderr)


def revoke_key(id_or_name: str, as_json: bool) -> None:
    """Revoke a key, and say if none is left."""

    async def run(db: Database) -> tuple[Key, bool]:
        keys = Keys(db)
        revoked = await keys.revoke(id_or_name)
        return revoked, any(key.revoked is None for key in await keys.list())

    revoked, some_left = with_ledger(run)
    if as_json:
        print_json(_plain_key(revoked))
    else:
        print(f"revoked key {revoked.id} ({revoked.name})")
    if not some_left:
        print("no key is left, and requests still need one: `oxlo keys create NAME`", file=sys.stderr)


# -- words ------------------------------------------------------------------------------------------------------------


def _now_ms() -> int:
    return int(time.time() * 1000)


def _standings(key: Key, connection: Connection) -> tuple[Standing, ...]:
    return Account.of(connection, key.id, _now_ms()).standings()


def _limits(limits: Limits) -> list[tuple[str, str]]:
    """The limits that a key has, for people."""
    budget = limits.budget
    found = (
        ("plan", limits.plan),
        ("models", shown_patterns(limits.models) if limits.models else None),
        ("endpoints", shown_patterns(limits.endpoints) if limits.endpoints else None),
        ("budget", None if budget is None else f"{usd(budget.micros)} USD/{budget.per}"),
        ("rate", None if limits.rate is None else f"{limits.rate}/min"),
        ("daily", None if limits.daily is None else str(limits.daily)),
        ("concurrency", None if limits.concurrency is None else str(limits.concurrency)),
        ("expires", None if limits.expires_ms is None else shown_expiry(limits)),
        ("tier", None if limits.tier == "standard" else limits.tier),
        ("prices", ", ".join(f"{name}={usd(price)}" for name, price in limits.prices.items()) or None),
        ("time zone", None if limits.zone == "UTC" else limits.zone),
    )
    return [(name, text) for name, text in found if text is not None]


def _left(one: Standing) -> str:
    money = one.kind == "budget"
    left, limit = (usd(one.remaining), f"{usd(one.limit)} USD") if money else (one.remaining, one.limit)
    whole = f"; whole again in {one.reset:,.0f} s" if one.reset and one.remaining < one.limit else ""
    return f"{left} of {limit}{whole}"


def _plain_standing(one: Standing) -> dict[str, Plain]:
    if one.kind == "budget":
        return {
            "limit": "budget", "limit_usd": usd(one.limit), "remaining_usd": usd(one.remaining),
            "reset_seconds": one.reset,
        }  # fmt: skip
    return {"limit": one.kind, "requests": one.limit, "remaining": one.remaining, "reset_seconds": one.reset}


def _plain_key(key: Key) -> dict[str, object]:
    revoked = None if key.revoked is None else statement.iso(round(key.revoked * 1000))
    created = statement.iso(round(key.created * 1000))
    known = {"id": key.id, "name": key.name, "role": key.role, "hint": key.hint}
    return {**known, "created": created, "revoked": revoked, "limits": _plain_limits(key.limits)}


def _plain_limits(limits: Limits) -> dict[str, object]:
    """Every limit, null where there is none; money as exact decimal dollars, times in UTC."""
    plain: dict[str, object] = msgspec.to_builtins(msgspec.structs.asdict(limits))
    del plain["expires_ms"]
    budget = limits.budget
    plain["budget"] = None if budget is None else {"usd": usd(budget.micros), "per": budget.per}
    plain["expires"] = None if limits.expires_ms is None else statement.iso(limits.expires_ms)
    plain["prices"] = {name: usd(price) for name, price in limits.prices.items()}
    return plain
