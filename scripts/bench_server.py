"""Measures this checkout: starts servers of its own, loads them, and holds the figures against the bars.

1. A random 150 M model in Q8_0 (real sizes, meaningless text; made once, kept in build/): `oxlo bench`'s loads in
   interleaved rounds, and from them: 16 clients together against one, how many answers streamed at once, the parent
   process's memory, and its CPU seconds for 1,000 streamed tokens.
2. oxlo-demo, where the engine costs little and everything around it shows: the same loads.
3. Cold starts of oxlo-demo: seconds until /readyz, and the first request against the 91st to 100th, each prompt new.
   (The first start of all is not counted: it brings the files into the disk cache.)
4. scripts/bench-ledger: what the ledger costs a request.

Every figure comes from this run on this machine; nothing is remembered. Exit status 1 when a bar is missed.
"""

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from oxlo_local import bench  # noqa: E402  # after the path that leads to this checkout
from oxlo_local.cli import figures  # noqa: E402
from oxlo_local.client import Address, Client  # noqa: E402
from oxlo_local.launch import LaunchedServer  # noqa: E402
from oxlo_local.stream_connection import StreamConnection  # noqa: E402

RANDOM_MODEL = ROOT / "build" / "random-150m-q8_0.gguf"
READY_SECONDS = 300.0
PARALLEL, CONTEXT = 32, 2048

PARENT_MB, TOGETHER, COLD_RATIO, READY_BAR = 150.0, 1.5, 1.1, 3.0
HUNDRED, COLD_PROMPT_TOKENS, COLD_MAX_TOKENS = 100, 32, 8
LATE = 10  # the last of the hundred, whose median stands for a warm server's request
COLD_PAUSE = 0.3  # seconds before the first request and before each of the late ones


class Check(msgspec.Struct, frozen=True):
    """One figure, and the bar that it is held against, if there is one."""

    name: str
    figure: str
    bar: str = ""
    holds: bool | None = None


class Result(msgspec.Struct, frozen=True):
    """Everything that was measured."""

    machine: str
    checks: list[Check]
    reports: list[bench.Report]


@dataclass(frozen=True)
class Burnt:
    """What the parent process has used so far: CPU seconds and resident bytes."""

    cpu_seconds: float
    rss: int

    @classmethod
    def of(cls, pid: int) -> "Burnt":
        """As the operating system counts it now."""
        process = psutil.Process(pid)
        times = process.cpu_times()
        return cls(times.user + times.system, process.memory_info().rss)


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def serving(model: str, home: Path, *arguments: str) -> Iterator[tuple[LaunchedServer, Address, float]]:
    """A server of this checkout over `model`; also the seconds from its start until it was ready."""
    home.mkdir(exist_ok=True)
    (home / "config.toml").touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OXLO_")}
    environ = {
        **kept,
        "OXLO_HOME": str(home),
        "OXLO_CONFIG": str(home / "config.toml"),
        "PYTHONPATH": str(ROOT),
    }
    with LaunchedServer([model, "--port", "0", *arguments], home / "serve.json", environ) as server:
        address = server.wait_ready(READY_SECONDS)
        yield server, address, time.monotonic() - server.started


def random_model() -> Path:
    """The random 150 M model, made once."""
    if not RANDOM_MODEL.is_file():
        say(f"making {RANDOM_MODEL.relative_to(ROOT)} (170 MB, once)")
        RANDOM_MODEL.parent.mkdir(exist_ok=True)
        part = RANDOM_MODEL.with_suffix(".part")
        command = [sys.executable, "-m", "oxlo_local.random_model", "--shape", "150m", str(part)]
        subprocess.run(command, check=True, cwd=ROOT)
        part.rename(RANDOM_MODEL)
    return RANDOM_MODEL


def loaded(
    name: str, model: str, home: Path, options: argparse.Namespace
) -> tuple[bench.Report, list[Check]]:
    """Run all loads against one model, and look at the parent process meanwhile."""
    arguments = ["--threads", str(options.threads), "--parallel", str(PARALLEL), "--ctx", str(CONTEXT)]
    with serving(model, home, *arguments) as (server, address, _):
        with Client(address) as client:
            item = next(item for item in client.models() if item.kind == "chat" and item.status == "ready")
        plan = bench.Plan(
            model=item.id,
            context=item.context_length,
            requests=options.requests,
            max_tokens=options.max_tokens,
            rounds=options.rounds,
        )
        before = Burnt.of(server.pid)
        report = asyncio.run(bench.bench(address, plan, lambda line: say(f"{name}: {line}")))
        after = Burnt.of(server.pid)
    whole = [row for row in report.rows if not row.name.startswith(" ")]  # the parts of a load are indented
    tokens = sum(figure.completion_tokens for row in whole for figure in row.rounds)
    errors = sum(sum(row.errors.values()) for row in whole)
    megabytes = after.rss / 1e6
    cpu = 1000 * (after.cpu_seconds - before.cpu_seconds) / max(tokens, 1)
    return report, [
        Check(f"{name}: failed requests", str(errors), "0", errors == 0),
        Check(
            f"{name}: parent's memory", f"{megabytes:.0f} MB", f"< {PARENT_MB:.0f} MB", megabytes < PARENT_MB
        ),
        Check(f"{name}: parent's CPU for 1,000 streamed tokens", f"{cpu:.2f} s (over {tokens} tokens)"),
    ]


def together(report: bench.Report) -> list[Check]:
    """Sixteen clients against one, round by round, and whether anybody waited for another's answer to end."""
    rows = {row.clients: row for row in report.rows if "client" in row.name and "," not in row.name}
    ratios = [
        many.tokens_per_second / one.tokens_per_second
        for one, many in zip(rows[1].rounds, rows[16].rounds, strict=True)
    ]
    ratio = statistics.median(ratios)
    spread = f"{ratio:.2f} x ({min(ratios):.2f}-{max(ratios):.2f})"
    streaming = min(figure.at_once for figure in rows[16].rounds)
    return [
        Check("16 clients against 1, tokens/s", spread, f">= {TOGETHER} x", ratio >= TOGETHER),
        Check("16 clients: answers streaming at once", f"{streaming} of 16", "16", streaming == 16),
    ]


def hundred(address: Address, model: str, scale: bench.Scale, seed: int) -> list[bench.Sample]:
    """A hundred requests one after another, each with a new prompt and a connection of its own.

    A first request finds an idle machine and a client that has just begun. So do the last ten here: each comes after
    the same pause, in an event loop of its own; what is left between them is what the server has yet to warm. Ten,
    because after a pause two equal requests of 6 ms differ by a fifth.
    """
    plan = bench.Plan(model=model, seed=seed)
    random = Random(seed)
    prompts = [
        bench.text(random, scale.words(COLD_PROMPT_TOKENS), f"cold.{seed}.{number}")
        for number in range(HUNDRED)
    ]

    async def ask(prompts: Sequence[str]) -> list[bench.Sample]:
        samples = []
        for prompt in prompts:
            connection = StreamConnection(address)
            asked = bench.Ask(bench.encoded(plan, prompt, COLD_MAX_TOKENS))
            samples.append(await bench.measure(connection, asked, 60))
            connection.close()
        return samples

    samples = []
    for part in (prompts[:1], prompts[1:-LATE], *([prompt] for prompt in prompts[-LATE:])):
        time.sleep(COLD_PAUSE)
        samples += asyncio.run(ask(part))
    return samples


def cold_starts(home: Path, options: argparse.Namespace) -> list[Check]:
    """Start a server again and again: when is it ready, and what does its first request cost?"""
    name = Path(options.model).stem
    ready: list[float] = []
    runs: list[list[bench.Sample]] = []
    scale: bench.Scale | None = None
    for start in range(options.starts + 1):
        with serving(options.model, home, "--threads", str(options.threads)) as (_, address, seconds):
            if scale is None:  # the first start only teaches the length of words
                scale = asyncio.run(bench.probe(address, bench.Plan(model=name)))
                continue
            say(f"cold start {start} of {options.starts}: ready after {seconds:.2f} s")
            ready.append(seconds)
            runs.append(hundred(address, name, scale, start))
    second = statistics.median(ready)
    spread = f"{second:.2f} s ({min(ready):.2f}-{max(ready):.2f})"
    checks = [Check(f"{name}: ready after", spread, f"about {READY_BAR:.0f} s", second <= READY_BAR * 1.2)]
    failed = sum(sample.error is not None or not sample.arrivals for run in runs for sample in run)
    if failed:
        return [*checks, Check("cold starts: failed requests", str(failed), "0", False)]
    first_token = [[1000 * (sample.arrivals[0] - sample.asked) for sample in run] for run in runs]
    total = [[1000 * (sample.ended - sample.asked) for sample in run] for run in runs]
    return [*checks, cold_check("time to first token", first_token), cold_check("whole answer", total)]


def cold_check(name: str, runs: Sequence[Sequence[float]]) -> Check:
    """The first request against the hundredth and the nine before it, medians over the starts, in milliseconds."""
    first = statistics.median(run[0] for run in runs)
    late = [statistics.median(run[-LATE:]) for run in runs]
    last = statistics.median(late)
    busy = statistics.median(statistics.median(run[-2 * LATE : -LATE]) for run in runs)
    ratio = first / last
    spread = f"{min(late):.1f}-{max(late):.1f}"
    figure = f"{ratio:.2f} ({first:.1f} against {last:.1f} ms, {spread}; without a pause: {busy:.1f} ms)"
    return Check(f"first request / hundredth, {name}", figure, f"<= {COLD_RATIO}", ratio <= COLD_RATIO)


def ledger(options: argparse.Namespace) -> Check:
    """scripts/bench-ledger says itself whether its bar holds; its table goes to stderr with --json."""
    say("ledger: reserve and settle at 300 requests/s")
    arguments = ["--seconds", "3"] if options.quick else []
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_ledger.py"), *arguments],
        stdout=sys.stderr if options.json else None,
        check=False,
    )
    return Check("ledger: scripts/bench-ledger", f"exit {done.returncode}", "exit 0", done.returncode == 0)


def machine(threads: int) -> str:
    """The machine, in words, and how busy it was with other things."""
    memory = psutil.virtual_memory().total / 1e9
    busy = os.getloadavg()[0]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}, "
        f"{threads} engine threads, load average {busy:.1f} before the start"
    )


def show(result: Result) -> None:
    """Tables on stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else figures.TABLE_WIDTH)
    console.print(result.machine, markup=False)
    for report in result.reports:
        figures.show(report)
    table = Table(pad_edge=False)
    for head in ("figure", "measured", "bar", ""):
        table.add_column(head)
    for check in result.checks:
        verdict = {None: "", True: "holds", False: "MISSED"}[check.holds]
        table.add_row(check.name, check.figure, check.bar, verdict)
    console.print(table)


def options_from(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; --quick lowers what was not given."""
    cores = psutil.cpu_count(logical=False) or 1
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure this checkout on this machine."
    )
    parser.add_argument(
        "--threads", type=int, default=max(1, cores - 1), help="engine threads (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, help="rounds of every load (default: 3)")
    parser.add_argument("--requests", type=int, help="requests a load and round (default: 16)")
    parser.add_argument("--max-tokens", type=int, help="longest answer (default: 128)")
    parser.add_argument("--starts", type=int, help="cold starts (default: 10)")
    parser.add_argument(
        "--model", default="oxlo-demo", help="model, or file, of demo and cold (default: %(default)s)"
    )
    parser.add_argument(
        "--only", default="random,demo,cold,ledger", help="parts to run (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of short answers, three cold starts")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    options = parser.parse_args(arguments)
    defaults = (1, 8, 32, 3) if options.quick else (3, 16, 128, 10)
    for name, default in zip(("rounds", "requests", "max_tokens", "starts"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, default)
    unknown = set(options.only.split(",")) - {"random", "demo", "cold", "ledger"}
    if unknown:
        parser.error(f"--only takes random, demo, cold and ledger, not {', '.join(unknown)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether every bar holds."""
    options = options_from(arguments)
    parts = set(options.only.split(","))
    described = machine(options.threads)
    reports: list[bench.Report] = []
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if "random" in parts:
            report, found = loaded("150 M", str(random_model()), home / "random", options)
            reports.append(report)
            checks += found + together(report)
        if "demo" in parts:
            report, found = loaded(Path(options.model).stem, options.model, home / "demo", options)
            reports.append(report)
            checks += found
        if "cold" in parts:
            checks += cold_starts(home / "cold", options)
    if "ledger" in parts:
        checks.append(ledger(options))
    result = Result(described, checks, reports)
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
    else:
        show(result)
    return 1 if any(check.holds is False for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
