"""A model's output taken apart: what it thinks, what it says, what it calls.

Markers in the text divide it: `<think>` and its kin, and those of the model's tool-call format (`toolcalls/`). A marker
may come in pieces, so the end of the text that may become one waits; everything else leaves at once, the arguments of a
call too, while they are generated. What is said for a text does not depend on how it was cut into pieces.

**A call that is none.** What follows a marker may turn out not to be a call: wrong JSON, a tool that nobody offered. If
nothing of it was said yet, its text is content after all. If it had begun, it is reported `Broken`, with its text.

**Thinking.** Many templates open the thinking in the prompt, so that its first marker is not in the output; `thinking`
says so. White space around the thought is layout and is dropped, as is white space before a call.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from oxlo_local.engines.text.thinking import Markers
from oxlo_local.engines.text.toolcalls import harmony
from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.tape import Ended, Steps, Tape, Unparsable


class Enough(Exception):
    """The one call that was wanted is whole."""


INLINE = ("<think>\n", "\n</think>\n\n")


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """A piece of content."""

    text: str


@dataclass(frozen=True, slots=True)
class Begun:
    """Call number `index` of the answer begins; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """A piece of a call's arguments: JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Broken:
    """What looked like a call is none. `index`: the call that had begun, None where none had. `text`: all of it."""

    index: int | None
    text: str


Said = Thought | Spoken | Begun | Argued | Broken


class Channels:
    """Takes one choice's text apart.

    `tools` = name -> schema of the arguments (JSON text), empty where none may be called. `new_id` makes ids of calls.
    `opened`: the prompt ended within a thought. `resumed`: it ended within content. `inline`: reasoning is said as
    content, between tags. Not `parallel`: the answer ends with its first call.
    """

    def __init__(
        self,
        format: Format | None,
        thinking: Markers | None,
        *,
        tools: Mapping[str, str],
        new_id: Callable[[], str],
        opened: bool = False,
        resumed: bool = False,
        inline: bool = False,
        parallel: bool = True,
    ) -> None:
        self.thinking = opened
        """It is thinking now."""
        self.answering = not opened
        """It answers, or may: what an answer has to be holds from here on."""
        self.called = 0
        """Calls that are whole."""
        self.complete = False
        """Nothing more is wanted: the one call is whole."""
        self._format = format
        self._markers = thinking
        self._tools = tools
        self._new_id = new_id
        self._inline = inline
        self._parallel = parallel
        self._tape = Tape()
        self._said: list[Said] = []
        self._calls = 0  # begun
        self._open: int | None = None
        self._whole = False
        self._steps: Iterator[None] | None = self._answer(opened=opened, resumed=resumed)

    def feed(self, text: str) -> list[Said]:
        """Take more text; what can be said now."""
        self._tape.feed(text)
        return self._advance()

    def finish(self, *, whole: bool) -> list[Said]:
        """The rest. `whole`: the model ended its answer; otherwise it was cut off, and a call may be half."""
        self._whole = whole
        self._tape.end()
        return self._advance()

    def _advance(self) -> list[Said]:
        if self._steps is not None and not self.complete:
            try:
                next(self._steps)
            except (StopIteration, Ended, Enough):
                self._steps = None
        said, self._said = self._said, []
        return said

    # -- reading ------------------------------------------------------------------------------------------------------

    def _answer(self, *, opened: bool, resumed: bool) -> Steps[None]:
        format, thinking = self._format, self._markers
        if format is harmony.HARMONY:
            yield from self._harmony(resumed=resumed)
            return
        begins = format.begins if format is not None and self._tools else ()
        silent = format.silent if format is not None else ()
        markers = [*begins, *silent, *((thinking.opens, thinking.closes) if thinking else ())]
        if opened and thinking:
            yield from self._think(thinking.closes)
        bare = format is not None and format.bare and bool(self._tools) and not resumed
        while True:
            if bare:
                yield from self._bare()
            bare = False
            marker = yield from self._tape.relay(self._speak, *markers, trim=bool(begins))
            if not marker:
                return
            if thinking and marker == thinking.opens:
                yield from self._think(thinking.closes)
                bare = format is not None and format.bare and bool(self._tools)
            elif marker in begins:
                yield from self._section(marker)
            elif marker not in silent:
                yield from self._tape.space()  # the end of a thought whose beginning nobody saw

    def _think(self, *closes: str) -> Steps[None]:
        self.thinking = True
        if self._inline:
            self._say(Spoken(INLINE[0]))
        yield from self._tape.space()
        marker = yield from self._tape.relay(self._thought, *closes, trim=True)
        if marker:
            self.thinking = False
            self.answering = True
            if self._inline:
                self._say(Spoken(INLINE[1]))
            yield from self._tape.space()

    def _bare(self) -> Steps[None]:
        yield from self._tape.space()
        if (yield from self._tape.peek()) == "{":
            yield from self._section("")

    def _section(self, marker: str) -> Steps[None]:
        assert self._format is not None
        tape = self._tape
        tape.mark(tape.trimmed + marker)
        try:
            yield from self._format.read(tape, self, marker)
        except Unparsable:
            self._spoil(tape.recorded(), announced=bool(marker))
        except Ended:
            read = tape.recorded() + tape.rest()
            if self._whole:
                self._spoil(read, announced=bool(marker))
            elif self._open is None:
                self._speak(read)
            raise
        else:
            yield from tape.space()

    def _harmony(self, *, resumed: bool) -> Steps[None]:
        tape = self._tape
        if resumed:
            yield from harmony.body(tape, self._speak)
        while True:
            head = yield from harmony.header(tape)
            if harmony.calls_tool(head):
                yield from self._section(head)
            elif "analysis" in head:
                yield from self._think(*harmony.ENDS[:3])
            else:
                yield from harmony.body(tape, self._speak)
                yield from tape.space()

    # -- saying -------------------------------------------------------------------------------------------------------

    def _say(self, said: Said) -> None:
        last = self._said[-1] if self._said else None
        if isinstance(said, Argued) and isinstance(last, Argued) and last.index == said.index:
            self._said[-1] = Argued(said.index, last.text + said.text)
        else:
            self._said.append(said)

    def _speak(self, text: str) -> None:
        if text:
            self._say(Spoken(text))

    def _thought(self, text: str) -> None:
        self._say(Spoken(text) if self._inline else Thought(text))

    def _spoil(self, text: str, *, announced: bool) -> None:
        """What was read is no call. JSON that no marker `announced`, and that never began to be one, is content."""
        if self._open is None and not announced:
            self._speak(text)
        elif self._open is not None or text.strip():
            self._say(Broken(self._open, text))
        self._open = None

    # -- calls, for the format's reader -------------------------------------------------------------------------------

    def begin(self, name: str, id: str | None = None) -> None:
        if name not in self._tools:
            raise Unparsable
        self._open, self._calls = self._calls, self._calls + 1
        self._say(Begun(self._open, id or self._new_id(), name))

    def add(self, text: str) -> None:
        assert self._open is not None
        if text:
            self._say(Argued(self._open, text))

    def close(self) -> None:
        self._open = None
        self.called += 1
        self._tape.mark()
        if not self._parallel:
            self.complete = True
            raise Enough

    def properties(self, name: str) -> Mapping[str, object]:
        if name not in self._tools:
            raise Unparsable
        found = json.loads(self._tools[name]).get("properties")
        return found if isinstance(found, dict) else {}
