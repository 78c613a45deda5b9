"""Gemma 4: a notation of its own, with bare keys and strings between marks.

<|tool_call>call:find{count:3,place:<|"|>Oslo<|"|>}<tool_call|>
"""

import json
from collections.abc import Mapping

from oxlo_local.engines.text.toolcalls.format import Calls, Format, Writing, quoted
from oxlo_local.engines.text.toolcalls.gemma_notation import QUOTE, Notation, written
from oxlo_local.engines.text.toolcalls.shape import Grammar
from oxlo_local.engines.text.toolcalls.tape import MAX_DEPTH, Ended, Say, Steps, Tape, Unparsable


def read(tape: Tape, calls: Calls, marker: str) -> Steps[None]:
    """One call."""
    yield from tape.space()
    yield from tape.wants("call:")
    name, _ = yield from tape.until("{")
    calls.begin(name.strip())
    yield from members(tape, calls.add, 0)
    calls.close()
    try:
        yield from tape.space()
        yield from tape.wants("<tool_call|>")
    except Ended:
        pass


def value(tape: Tape, say: Say, depth: int) -> Steps[None]:
    """One value, said as JSON."""
    if depth == MAX_DEPTH:
        raise Unparsable
    yield from tape.space()
    head = yield from tape.peek()
    if head == "<":
        yield from tape.wants(QUOTE)
        say('"')
        yield from tape.relay(lambda part: say(quoted(part)), QUOTE, must=True)
        say('"')
    elif head == "{":
        yield from tape.wants("{")
        yield from members(tape, say, depth)
    elif head == "[":
        yield from tape.wants("[")
        yield from items(tape, say, depth)
    else:
        yield from tape.json(say)


def members(tape: Tape, say: Say, depth: int) -> Steps[None]:
    """The members of an object, from behind its brace."""
    opening = "{"
    while True:
        yield from tape.space()
        if opening == "{" and (yield from tape.meets("}")):
            say("{}")
            return
        key, _ = yield from tape.until(":")
        key = key.replace(QUOTE, "").strip().strip('"')
        say(f"{opening}{json.dumps(key, ensure_ascii=False)}: ")
        opening = ", "
        yield from value(tape, say, depth + 1)
        if (yield from closed(tape, "}")):
            say("}")
            return


def items(tape: Tape, say: Say, depth: int) -> Steps[None]:
    """The items of a list, from behind its bracket."""
    say("[")
    yield from tape.space()
    if (yield from tape.meets("]")):
        say("]")
        return
    while True:
        yield from value(tape, say, depth + 1)
        if (yield from closed(tape, "]")):
            say("]")
            return
        say(", ")


def closed(tape: Tape, close: str) -> Steps[bool]:
    """Whether the bracket closes here; else a comma was read."""
    yield from tape.space()
    sign = yield from tape.wants(",", close)
    return sign == close


class Notated(Writing):
    """Calls with their arguments in the notation."""

    def _arguments(self, arguments: str) -> str:
        return written(json.loads(arguments))

    def grammar(self, tools: Mapping[str, str | None], *, parallel: bool) -> Grammar:
        """The grammar of at least one call of `tools`. Raises UnsupportedValue."""
        notation = Notation()
        calls = tuple(
            (self._head(name), *notation.arguments(schema), self.after) for name, schema in tools.items()
        )
        return Grammar(self.begin, calls, self.between if parallel else None, self.end, notation.rules)


GEMMA4 = Format(
    "gemma4",
    detect=r"<\|tool_call>call:",
    begins=("<|tool_call>",),
    marks=("<tool_call|>", QUOTE),
    read=read,
    writing=Notated("<|tool_call>call:{name}", "<tool_call|>"),
)
