"""A race's rounds so far, in memory and, where a file is named, in it: later calls add to what earlier ones found.

The file is a report as `--json` prints it, written anew after each round, so that a call that is cut short loses one
round at most. Only what was run alike belongs together: the same peer, lengths and command lines.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from race.ratios import Bar
from race.table import Report, Row, Turn, as_json, row_of


class NotKept(Exception):
    """The file's rounds cannot be added to; the message says why."""


class Kept:
    """The report as it stands. `begun` has everything but rows. Raises NotKept when the file holds another race's."""

    def __init__(self, begun: Report, path: Path | None = None) -> None:
        self._path = path
        self.report = begun
        if path is not None and path.is_file():
            earlier = _read(path)
            if (earlier.peer, earlier.scale) != (begun.peer, begun.scale):
                raise NotKept(f"{path} was made with another peer or scale; name another file")
            self.report = replace(
                begun, commands=earlier.commands, rows=earlier.rows, notes=_all(earlier.notes, begun.notes)
            )

    def run(self, name: str, commands: list[str]) -> None:
        """These servers run now. Raises NotKept when earlier ones of that name had other flags."""
        if self.report.commands.get(name, commands) != commands:
            raise NotKept(f"{self._path} has rounds of {name} with other flags; name another file")
        self.report = replace(self.report, commands={**self.report.commands, name: commands})

    def note(self, note: str) -> None:
        """Something to be said below the table, once."""
        self.report = replace(self.report, notes=_all(self.report.notes, [note]))

    def rounds(self, load: str, model: str) -> list[Turn]:
        """Those of a load so far."""
        return [
            turn for row in self.report.rows if (row.load, row.model) == (load, model) for turn in row.rounds
        ]

    def add(self, load: str, model: str, bars: Sequence[Bar], turn: Turn) -> Row:
        """A round has been run; how its load stands now."""
        return self._put(row_of(load, model, bars, [*self.rounds(load, model), turn]))

    def fail(self, load: str, model: str, bars: Sequence[Bar], why: str) -> Row:
        """A round could not be run."""
        return self._put(row_of(load, model, bars, self.rounds(load, model), why))

    def _put(self, row: Row) -> Row:
        rows = {(each.load, each.model): each for each in self.report.rows} | {(row.load, row.model): row}
        self.report = replace(self.report, rows=list(rows.values()))
        if self._path is not None:
            part = self._path.with_name(f"{self._path.name}.part")
            part.write_text(as_json(self.report), "utf-8")
            os.replace(part, self._path)
        return row


def _read(path: Path) -> Report:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise NotKept(f"{path} holds no race: {error}") from error


def _all(notes: Sequence[str], more: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*notes, *more]))
