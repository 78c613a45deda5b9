"""Text that comes in pieces, read as though it were whole: what parsers of a model's output are written with.

A parser is a generator. It asks the tape for what comes next with `yield from`, and where the text that has come does
not decide, it is suspended until more is fed. So a format reads from top to bottom like its sample, and where the
pieces were cut cannot matter: nothing is decided by what has not come yet, other than that the text has ended.
"""

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Say = Callable[[str], None]

MAX_DEPTH = 64  # of brackets in a call's arguments; the parsers descend by recursion
LITERAL = re.compile(r"[-+.\w]*")
SPACE = " \t\r\n"


class Ended(Exception):
    """The text ended where more was wanted."""


class Unparsable(Exception):
    """The text is not what its markers promised."""


class Tape:
    """The text not read yet, and a record of what was read since `mark`."""

    def __init__(self) -> None:
        self._text = ""
        self._ended = False
        self._record: list[str] = []
        self.trimmed = ""
        """White space that the last `relay` dropped."""

    def feed(self, text: str) -> None:
        """More text has come."""
        self._text += text

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    def mark(self, read: str = "") -> None:
        """Record anew from here; `read` counts as read already."""
        self._record = [read]

    def recorded(self) -> str:
        """What was read since the mark."""
        return "".join(self._record)

    def rest(self) -> str:
        """All that has come and is not read yet; now it is."""
        return self._take(len(self._text))

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        self._record.append(taken)
        return taken

    def _more(self) -> Steps[None]:
        if self._ended:
            raise Ended
        yield

    # -- asking -------------------------------------------------------------------------------------------------------

    def peek(self) -> Steps[str]:
        """The next character, unread. Raises Ended."""
        while not self._text:
            yield from self._more()
        return self._text[0]

    def space(self) -> Steps[None]:
        """Skip white space. Raises Ended where nothing follows it."""
        while (yield from self.peek()) in SPACE:
            self._take(len(self._text) - len(self._text.lstrip(SPACE)))

    def meets(self, *markers: str) -> Steps[str]:
        """The one of `markers` that comes next, read; "" where something else, or the end, comes."""
        while True:
            for marker in markers:
                if self._text.startswith(marker):
                    return self._take(len(marker))
            if self._ended or not any(marker.startswith(self._text) for marker in markers):
                return ""
            yield

    def wants(self, *markers: str) -> Steps[str]:
        """The one of `markers` that comes next, read. Raises Unparsable where another text comes, or Ended."""
        marker = yield from self.meets(*markers)
        if not marker:
            cut = self._ended and any(marker.startswith(self._text) for marker in markers)
            raise Ended if cut else Unparsable
        return marker

    def until(self, *markers: str) -> Steps[tuple[str, str]]:
        """The text before the first of `markers`, and which it was; both are read. Raises Ended."""
        searched = 0
        while True:
            if (found := first(self._text, markers, searched)) is not None:
                place, marker = found
                return self._take(place + len(marker))[:place], marker
            searched = max(0, len(self._text) - max(map(len, markers)))
            yield from self._more()

    def relay(self, say: Say, *markers: str, trim: bool = False, must: bool = False) -> Steps[str]:
        """Say the text as it comes, up to the first of `markers`, which is read and returned; "" at the end.

        What may become a marker waits until that is decided; with `trim`, so does white space before it, and is
        dropped when a marker follows. One `must` follow: raises Ended where none does.
        """
        while True:
            if (found := first(self._text, markers)) is not None:
                place, marker = found
                before = self._take(place)
                self._take(len(marker))
                said = before.rstrip(SPACE) if trim else before
                self.trimmed = before[len(said) :]
                if said:
                    say(said)
                return marker
            size = len(self._text)
            if must or not self._ended:
                size -= held(self._text, markers)
                if trim:
                    size = len(self._text[:size].rstrip(SPACE))
            if size:
                say(self._take(size))
            if self._ended and not must:
                return ""
            yield from self._more()

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def json(self, say: Say, depth: int = 0) -> Steps[None]:
        """One JSON value, said as it is read. Raises Unparsable at the first character that cannot be JSON.

        Line feeds and other control characters within a string, which models forget to escape, are said escaped.
        """
        head = yield from self.peek()
        if head == '"':
            yield from self._string(say)
        elif head in "{[":
            if depth == MAX_DEPTH:
                raise Unparsable
            yield from self._items(say, depth)
        else:
            say((yield from self._literal()))

    def json_text(self) -> Steps[str]:
        """One JSON value's text, whole."""
        said: list[str] = []
        yield from self.json(said.append)
        return "".join(said)

    def json_string(self) -> Steps[str]:
        """The value of one JSON string."""
        if (yield from self.peek()) != '"':
            raise Unparsable
        try:
            return str(json.loads((yield from self.json_text())))
        except ValueError:
            raise Unparsable from None

    def _items(self, say: Say, depth: int) -> Steps[None]:
        is_object = self._text[0] == "{"
        close = "}" if is_object else "]"
        say(self._take(1))
        yield from self.space()
        if (yield from self.meets(close)):
            say(close)
            return
        while True:
            if is_object:
                if (yield from self.peek()) != '"':
                    raise Unparsable
                yield from self._string(say)
                yield from self.space()
                yield from self.wants(":")
                say(": ")
                yield from self.space()
            yield from self.json(say, depth + 1)
            yield from self.space()
            sign = yield from self.wants(",", close)
            say(", " if sign == "," else sign)
            if sign == close:
                return
            yield from self.space()

    def _string(self, say: Say) -> Steps[None]:
        say(self._take(1))
        while True:
            yield from self.peek()
            run = re.match(r'[^"\\]*', self._text)
            if run and run.end():
                say(escaped(self._take(run.end())))
                continue
            if self._text[0] == '"':
                say(self._take(1))
                return
            while len(self._text) < 2 or (self._text[1] == "u" and len(self._text) < 6):
                yield from self._more()
            escape = self._text[: 6 if self._text[1] == "u" else 2]
            if not re.fullmatch(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})', escape):
                raise Unparsable
            say(self._take(len(escape)))

    def _literal(self) -> Steps[str]:
        while (run := LITERAL.match(self._text)) and run.end() == len(self._text) and not self._ended:
            yield
        assert run is not None
        word = self._take(run.end())
        try:
            json.loads(word, parse_constant=_refuse)
        except ValueError:
            raise (Ended if self._ended and not self._text else Unparsable) from None
        return word


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def escaped(text: str) -> str:
    """The inside of a JSON string whose backslashes and quotes are written already: control characters escaped."""
    return re.sub(r"[\x00-\x1f]", lambda found: json.dumps(found[0])[1:-1], text)


def first(text: str, markers: Sequence[str], start: int = 0) -> tuple[int, str] | None:
    """Place and name of the marker that comes first; of two at one place, the longer."""
    found = [(place, -len(marker), marker) for marker in markers if (place := text.find(marker, start)) >= 0]
    if not found:
        return None
    place, _, marker = min(found)
    return place, marker


def held(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a marker."""
    longest = min(len(text), max(map(len, markers), default=1) - 1)
    for size in range(longest, 0, -1):
        tail = text[-size:]
        if any(marker.startswith(tail) for marker in markers):
            return size
    return 0
