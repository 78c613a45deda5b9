"""A day of mixed traffic to oxlo-demo, and what `oxlo ledger compare` says of it.

Nobody's traffic was recorded for this: the day is drawn with a seed, so it is the same on every machine. Four clients
with keys of their own ask through OpenAI's SDK, a few of them at night and many in the afternoon: questions that people
wrote by hand, some with a page of the README behind them, streamed and not, and texts to continue. Some leave in the
middle of an answer, some send a request twice under one Idempotency-Key, and some are over their limits or ask what
their key is not for. The requests come in the order and at the distances of a day, only faster, to a real `oxlo serve`.
Rows carry the time of the playing.

In the end every row is held against what its client was told, `oxlo ledger verify` has to agree, and the summary and
the comparison are printed. Exit status 1 when something does not hold.

Example:  scripts/demo-day --requests 600 --seconds 120
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Final, Literal, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import msgspec  # noqa: E402  # after the path that leads to this checkout
from openai import APIStatusError, AsyncOpenAI  # noqa: E402

from oxlo_local.launch import LaunchedServer  # noqa: E402
from oxlo_local.limits import PLANS  # noqa: E402
from race.racers import clean_environ  # noqa: E402

MODEL: Final = "oxlo-demo"
DAY: Final = 86_400
HOURS: Final = (2, 1, 1, 1, 1, 2, 4, 7, 12, 15, 16, 14, 10, 13, 15, 15, 14, 11, 8, 7, 6, 5, 4, 3)  # weights
PAGE_WORDS: Final = 250  # at most, behind a question: what the demo's context holds
REPLAYED: Final = "x-oxlo-replayed"

Kind = Literal["chat", "completion"]


class Client(NamedTuple):
    """One key: its share of the day, and the flags of `oxlo keys create`."""

    share: int
    flags: tuple[str, ...] = ()


CLIENTS: Final = {
    "app": Client(12),
    "nightly": Client(4, ("--tier", "batch")),
    "trial": Client(3, ("--daily", "40")),
    "kiosk": Client(1, ("--endpoints", "chat", "--budget", "0.0015usd/day")),
}


@dataclass(frozen=True)
class Errand:
    """One request of the day; `second` is its time. `leaves`: after the first piece. `again`: sent twice."""

    second: float
    client: str
    kind: Kind
    text: str
    max_tokens: int
    streamed: bool
    leaves: bool
    again: bool


@dataclass(frozen=True)
class Told:
    """What a client was told: the ledger's entry, and `answered`, `left` or the code of an error."""

    errand: Errand
    entry: str | None
    outcome: str


class Row(msgspec.Struct, frozen=True):
    """What is looked at of a row of `oxlo ledger export --json`."""

    id: str
    status: str


# -- the day ----------------------------------------------------------------------------------------------------------


def drawn(requests: int, seed: int, questions: Sequence[str], pages: Sequence[str]) -> list[Errand]:
    """The day's requests in the order of their times."""
    random = Random(seed)
    shares = [client.share for client in CLIENTS.values()]
    hours = random.choices(range(24), HOURS, k=requests)
    seconds = sorted(hour * 3600 + random.uniform(0, 3600) for hour in hours)
    errands = []
    for second in seconds:
        client = random.choices(list(CLIENTS), shares)[0]
        kind: Kind = "completion" if random.random() < (0.5 if client == "nightly" else 0.1) else "chat"
        text = random.choice(questions)
        if random.random() < 0.2:
            text = f"{random.choice(pages)}\n\n{text}"
        streamed = kind == "chat" and random.random() < 0.7
        errands.append(
            Errand(
                second=second,
                client=client,
                kind=kind,
                text=text,
                max_tokens=random.choice((16, 64, 200)),
                streamed=streamed,
                leaves=streamed and random.random() < 0.06,
                again=random.random() < 0.04,
            )
        )
    return errands


def questions() -> list[str]:
    """What people wrote by hand to measure the model with."""
    listed = tomllib.loads((ROOT / "scripts" / "demo_text" / "held_out.toml").read_text("utf-8"))
    return [question["ask"] for question in listed["question"] if "ask" in question]


def pages() -> list[str]:
    """Pieces of the README, as somebody would paste them."""
    words = (ROOT / "README.md").read_text("utf-8").split()
    lengths = [PAGE_WORDS // 5, PAGE_WORDS // 2, PAGE_WORDS] * 8
    ends = list(accumulate(lengths))
    return [
        " ".join(words[end - length : end])
        for length, end in zip(lengths, ends, strict=True)
        if end < len(words)
    ]


def busiest_minute(errands: Sequence[Errand]) -> int:
    """Most requests in a minute of the day's own clock."""
    return max(Counter(int(errand.second // 60) for errand in errands).values())


# -- playing it -------------------------------------------------------------------------------------------------------


async def ask(sdk: AsyncOpenAI, errand: Errand, key: str | None) -> Told:
    """Send one request and take its answer, or as much of it as the errand wants."""
    headers = {} if key is None else {"Idempotency-Key": key}
    try:
        if errand.kind == "completion":
            whole = await sdk.completions.with_raw_response.create(
                model=MODEL, prompt=errand.text, max_tokens=errand.max_tokens, extra_headers=headers
            )
            return Told(errand, whole.headers["x-oxlo-entry"], _answered(whole.headers))
        if not errand.streamed:
            turn = await sdk.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": errand.text}], extra_headers=headers
            )
            return Told(errand, turn.headers["x-oxlo-entry"], _answered(turn.headers))
        begun = await sdk.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": errand.text}],
            stream=True,
            extra_headers=headers,
        )
        entry, stream = begun.headers["x-oxlo-entry"], begun.parse()
        async for _ in stream:
            if errand.leaves:
                await stream.close()
                return Told(errand, entry, "left")
        return Told(errand, entry, _answered(begun.headers))
    except APIStatusError as error:
        return Told(errand, error.response.headers.get("x-oxlo-entry"), str(error.code))


def _answered(headers: Mapping[str, str]) -> str:
    return "repeated" if REPLAYED in headers else "answered"


async def play(url: str, keys: Mapping[str, str], errands: Sequence[Errand], seconds: float) -> list[Told]:
    """The whole day in so many seconds; what the clients were told."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    clients = {
        name: AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for name, key in keys.items()
    }

    async def one(number: int, errand: Errand) -> list[Told]:
        await asyncio.sleep(begun + errand.second / DAY * seconds - loop.time())
        sdk, key = clients[errand.client], f"errand-{number}" if errand.again else None
        return [await ask(sdk, errand, key) for _ in range(2 if errand.again else 1)]

    told = await asyncio.gather(*(one(number, errand) for number, errand in enumerate(errands)))
    await asyncio.gather(*(client.close() for client in clients.values()))
    return [each for several in told for each in several]


# -- holding the ledger to it -----------------------------------------------------------------------------------------


def faults(told: Sequence[Told], rows: Mapping[str, str]) -> list[str]:
    """Where the rows (status by id) and what the clients were told disagree. Pure."""
    expected: dict[str, str] = {}
    found = []
    for each in told:
        paid = each.outcome in ("answered", "left", "repeated")
        if each.entry is None:
            continue
        if each.outcome != "repeated" and each.entry in expected:
            found.append(f"{each.entry} was given to two requests")
        expected.setdefault(each.entry, "settled" if paid else "refunded")
    for entry, status in expected.items():
        if rows.get(entry) != status:
            found.append(
                f"{entry} is {rows.get(entry, 'not there')}; its client was told what makes it {status}"
            )
    found += [f"{entry} is a row that no client was told of" for entry in rows.keys() - expected.keys()]
    return found


def oxlo(environ: Mapping[str, str], *arguments: str) -> str:
    """What a command prints; one that fails ends all, with its own words."""
    command = [sys.executable, "-m", "oxlo_local", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"oxlo {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def tell(errands: Sequence[Errand], told: Sequence[Told], seconds: float) -> None:
    """What was played, and what came of it."""
    busiest = busiest_minute(errands)
    print(
        f"A day of {len(errands)} requests, drawn with a seed, in the order of the day and {DAY / seconds:,.0f} times "
        f"as fast. At most {busiest} in a minute of its own clock, so it fits on:"
    )
    for name, plan in PLANS.items():
        daily, rate = plan.limits.daily or 0, plan.limits.rate or 0
        fits = "yes" if len(errands) <= daily and busiest <= rate else "no"
        print(f"  {name}: {fits} ({daily} a day, {rate} a minute)")
    print("The comparison below counts the minutes of the playing, which are fuller than those of the day.\n")
    outcomes = Counter((each.errand.client, each.outcome) for each in told)
    for (client, outcome), count in sorted(outcomes.items()):
        print(f"  {client:8} {outcome:24} {count:5}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a day and print what it comes to; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=600, help="in the whole day [600]")
    parser.add_argument("--seconds", type=float, default=120.0, help="that the day takes here [120]")
    parser.add_argument("--seed", type=int, default=1, help="another day [1]")
    options = parser.parse_args(arguments)
    if options.requests < 1 or options.seconds <= 0:
        parser.error("a day has at least one request and takes some time")
    errands = drawn(options.requests, options.seed, questions(), pages())
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        environ = {**clean_environ(home), "COLUMNS": os.environ.get("COLUMNS", "200")}
        keys = {
            name: oxlo(environ, "keys", "create", name, *client.flags).strip()
            for name, client in CLIENTS.items()
        }
        serving = [MODEL, "--port", "0", "--log-level", "error"]
        with LaunchedServer(serving, home / "serve.json", environ) as server:
            address = server.wait_ready(120)
            told = asyncio.run(play(address.url, keys, errands, options.seconds))
        exported = oxlo(environ, "ledger", "export", "--json").splitlines()
        rows = [msgspec.json.decode(line, type=Row) for line in exported]
        tell(errands, told, options.seconds)
        found = faults(told, {row.id: row.status for row in rows})
        for command in (("summary", "--by", "key"), ("verify",), ("compare",)):
            print(f"\n$ oxlo ledger {' '.join(command)}\n{oxlo(environ, 'ledger', *command)}", end="")
    for fault in found:
        print(f"WRONG: {fault}", file=sys.stderr)
    print(f"\n{len(rows)} rows, each as its client was told" if not found else f"\n{len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
