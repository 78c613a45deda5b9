"""How the figures of a load run look: a table on stdout, or all of them as JSON."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from oxlo_local.bench import Report, Row, Spread

TABLE_WIDTH = 132  # where stdout is no terminal


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Says on stderr what runs now: a spinner in a terminal, a line each elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False)
        return
    with console.status("asking for two small answers first") as spinner:
        yield spinner.update


def as_json(report: Report) -> str:
    """The whole report, indented, with a final newline."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def show(report: Report) -> None:
    """Print the table and what it takes to read it."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=TABLE_WIDTH)
    plan = report.plan
    rounds = "1 round" if plan.rounds == 1 else f"{plan.rounds} rounds"
    console.print(
        f"{plan.model} at {report.url}: {rounds}, prompts of about {plan.prompt_tokens} tokens, "
        f"answers of at most {plan.max_tokens}, temperature {plan.temperature:g}",
        markup=False,
    )
    console.print(table(report.rows))
    console.print(
        "Medians over the rounds (lowest-highest). ms: p50/p95/max. gap: between two pieces of an answer. at once: "
        "answers that streamed at the same time. cached: prompt tokens that were not computed again. client: this "
        "process's own share of a core.",
        markup=False,
        style="dim",
    )
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False, style="yellow")


def table(rows: list[Row]) -> Table:
    """One line a load."""
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    drawn.add_column("load", overflow="fold")
    for head in (
        "tokens/s",
        "requests/s",
        "TTFT ms",
        "gap ms",
        "at once",
        "prompt (cached)",
        "errors",
        "client",
    ):
        drawn.add_column(head, justify="right", overflow="fold")
    for row in rows:
        summary = row.summary
        prompt = sum(each.prompt_tokens for each in row.rounds)
        cached = sum(each.cached_tokens for each in row.rounds)
        drawn.add_row(
            row.name,
            ranged(summary["tokens_per_second"]),
            f"{summary['requests_per_second'].median:.2f}",
            times(summary, "ttft"),
            times(summary, "gap"),
            f"{summary['at_once'].median:.0f}",
            f"{prompt} ({cached / prompt:.0%})" if prompt else "-",
            ", ".join(f"{count} {code}" for code, count in row.errors.items()) or "0",
            f"{summary['client_cpu_share'].median:.0%}",
        )
    return drawn


def ranged(spread: Spread) -> str:
    """A median, with its range where there is one."""
    if spread.low == spread.high:
        return f"{spread.median:.1f}"
    return f"{spread.median:.1f} ({spread.low:.1f}-{spread.high:.1f})"


def times(summary: dict[str, Spread], key: str) -> str:
    """p50/p95/max of one kind of time; a tenth of a millisecond matters only below ten."""
    if f"{key}_p50" not in summary:
        return "-"
    medians = [summary[f"{key}_{part}"].median for part in ("p50", "p95", "max")]
    return "/".join(f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in medians)
