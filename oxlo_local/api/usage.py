"""GET /v1/usage: what has been asked, delivered and spent with a key, and what is left of its limits."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from oxlo_local import statement
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.errors import AdminRequired, BadRequest, Standing
from oxlo_local.inference import Caller
from oxlo_local.keys import LOCAL
from oxlo_local.ledger import usd
from oxlo_local.statement import By, Line, Period, Plain

_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400}
_LAST: Final = 99_999_999_999  # seconds since 1970: the year 5138


@dataclass(frozen=True)
class Question:
    """What a query asks for; `key` is the id or name of a key, None = what the caller may see."""

    by: By = "model"
    period: Period = statement.ALWAYS
    key: str | None = None


async def show(state: State, request: Request) -> Response:
    """Requests, tokens and money of the key that asks, and what is left of its limits; for an admin, of all keys."""
    caller = exchange_of(request).caller
    assert caller is not None
    asked = question(request.query_params.multi_items(), time.time())
    key_id = await _whose(state, caller, asked.key)
    lines = await statement.summary(state.db, asked.by, asked.period, key_id)
    names = {key.id: key.name for key in await state.keys.list()} if asked.by == "key" else {}
    body = {
        "object": "usage",
        "key": key_id,
        "by": asked.by,
        "since": _iso(asked.period.since),
        "until": _iso(asked.period.until),
        "limits": [_limit(one) for one in await _standings(state, key_id)],
        "total": _sums(statement.total(lines)),
        "data": [_line(line, asked.by, names) for line in lines],
    }
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _whose(state: State, caller: Caller, wanted: str | None) -> str | None:
    """The id of the key whose rows are summed; None = all. Raises AdminRequired, NotFound."""
    if caller.role != "admin":
        if wanted not in (None, caller.key_id):
            raise AdminRequired("A key sees its own usage; that of others needs an admin's key.", param="key")
        return caller.key_id
    return wanted if wanted in (None, LOCAL) else (await state.keys.find(wanted)).id


async def _standings(state: State, key_id: str | None) -> Sequence[Standing]:
    if key_id is None or key_id == LOCAL or (await state.keys.find(key_id)).revoked is not None:
        return ()
    return await state.ledger.standings(key_id)


def question(items: Sequence[tuple[str, str]], now: float) -> Question:
    """What the query asks. Raises BadRequest, which names the parameter."""
    query = dict(items)
    for name, _ in items:
        if name not in ("by", "since", "until", "key") or len(query) < len(items):
            raise BadRequest("The query takes by, since, until and key, each once.", param=name)
    by = next((one for one in get_args(By) if one == query.get("by", "model")), None)
    if by is None:
        raise BadRequest(f"by is one of {', '.join(get_args(By))}.", param="by")
    since, until = (_moment(query.get(name), name, now) for name in ("since", "until"))
    if since is not None and until is not None and since >= until:
        raise BadRequest("since has to be before until.", param="since")
    return Question(by, Period(since, until), query.get("key"))


def _moment(text: str | None, name: str, now: float) -> float | None:
    """Seconds since 1970 of Unix seconds, an age such as 7d, or an ISO date or time, without a zone in UTC.

    What lies before 1970 or after any calendar is moved there: no row does, and not every such moment has a date.
    """
    return None if text is None else min(max(0.0, _seconds(text, name, now)), _LAST)


def _seconds(text: str, name: str, now: float) -> float:
    age = re.fullmatch(r"([0-9]{1,6})([mhd])", text, re.ASCII)
    if age is not None:
        return now - int(age[1]) * _SECONDS[age[2]]
    if re.fullmatch(r"[0-9]{1,11}", text, re.ASCII):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest(
            f"{name} is a date or time such as 2026-11-01 or 2026-11-01T12:00Z, Unix seconds, or an age such as 7d, "
            "12h or 30m.",
            param=name,
        ) from None


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else statement.iso(round(seconds * 1000))


def _sums(line: Line) -> dict[str, Plain]:
    return {name: value for name, value in line.plain().items() if name != "group"}


def _line(line: Line, by: By, names: dict[str, str]) -> dict[str, Plain]:
    """A group's sums under what it is the group of: `{"model": "oxlo-demo", ...}`."""
    told: dict[str, Plain] = {by: line.group}
    if by == "key":
        told["name"] = names.get(line.group)
    return told | _sums(line)


def _limit(one: Standing) -> dict[str, Plain]:
    """A limit in requests, or in exact dollars; `reset_seconds` is null where no time makes it whole again."""
    if one.kind == "budget":
        amounts: dict[str, Plain] = {"limit_usd": usd(one.limit), "remaining_usd": usd(one.remaining)}
    else:
        amounts = {"limit": one.limit, "remaining": one.remaining}
    return {"kind": one.kind, **amounts, "reset_seconds": one.reset}
