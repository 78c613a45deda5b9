"""Churn for an hour, and nothing may grow, leak or fail to add up.

A server runs one random-weight model of each kind of memory (plain, sliding-window, recurrent, hybrid). Clients ask it
things of mixed lengths, streamed and not, some with a beginning that others share, some with several choices, some too
long for the context, and many leave: before the first token, in mid-stream, or without reading an answer. From time to
time everybody waits until all is quiet, and then it must hold that

* no sequence, row, stream or queue place is left (workers, metrics, open sockets of the parent);
* the caches are whole: libllama holds in every slot what the engine believes, and free + cached = all;
* the ledger has exactly one closed row for each request, settled or refunded as the client's own account of it demands,
  and the settled prices sum to what was asked;
* after the warm-up (a quarter of the windows) no process has grown: the median of its resident memory over the last
  third against the first third of what follows.

Exit status 1 when something does not hold.

Example:  scripts/soak --minutes 60 --json > soak.json
"""

import argparse
import asyncio
import math
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import httpx  # noqa: E402  # after the path that leads to this checkout
import msgspec  # noqa: E402
import psutil  # noqa: E402

from oxlo_local import bench, random_model  # noqa: E402
from oxlo_local.calls import Gauges  # noqa: E402
from oxlo_local.client import CHAT_PATH, COMPLETIONS_PATH, Address  # noqa: E402
from oxlo_local.launch import LaunchedServer  # noqa: E402
from race.racers import clean_environ  # noqa: E402

KINDS: tuple[random_model.Architecture, ...] = ("llama", "gemma2", "mamba", "jamba")
PARALLEL, CONTEXT, CLIENTS = 4, 512, 12
LOOKS = (
    50  # at a server that should be quiet, LOOK_SECONDS apart; counted, since a machine may sleep meanwhile
)
LOOK_SECONDS = 0.4  # two pings: what the parent tells of its workers is no older
WARM_UP, THIRD = 0.25, 1 / 3
OVER_CONTEXT = 2000  # words of a prompt that cannot fit

Fate = Literal["settled", "refunded", "either"]
Way = Literal["stream", "whole", "cut early", "cut late", "walk away", "too long"]
WAYS: dict[Way, int] = {"stream": 5, "whole": 3, "cut early": 3, "cut late": 4, "walk away": 2, "too long": 1}


class Worker(msgspec.Struct, frozen=True):
    """A worker as /admin/workers tells it."""

    model: str
    gauges: Gauges
    rss_bytes: int
    waiting: int
    running: int
    restarts: int


class Workers(msgspec.Struct, frozen=True):
    """All of them."""

    workers: list[Worker]


class Window(msgspec.Struct, frozen=True):
    """One look at a quiet server. `rss` in bytes by process, `parent` among them."""

    seconds: float
    requests: int
    rss: dict[str, int]
    sockets: int
    cached: int
    kv_total: int


class Outcome(msgspec.Struct, frozen=True):
    """The whole soak. `growth` in per cent by process; `faults` is empty when everything held."""

    minutes: float
    requests: int
    ways: dict[str, int]
    rows: dict[str, int]
    growth: dict[str, float]
    windows: list[Window]
    faults: list[str]


# -- what is asked ----------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What the clients know of their requests: how each row has to end, by request id."""

    fates: dict[str, Fate] = field(default_factory=dict)
    ways: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    asked: int = 0
    patience: float = 120.0  # seconds until an answer counts as missing

    def fault(self, words: str) -> None:
        """Keep a fault; a repeated one says nothing new."""
        if words not in self.faults and len(self.faults) < 50:
            self.faults.append(words)


@dataclass(frozen=True)
class Errand:
    """One request, drawn at random."""

    way: Way
    path: str
    body: dict[str, object]
    pause: float  # seconds until an early leaver leaves
    pieces: int  # after which a late one leaves

    @classmethod
    def drawn(cls, random: Random, models: Sequence[str]) -> "Errand":
        """Lengths spread over orders of magnitude; a third of the prompts share one of a few beginnings."""
        (way,) = random.choices(list(WAYS), weights=list(WAYS.values()))
        words = OVER_CONTEXT if way == "too long" else round(math.exp(random.uniform(0, math.log(110))))
        text = bench.text(random, words, f"{random.random()}")
        if random.random() < 1 / 3 and way != "too long":
            text = f"{bench.text(Random(random.randrange(3)), 60, 'shared')} {text[:80]}"
        chat = random.random() < 0.7
        said: dict[str, object] = (
            {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        )
        limit = {"max_completion_tokens" if chat else "max_tokens": round(math.exp(random.uniform(0, 4)))}
        body = {
            "model": random.choice(models),
            **said,
            **limit,
            "temperature": random.choice((0.0, 0.8)),
            "n": random.choice((1, 1, 1, 2)),
            "stream": way in ("stream", "cut early", "cut late"),
        }
        return cls(
            way, CHAT_PATH if chat else COMPLETIONS_PATH, body, random.uniform(0, 0.05), random.randint(1, 5)
        )


def fate_of(way: Way, *, output: bool) -> Fate:
    """How the row of a request has to end. `output` = a piece of the answer had reached the client."""
    if way == "too long":
        return "refunded"
    if way in ("cut early", "walk away") and not output:
        return "either"
    return "settled"


async def run_errand(client: httpx.AsyncClient, errand: Errand, id: str, account: Account) -> None:
    """Ask, read or leave, and note what has to become of the row."""
    account.fates[id] = fate_of(errand.way, output=False)
    if errand.way in ("stream", "cut early", "cut late"):
        pieces = 0
        try:
            async with asyncio.timeout(errand.pause if errand.way == "cut early" else account.patience):
                async with client.stream(
                    "POST", errand.path, json=errand.body, headers={"x-request-id": id}
                ) as answer:
                    _expect(answer, 200, account)
                    async for line in answer.aiter_lines():
                        # A chunk with text: the first chunk of a chat only opens it.
                        pieces += '"content":"' in line.replace('"content":""', "") or '"text":"' in line
                        if errand.way == "cut late" and pieces >= errand.pieces:
                            break
        except TimeoutError:
            if errand.way != "cut early":
                account.fault(f"{errand.way}: no end after {account.patience:g} s")
        account.fates[id] = fate_of(errand.way, output=pieces > 0)
        return
    sent = client.post(errand.path, json=errand.body, headers={"x-request-id": id})
    if errand.way == "walk away":
        try:
            async with asyncio.timeout(errand.pause):
                _expect(await sent, 200, account)
                account.fates[id] = "settled"
        except TimeoutError:
            pass
        return
    _expect(await sent, 400 if errand.way == "too long" else 200, account)


def _expect(answer: httpx.Response, status: int, account: Account) -> None:
    if answer.status_code != status:
        account.fault(f"an answer was {answer.status_code} instead of {status}")


async def churn(
    address: Address, models: Sequence[str], random: Random, seconds: float, account: Account
) -> None:
    """All clients at work for so long; returns when the last one has what it waits for."""
    until = time.monotonic() + seconds
    bearer = {"authorization": f"Bearer {address.token}"}
    limits = httpx.Limits(max_connections=CLIENTS)

    async def customer(client: httpx.AsyncClient, own: Random) -> None:
        while time.monotonic() < until:
            errand = Errand.drawn(own, models)
            account.asked += 1
            account.ways[errand.way] += 1
            try:
                await run_errand(client, errand, f"soak-{account.asked}", account)
            except httpx.HTTPError as error:
                account.fault(f"{errand.way}: {type(error).__name__} {error}")

    async with httpx.AsyncClient(
        base_url=address.url, headers=bearer, timeout=account.patience, trust_env=False, limits=limits
    ) as client:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(customer(client, Random(random.random())))


# -- what must hold ---------------------------------------------------------------------------------------------------


def look(address: Address, pid: int, patience: float) -> tuple[list[Worker], float, int]:
    """Workers, requests in flight as /metrics tells, and the parent's open connections."""
    bearer = {"authorization": f"Bearer {address.token}"}
    with httpx.Client(base_url=address.url, headers=bearer, trust_env=False, timeout=patience) as client:
        workers = msgspec.json.decode(client.get("/admin/workers").content, type=Workers).workers
        lines = client.get("/metrics").text.splitlines()
    flying = next(line for line in lines if line.startswith("oxlo_requests_in_flight"))
    sockets = sum(each.status == "ESTABLISHED" for each in psutil.Process(pid).net_connections("tcp"))
    return workers, float(flying.split()[1]), sockets


def idle(workers: Sequence[Worker]) -> bool:
    """Whether nothing runs or waits anywhere."""
    return not any(
        each.running or each.waiting or each.gauges.running or each.gauges.waiting for each in workers
    )


def cache_faults(worker: Worker) -> list[str]:
    """What is wrong with an idle worker's cache: free + cached + used = all, and used is nothing now."""
    gauges, found = worker.gauges, []
    if gauges.kv_strayed:
        found.append(f"{worker.model}: libllama and the engine differ by {gauges.kv_strayed} tokens")
    if gauges.kv_idle != gauges.kv_used:
        found.append(
            f"{worker.model}: {gauges.kv_used - gauges.kv_idle} tokens belong to sequences that have ended"
        )
    if not 0 <= gauges.kv_used <= gauges.kv_total:
        found.append(f"{worker.model}: {gauges.kv_used} tokens are in a cache for {gauges.kv_total}")
    if worker.restarts:
        found.append(f"{worker.model}: its worker was started again {worker.restarts} times")
    return found


async def quiet(address: Address, pid: int, account: Account) -> tuple[list[Worker], int]:
    """Wait until the server is idle, and see that nothing is left over."""
    for _ in range(LOOKS):
        await asyncio.sleep(LOOK_SECONDS)
        workers, flying, sockets = look(address, pid, account.patience)
        if idle(workers) and flying <= 1 and sockets <= 1:  # the question itself
            break
    else:
        left = {each.model: (each.running, each.waiting, each.gauges.running) for each in workers}
        account.fault(
            f"still busy when all clients have gone: {left}, {flying:g} in flight, {sockets} sockets"
        )
    for worker in workers:
        for fault in cache_faults(worker):
            account.fault(fault)
    return workers, sockets


class Row(msgspec.Struct, frozen=True, array_like=True):
    """As much of a ledger row as is held against the clients' account."""

    request_id: str
    status: str
    price_micros: int
    reason: str | None


def rows_of(ledger: Path) -> list[Row]:
    """All rows, read beside the running server."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        found = connection.execute("SELECT request_id, status, price_micros, reason FROM entries").fetchall()
    return [Row(*each) for each in found]


def ledger_faults(rows: Sequence[Row], fates: Mapping[str, Fate], price: int) -> list[str]:
    """Where the ledger and the clients' account differ. An early leaver may have gone before its row was made."""
    ours = [row for row in rows if row.request_id.startswith("soak-")]
    seen = Counter(row.request_id for row in ours)
    found = [f"{id} has {count} rows" for id, count in seen.items() if count > 1]
    found += [
        f"{row.request_id} is {row.status}" for row in ours if row.status not in ("settled", "refunded")
    ]
    for row in ours:
        fate = fates.get(row.request_id)
        if fate not in (row.status, "either"):
            found.append(f"{row.request_id} is {row.status} ({row.reason}) and should be {fate}")
    found += [f"{id} has no row" for id, fate in fates.items() if fate != "either" and not seen[id]]
    settled = [row for row in ours if row.status == "settled"]
    if sum(row.price_micros for row in settled) != price * len(settled):
        found.append(f"{len(settled)} settled rows do not sum to {price} micro-dollars each")
    return found[:20]


def growth(windows: Sequence[Window]) -> dict[str, float]:
    """Per cent by which each process grew after the warm-up; needs four windows or more."""
    after = windows[math.ceil(len(windows) * WARM_UP) :]
    part = max(1, int(len(after) * THIRD))
    found = {}
    for name in windows[-1].rss:
        first = statistics.median(window.rss[name] for window in after[:part])
        last = statistics.median(window.rss[name] for window in after[-part:])
        found[name] = round(100 * (last / first - 1), 2)
    return found


# -- the soak ---------------------------------------------------------------------------------------------------------


def soak(options: argparse.Namespace, folder: Path) -> Outcome:
    """Run it all."""
    paths = []
    for kind in KINDS:
        path = folder / f"{kind}.gguf"
        random_model.write(path, kind)
        paths.append(str(path))
    home, random, account = folder / "home", Random(options.seed), Account(patience=options.patience)
    windows: list[Window] = []
    begun = time.monotonic()
    arguments = [*paths, "--port", "0", "--parallel", str(PARALLEL), "--ctx", str(CONTEXT), "--threads", "1"]
    arguments += ["--ping-seconds", "0.2", "--log-level", "error"]
    with LaunchedServer(arguments, home / "serve.json", clean_environ(home)) as server:
        address = server.wait_ready(120)
        seconds = 60 * options.minutes / options.windows
        while len(windows) < options.windows:
            asyncio.run(churn(address, KINDS, random, seconds, account))
            workers, sockets = asyncio.run(quiet(address, server.pid, account))
            rss = {each.model: each.rss_bytes for each in workers}
            rss["parent"] = psutil.Process(server.pid).memory_info().rss
            used, total = (
                sum(getattr(each.gauges, name) for each in workers) for name in ("kv_used", "kv_total")
            )
            windows.append(
                Window(round(time.monotonic() - begun, 1), account.asked, rss, sockets, used, total)
            )
            told = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in rss.items())
            print(f"{account.asked} requests, MB: {told}", file=sys.stderr, flush=True)
            for fault in ledger_faults(rows_of(home / "ledger.db"), account.fates, options.price):
                account.fault(fault)
        rows = Counter(row.status for row in rows_of(home / "ledger.db"))
        grown = growth(windows)
    for name, per_cent in grown.items():
        if per_cent > options.growth:
            account.fault(f"{name} grew by {per_cent} % after the warm-up")
    minutes = round((time.monotonic() - begun) / 60, 2)
    return Outcome(minutes, account.asked, dict(account.ways), dict(rows), grown, windows, account.faults)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print, and say by the exit status whether everything held."""
    about, _, example = (__doc__ or "").partition("\n\nExample:")
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=about,
        epilog=f"Example:{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of churn (60)")
    parser.add_argument("--windows", type=int, default=60, help="looks at the quiet server, 4 at least (60)")
    parser.add_argument("--growth", type=float, default=2.0, help="per cent that a process may grow (2)")
    parser.add_argument(
        "--price", type=int, default=1000, help="micro-dollars of a request (1000, the default)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of what is asked")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="seconds until an answer is missing (120); more where the machine sleeps now and then",
    )
    parser.add_argument("--json", action="store_true", help="every window, as JSON")
    options = parser.parse_args(arguments)
    if options.windows < 4 or options.minutes <= 0:
        parser.error("--windows takes 4 or more, --minutes a positive number")
    with tempfile.TemporaryDirectory() as folder:
        outcome = soak(options, Path(folder))
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode() + "\n")
    else:
        ways = ", ".join(f"{count} {way}" for way, count in sorted(outcome.ways.items()))
        print(f"{outcome.requests} requests in {outcome.minutes} minutes: {ways}")
        print(f"rows: {outcome.rows}; growth after the warm-up, per cent: {outcome.growth}")
        print("\n".join(outcome.faults) or "everything held")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
