"""What the ledger costs a request: reserve + settle together, against a control in the same run.

The ledger has a million rows of the last 30 days, of a thousand keys, each of which has a budget a month, a daily
limit, a rate and a number of requests at once: all are checked with every request. The control is the least that any
ledger in SQLite can do: the same million rows in a bare table without index, trigger or limit, one connection in one
thread, two transactions a request (BEGIN IMMEDIATE, INSERT or UPDATE, COMMIT).

Both get the same arrivals at a fixed rate: a request is reserved, 10 to 50 ms of pretended work follow, then it is
settled, while others come. A sample is the time inside reserve plus the time inside settle, with what each had to wait
for. (A control that settled at once would have the disk to itself for both: no request that is served has.) They run
in rounds that take turns (ledger, control, ledger, control, ...), so that a noisy machine disturbs both; each figure
is the median of the rounds' own. Neither WAL grows while it is measured: the ledger's has its length from the start,
and the control writes its own full before the first sample. A round of 14 seconds has 8,400 writes and so one copy of
the WAL into the file, which the ledger makes after 8,000 without a pause, and which is the slowest thing that a commit
can meet; the control makes its copies itself, after a thousand pages. At the end the summaries and `verify` are timed
over all rows. The targets: p99 at most 2 ms, or at most 1.5 times the control's; a summary in about a second (1.5 at
most). Exit code 1 if one is missed. With --one-core everything shares a core, which is only fair where nothing else
wants it.

Example:  scripts/bench-ledger --rounds 9    or    scripts/bench-ledger --json --folder /var/lib/oxlo
"""

import argparse
import asyncio
import heapq
import json
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from oxlo_local import audit, statement
from oxlo_local.db import Connection, Database, Sync
from oxlo_local.ids import SortableIds
from oxlo_local.keys import Keys
from oxlo_local.ledger import Ask, Ledger, Outcome
from oxlo_local.limits import Budget, Limits, version_of
from oxlo_local.verify import verify

WARM_UP = 600  # rows of the control, after which its WAL has been copied and starts over
TARGET_MS = 2.0
TARGET_RATIO = 1.5
TARGET_SUMMARY_S = 1.5
LIMITS = Limits(budget=Budget(10**12, "month"), daily=1_000_000, rate=10_000, concurrency=1000)
MONTH_MS = 30 * 86_400_000
PRICES = {"oxlo-demo": 1000, **{f"model-{number}": 1000 for number in range(5)}}
ASK = Ask(
    "k_benchmark",
    "/v1/chat/completions",
    "oxlo-demo",
    1,
    1000,
    version_of(PRICES),
    "req_0123456789abcdef0123456789",
)
OUTCOME = Outcome(120, 80, 200, 0, queue_ms=1.5, first_output_ms=80.25, total_ms=2000.5)


FILL = """
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < :rows - 1)
    INSERT INTO entries (id, opened_ms, closed_ms, instance, key_id, endpoint, model, status, reason, units,
        unit_price_micros, price_micros, price_version, prompt_tokens, cached_tokens, completion_tokens,
        reasoning_tokens, queue_ms, first_output_ms, total_ms, request_id, address_class, number)
    SELECT id_at(:now - :month + n * :month / :rows), :now - :month + n * :month / :rows,
        :now - :month + n * :month / :rows + 900, 'i',
        json_extract(:keys, '$[' || (n * 7919 % :count) || ']'), '/v1/chat/completions', 'model-' || (n % 5),
        iif(n % 20, 'settled', 'refunded'), iif(n % 20, NULL, 'timeout'), 1, 1000, 1000, :version, 500 + n % 1000,
        n % 300, 100 + n % 200, 0, 1.5, 80.25, 2000.5, printf('req_%032x', n), 'loopback', n + 1 FROM numbers
"""


async def fill(folder: Path, rows: int, keys: int) -> list[str]:
    """A ledger and a control with so many rows and keys; the ids of the keys."""
    db = Database.open(folder / "ledger.db")
    made = await asyncio.gather(*(Keys(db).create(f"key {number}", limits=LIMITS) for number in range(keys)))
    ids = [key.id for key, _ in made]
    now_ms = int(time.time() * 1000)
    values = {
        "rows": rows,
        "now": now_ms,
        "month": MONTH_MS,
        "keys": json.dumps(ids),
        "count": keys,
        "version": ASK.price_version,
    }

    def insert(connection: Connection) -> None:
        audit.keep_prices(connection, now_ms, PRICES)
        connection.create_function("id_at", 1, SortableIds("e").next)
        if rows:
            connection.execute(FILL, values)

    await db.write(insert)
    for identity in ids:
        await Keys(db).limit(identity, lambda limits: limits)  # whose windows' sums are kept from now on
    db.close()
    shutil.copy(folder / "ledger.db", folder / "control.db")
    control = sqlite3.connect(folder / "control.db", isolation_level=None)
    named = "SELECT type, name FROM sqlite_master WHERE tbl_name = 'entries' AND sql IS NOT NULL AND type <> 'table'"
    for kind, name in control.execute(named).fetchall():
        control.execute(f"DROP {kind} {name}")
    control.close()
    for path in (folder / "ledger.db", folder / "control.db"):
        with path.open("rb") as file:
            os.fsync(file)  # else the disk is still busy with hundreds of megabytes while the rounds run
    return ids


def work_seconds(number: int) -> float:
    """How long the work on a request is pretended to take."""
    return 0.01 + number % 41 / 1000


async def ledger_round(folder: Path, keys: list[str], sync: Sync, rate: float, seconds: float) -> list[float]:
    """Milliseconds inside reserve and settle, for each request of one round."""
    db = Database.open(folder / "ledger.db", sync=sync)
    ledger = await Ledger.open(db, folder / "locks")
    samples: list[float] = []

    async def request(number: int) -> None:
        begun = time.perf_counter()
        entry = await ledger.reserve(replace(ASK, key_id=keys[number * 31 % len(keys)]))
        reserved = time.perf_counter()
        await asyncio.sleep(work_seconds(number))
        worked = time.perf_counter()
        await ledger.settle(entry, OUTCOME)
        samples.append((reserved - begun + time.perf_counter() - worked) * 1000)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
            requests.create_task(request(number))
    await ledger.close()
    db.close()
    return samples


INSERT = (
    "INSERT INTO entries (id, opened_ms, instance, status, key_id, endpoint, model, units, unit_price_micros,"
    " price_micros, price_version, request_id, address_class) VALUES (?, ?, 'i', 'open', ?, ?, ?, 1, ?, ?, ?, ?, ?)"
)
UPDATE = (
    "UPDATE entries SET status = 'settled', closed_ms = ?, prompt_tokens = 120, cached_tokens = 80,"
    " completion_tokens = 200, reasoning_tokens = 0, queue_ms = 1.5, first_output_ms = 80.25, total_ms = 2000.5"
    " WHERE id = ?"
)


class Control:
    """Bare transactions, two a request."""

    def __init__(self, folder: Path, sync: Sync) -> None:
        self._connection = sqlite3.connect(folder / "control.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {sync}")
        self._ids = SortableIds("e")
        for _ in range(WARM_UP):
            self.reserve()

    def reserve(self) -> str:
        """The id of the new row."""
        now_ms = int(time.time() * 1000)
        identity = self._ids.next(now_ms)
        price = (ASK.unit_price_micros, ASK.unit_price_micros, ASK.price_version)
        who = (ASK.key_id, ASK.endpoint, ASK.model)
        self._write(INSERT, (identity, now_ms, *who, *price, ASK.request_id, ASK.address_class))
        return identity

    def settle(self, identity: str) -> None:
        """Close the row."""
        self._write(UPDATE, (int(time.time() * 1000), identity))

    def _write(self, sql: str, values: tuple[str | int, ...]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(sql, values)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Give up the file."""
        self._connection.close()


def control_round(folder: Path, sync: Sync, rate: float, seconds: float) -> list[float]:
    """The same for bare transactions, one after the other in the order in which they come due."""
    control = Control(folder, sync)
    samples: list[float] = []
    reserved: dict[int, tuple[str, float]] = {}  # id, and how long it took
    start = time.perf_counter()
    due = [(start + number / rate, number) for number in range(round(rate * seconds))]
    while due:
        begun, number = heapq.heappop(due)
        early = begun - time.perf_counter()
        if early > 0:
            time.sleep(early)
            begun = time.perf_counter()
        # else: it came while another was written, and its wait for that one counts
        if number in reserved:
            identity, took = reserved.pop(number)
            control.settle(identity)
            samples.append((took + time.perf_counter() - begun) * 1000)
        else:
            identity = control.reserve()
            ended = time.perf_counter()
            reserved[number] = identity, ended - begun
            heapq.heappush(due, (ended + work_seconds(number), number))
    control.close()
    return samples


PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


def summed(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Percentiles in milliseconds: of each round, then the median of the rounds."""
    ordered = [sorted(samples) for samples in rounds]
    return {
        name: round(
            median(samples[min(len(samples) - 1, int(share * len(samples)))] for samples in ordered), 3
        )
        for name, share in PERCENTILES.items()
    }


def measure(
    sync: Sync, rate: float, seconds: float, rounds: int, folder: Path, keys: list[str]
) -> dict[str, object]:
    """Rounds in turn under one `synchronous` setting."""
    ours: list[list[float]] = []
    control: list[list[float]] = []
    for number in range(rounds):
        print(f"{sync}: round {number + 1} of {rounds}, {2 * seconds:.0f} s", file=sys.stderr)
        ours.append(asyncio.run(ledger_round(folder, keys, sync, rate, seconds)))
        control.append(control_round(folder, sync, rate, seconds))
    ledger_ms, control_ms = summed(ours), summed(control)
    ratio = ledger_ms["p99"] / control_ms["p99"]
    return {
        "sync": sync,
        "requests": sum(map(len, ours)),
        "ledger_ms": ledger_ms,
        "control_ms": control_ms,
        "p99_ratio": round(ratio, 2),
        "held": ledger_ms["p99"] <= TARGET_MS or ratio <= TARGET_RATIO,
    }


async def reports(folder: Path) -> dict[str, float]:
    """Seconds for each summary over all rows, and for `verify`."""
    db = Database.open(folder / "ledger.db")
    seconds = {}
    for by in get_args(statement.By):
        begun = time.perf_counter()
        await statement.summary(db, by)
        seconds[f"summary by {by}"] = round(time.perf_counter() - begun, 3)
    begun = time.perf_counter()
    faults = (await verify(db)).faults
    seconds["verify"] = round(time.perf_counter() - begun, 3)
    db.close()
    if faults:
        raise SystemExit(f"the ledger is wrong: {faults[:5]}")
    return seconds


def table(results: Sequence[dict[str, object]], rate: float) -> None:
    """For people."""
    print(f"reserve + settle at {rate:g} requests/s, milliseconds (target: p99 <= 2, or <= 1.5 x control)")
    print(f"{'sync':8}{'':10}{'requests':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}")
    for result in results:
        for who in ("ledger", "control"):
            row = result[f"{who}_ms"]
            assert isinstance(row, dict)
            numbers = "".join(f"{row[name]:9.3f}" for name in ("p50", "p95", "p99", "max"))
            print(f"{result['sync']!s:8}{who:10}{result['requests']!s:>9}{numbers}")
        print(
            f"{'':8}p99 is {result['p99_ratio']} x control: target {'held' if result['held'] else 'MISSED'}"
        )


def main() -> int:
    """Parse, measure, print."""
    about, _, example = (__doc__ or "").partition("\n\nExample:")
    parser = argparse.ArgumentParser(
        prog="scripts/bench-ledger",
        description=about,
        epilog=f"Example:{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second (300)")
    parser.add_argument("--seconds", type=float, default=14.0, help="length of a round (14)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each of the two (5)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are there already (1000000)")
    parser.add_argument("--keys", type=int, default=1000, help="keys, each with every limit (1000)")
    parser.add_argument("--sync", choices=get_args(Sync), help="measure one of them (both)")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (the temporary folder)")
    parser.add_argument("--one-core", action="store_true", help="stay on one core (Linux)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    modes: tuple[Sync, ...] = get_args(Sync) if options.sync is None else (options.sync,)
    with tempfile.TemporaryDirectory(dir=options.folder) as fresh:
        folder = Path(fresh)
        print(f"writing {options.rows:,} rows of {options.keys:,} keys, twice", file=sys.stderr)
        keys = asyncio.run(fill(folder, options.rows, options.keys))
        results = [
            measure(sync, options.rate, options.seconds, options.rounds, folder, keys) for sync in modes
        ]
        seconds = asyncio.run(reports(folder))
    slowest = max(took for name, took in seconds.items() if name != "verify")
    if options.json:
        machine = {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "system": platform.platform(),
        }
        told = {"rate": options.rate, "rows": options.rows, "keys": options.keys, "machine": machine}
        print(json.dumps({**told, "results": results, "reports_s": seconds}, indent=2))
    else:
        table(results, options.rate)
        for name, took in seconds.items():
            print(f"{name}: {took:.2f} s")
    return 0 if all(result["held"] for result in results) and slowest <= TARGET_SUMMARY_S else 1


if __name__ == "__main__":
    sys.exit(main())
