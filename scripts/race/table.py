"""How a race is told: a table for people, everything as JSON for programs."""

import os
import platform
import sys
from collections.abc import Sequence

import msgspec
import psutil
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from race.ratios import Bar, Estimate, Verdict, judge

WIDTH = 132


class Turn(Struct, frozen=True):
    """One round of one load. `foreign` = share of all cores that others took, ours and the peer's turn."""

    ours: dict[str, float]
    peer: dict[str, float]
    floor: dict[str, float]
    foreign: tuple[float, float] = (0.0, 0.0)


class Row(Struct, frozen=True):
    """A load: all rounds, and what they came to. `failed`: why there are none."""

    load: str
    model: str
    rounds: list[Turn]
    verdicts: list[Verdict]
    failed: str | None = None


def row_of(load: str, model: str, bars: Sequence[Bar], rounds: list[Turn], failed: str | None = None) -> Row:
    """A load's rounds, held against its bars."""
    verdicts = []
    for bar in bars:
        if not rounds or (bar.against == "floor" and not any(turn.floor for turn in rounds)):
            continue
        others = [turn.floor if bar.against == "floor" else turn.peer for turn in rounds]
        verdicts.append(judge(bar, [turn.ours for turn in rounds], others))
    return Row(load, model, rounds, verdicts, failed)


class Report(Struct, frozen=True):
    """A whole race. `commands` = the servers' command lines, by name of the shape."""

    machine: str
    peer: str
    scale: float
    commands: dict[str, list[str]]
    rows: list[Row]
    notes: list[str]

    @property
    def missed(self) -> bool:
        """Whether a bar was missed or a load failed."""
        return any(row.failed or any(each.holds is False for each in row.verdicts) for row in self.rows)


def machine(threads: int) -> str:
    """This machine, in words."""
    memory = psutil.virtual_memory().total / 1e9
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}, "
        f"{threads} engine threads, load average {os.getloadavg()[0]:.1f} at the start"
    )


def as_json(report: Report) -> str:
    """Everything, indented."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def _median(values: list[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2] if len(ordered) % 2 else sum(ordered[len(ordered) // 2 - 1 :][:2]) / 2
    spread = f" ({ordered[0]:.4g}-{ordered[-1]:.4g})" if len(ordered) > 1 else ""
    return f"{middle:.4g}{spread}"


def bounds(bar: Bar, estimate: Estimate | None) -> str:
    """The estimate with its interval, as the bar reads it."""
    if estimate is None:
        return "-"
    unit = {"extra": "", "own_at_most": ""}.get(bar.kind, "x")
    sign = "+" if bar.kind == "extra" and estimate.mean >= 0 else ""
    if estimate.rounds == 1:
        return f"{sign}{estimate.mean:.3g}{unit}"
    return f"{sign}{estimate.mean:.3g}{unit} [{estimate.low:.3g}, {estimate.high:.3g}]"


def demanded(bar: Bar) -> str:
    """The bar, in words."""
    if bar.value is None:
        return ""
    text = {
        "at_least": f">= {bar.value:g}x",
        "at_most": f"<= {bar.value:g}x",
        "extra": f"<= +{bar.value:g}",
        "own_at_most": f"<= {bar.value:g}",
    }[bar.kind]
    return f"{text} of the floor" if bar.against == "floor" else text


def verdict(found: Verdict) -> str:
    """Held or not."""
    if found.estimate is None:
        return "" if found.bar.value is None else "NO FIGURE"
    word = {None: "", True: "holds", False: "MISSED"}[found.holds]
    return f"{word}, unsure" if found.unsure else word


def lines(row: Row) -> list[str]:
    """How a load stands, a line for each figure."""
    return [
        f"{each.bar.figure}{' / floor' if each.bar.against == 'floor' else ''} "
        f"{bounds(each.bar, each.estimate)} {verdict(each)}".rstrip()
        for each in row.verdicts
    ]


def show(report: Report) -> None:
    """The table, on stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(report.machine, markup=False)
    console.print(f"peer: {report.peer}", markup=False)
    if report.scale != 1:
        console.print(f"every length times {report.scale:g}: a trial, no measurement", style="yellow")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for head in ("load", "figure", "ours", "other", "ratio or difference", "bar", "", "others' CPU"):
        table.add_column(head, overflow="fold", no_wrap=head == "figure")
    for row in report.rows:
        if row.failed:
            table.add_row(row.load, row.failed, "", "", "", "", "FAILED", "")
        weather = max((max(turn.foreign) for turn in row.rounds), default=0.0)
        for number, each in enumerate(row.verdicts):
            figure, bar = each.bar.figure, each.bar
            others = [turn.floor if bar.against == "floor" else turn.peer for turn in row.rounds]
            table.add_row(
                f"{row.load} ({row.model})" if number == 0 else "",
                figure,
                _median([turn.ours[figure] for turn in row.rounds if figure in turn.ours]),
                _median([other[figure] for other in others if figure in other]),
                bounds(bar, each.estimate),
                demanded(bar),
                verdict(each),
                f"{weather:.0%}" if number == 0 else "",
            )
    console.print(table)
    console.print(
        "Medians over the rounds (lowest-highest); ratios ours / other's are geometric means of the rounds' own with "
        "Student's 95 % interval. Times in ms. A bar of 1x holds when the lower bound reaches 0.97, any other one when "
        "the mean does; unsure: the interval reaches across it. others' CPU: the largest share of all cores that "
        "neither racer nor client took during a turn.",
        markup=False,
        style="dim",
    )
    for note in report.notes:
        console.print(note, markup=False)
