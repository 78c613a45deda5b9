"""What a tool-call format is: how it is recognised, read and written; the formats themselves are its instances.

Nearly all formats are one of three shapes, each with a reader here that the small files give their markers to:
an envelope of JSON that names the function and holds its arguments (`Envelope`), a name followed by the arguments as
JSON (`Named`), and arguments as tags, one for each parameter (`Tagged`).
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from oxlo_local.engines.text.toolcalls.shape import Free, Grammar, Json, OneOf, Part, Some, maybe
from oxlo_local.engines.text.toolcalls.tape import Ended, Say, Steps, Tape, Unparsable, escaped
from oxlo_local.engines.text.toolcalls.values import KEY, parameters, plain_string, suited, text_of

NAMES = ("name", "tool_name", "function")
ARGUMENTS = ("arguments", "parameters")
ANY = '{"type":"object"}'
BESIDE = (
    "id",
    "tool_call_id",
    "type",
    "index",
)  # a model's own ids are not unique in a conversation: ours are


class Calls(Protocol):
    """Where a reader puts what it has understood."""

    def begin(self, name: str, id: str | None = None) -> None:
        """A call of `name` begins. Raises Unparsable where no such tool was offered."""

    def add(self, text: str) -> None:
        """More of its arguments, as JSON text."""

    def close(self) -> None:
        """The call is whole."""

    def properties(self, name: str) -> Mapping[str, object]:
        """Schemas of a tool's parameters. Raises Unparsable where no such tool was offered."""


class Reader(Protocol):
    """Reads one section of calls, from behind the marker that opened it."""

    def __call__(self, tape: Tape, calls: Calls, marker: str) -> Steps[None]:
        """Raises Unparsable where the text is no call, Ended where it ends too early."""


@dataclass(frozen=True)
class Writing:
    """How the format writes calls. `{name}` stands for the name, `{json}` for the name as JSON, `{key}` for a key."""

    before: str
    after: str
    begin: str = ""
    between: str = ""
    end: str = ""
    key_before: str | None = None  # tags for each parameter; None = the arguments as one JSON object
    key_after: str = ""

    def text(self, calls: "list[tuple[str, str]]") -> str:
        """Calls (name, arguments as JSON text) as a model of this format would have written them."""
        return self.begin + self.between.join(self._call(*call) for call in calls) + self.end

    def _call(self, name: str, arguments: str) -> str:
        return self._head(name) + self._arguments(arguments) + self.after

    def _arguments(self, arguments: str) -> str:
        if self.key_before is None:
            return arguments
        return "".join(
            self._tag(key, textual=isinstance(value, str))
            + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            + self.key_after
            for key, value in json.loads(arguments).items()
        )

    def _head(self, name: str) -> str:
        return self.before.replace("{name}", name).replace("{json}", json.dumps(name))

    def _tag(self, key: str, *, textual: bool) -> str:
        assert self.key_before is not None
        return self.key_before.replace("{key}", key).replace("{textual}", "true" if textual else "false")

    @property
    def lead(self) -> str:
        """What all calls begin with."""
        return re.split(r"\{(?:name|json)\}", self.begin + self.before)[0]

    def grammar(self, tools: Mapping[str, str | None], *, parallel: bool) -> Grammar:
        """The grammar of at least one call of `tools`: name -> schema of the arguments, as JSON text; None = any.

        Raises UnsupportedValue for a schema that this format cannot be held to.
        """
        rules = tuple((self._head(name), *self._body(schema), self.after) for name, schema in tools.items())
        return Grammar(self.begin, rules, self.between if parallel else None, self.end)

    def beside(self, tools: Mapping[str, str | None], *, parallel: bool) -> Grammar:
        """The same, for an answer that may be something else instead of calls."""
        return self.grammar(tools, parallel=parallel)

    def _body(self, schema: str | None) -> tuple[Part, ...]:
        if self.key_before is None:
            return (Json(schema or ANY),)
        known = parameters(schema or ANY)
        if known is None:
            return (Some((OneOf(tuple(self._any_tags())),)),)
        parts: list[Part] = []
        for each in known:
            textual = plain_string(each.schema)
            value = text_of(each.schema) if textual else Json(json.dumps(each.schema))
            tag: tuple[Part, ...] = (self._tag(each.name, textual=textual), value, self.key_after)
            parts.extend(tag if each.required else (maybe(*tag),))
        return tuple(parts)

    def _any_tags(self) -> Iterator[tuple[Part, ...]]:
        """A tag with whatever name and value; one that says what it is comes in two kinds."""
        assert self.key_before is not None
        for textual in (True, False) if "{textual}" in self.key_before else (True,):
            before, _, behind = self._tag("{key}", textual=textual).partition("{key}")
            yield before, KEY, behind, Free() if textual else Json("{}"), self.key_after


@dataclass(frozen=True)
class Format:
    """One format. `detect` and `source` are regular expressions, for a call as the template renders it and for the
    template's own text; `begins` are the markers that open a section of calls within text."""

    name: str
    detect: str
    begins: tuple[str, ...]
    read: Reader
    writing: Writing
    source: str | None = None
    marks: tuple[str, ...] = ()  # further markers, where they may be tokens of their own
    bare: bool = False  # a call may also stand at the very beginning, without any marker
    short_ids: bool = False  # ids are 9 letters and digits
    silent: tuple[str, ...] = ()  # markers around content that say nothing

    notes: tuple[Part, ...] = ()  # a message that may come before the answer, any number of times
    final: tuple[Part, ...] = ()  # what stands before content
    resume: str = ""  # what ends content, so that a call may follow in the same answer

    @property
    def starts(self) -> tuple[str, ...]:
        """What a call can begin with."""
        return (*self.begins, self.writing.lead) if self.bare or not self.begins else self.begins


# -- the three shapes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Envelope:
    """`{"name": ..., "arguments": {...}}`, one or several, or a list of them, up to `close` ("" = no end marker)."""

    close: str = ""
    between: tuple[str, ...] = ()

    def __call__(self, tape: Tape, calls: Calls, marker: str) -> Steps[None]:
        yield from tape.space()
        listed = marker.endswith("[") or bool((yield from tape.meets("[")))
        while True:
            if not marker.endswith("{"):
                yield from tape.space()
                yield from tape.wants("{")
            marker = ""
            yield from envelope(tape, calls)
            calls.close()
            if not (yield from self._another(tape, listed)):
                return

    def _another(self, tape: Tape, listed: bool) -> Steps[bool]:
        try:
            yield from tape.space()
            if listed:
                if (yield from tape.wants(",", "]")) == ",":
                    return True
                if self.close:
                    yield from tape.space()
            elif self.between and (yield from tape.meets(*self.between)):
                return True
            if self.close:
                if not listed and (yield from tape.peek()) == "{":
                    return True  # several in one section, one a line
                yield from tape.wants(self.close)
        except Ended:
            pass  # many models leave the end marker to the end of the turn
        return False


def envelope(tape: Tape, calls: Calls) -> Steps[None]:
    """The members of one envelope, from behind its opening brace. The name may stand behind the arguments."""
    name, early, begun = None, None, False
    yield from tape.space()
    while True:
        key = yield from tape.json_string()
        yield from tape.space()
        yield from tape.wants(":")
        yield from tape.space()
        if key in NAMES and name is None and (yield from tape.peek()) == '"':
            name = yield from tape.json_string()
            calls.properties(name)
        elif key in ARGUMENTS and name is not None and not begun:
            calls.begin(name)
            begun = True
            yield from object_text(tape, calls.add)
        elif key in ARGUMENTS and not begun:
            said: list[str] = []
            yield from object_text(tape, said.append)
            early = "".join(said)
        elif key in BESIDE or name is not None:
            yield from tape.json_text()
        else:
            raise Unparsable  # some other object: not to hold it back until it is whole
        yield from tape.space()
        sign = yield from tape.wants(",", "}")
        if sign == "}":
            break
        yield from tape.space()
    if name is None:
        raise Unparsable
    if not begun:
        calls.begin(name)
        calls.add(early or "{}")


def object_text(tape: Tape, say: Say) -> Steps[None]:
    """A JSON object, said as it is read; one that was written as a string, or null, is said whole."""
    head = yield from tape.peek()
    if head == "{":
        yield from tape.json(say)
        return
    try:
        value = json.loads((yield from tape.json_text()))
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise Unparsable from None
    if value is not None and not isinstance(value, dict):
        raise Unparsable
    say(json.dumps(value or {}, ensure_ascii=False))


@dataclass(frozen=True)
class Named:
    """`enter NAME separator {...} close`, one or several, up to `end`; `enter` may be the marker itself.

    `name` is a regular expression for what stands before the separator: its group is the name, and the whole is the
    call's id where `whole_is_id`.
    """

    enter: str
    separator: str
    close: tuple[str, ...] = ()
    end: str = ""
    name: str = r'\s*([^\s{\["]+)\s*'
    whole_is_id: bool = False
    named_later: str = ""  # the name stands behind the separator, up to this

    def __call__(self, tape: Tape, calls: Calls, marker: str) -> Steps[None]:
        if marker != self.enter:
            yield from tape.space()
            yield from tape.wants(self.enter)
        while True:
            yield from self._call(tape, calls)
            calls.close()
            try:
                yield from tape.space()
                if not (yield from tape.meets(self.enter)):
                    if self.end:
                        yield from tape.meets(self.end)
                    return
            except Ended:
                return

    def _call(self, tape: Tape, calls: Calls) -> Steps[None]:
        head, _ = yield from tape.until(self.separator)
        if self.named_later:
            head, _ = yield from tape.until(self.named_later)
        found = re.fullmatch(self.name, head)
        if found is None:
            raise Unparsable
        calls.begin(found[1], head.strip() if self.whole_is_id else None)
        yield from tape.space()
        yield from object_text(tape, calls.add)
        try:
            for marker in self.close:
                yield from tape.space()
                yield from tape.wants(marker)
        except Ended:
            pass


@dataclass(frozen=True)
class Tagged:
    """`<function NAME> <parameter KEY>VALUE</parameter>... </function>`: how each tag begins and ends.

    `first` stands before the name and `after_name` behind it; `key` before a key and `value` between it and its
    value, whose end is `value_end`; `close` ends the call, `end` the section.
    """

    first: str
    after_name: tuple[str, ...]
    key: str
    value: str
    value_end: str
    close: str
    end: str = ""
    value_begin: str = ""  # a tag between `value` and the value
    lined: bool = False  # a line feed on either side of a value is not part of it

    def __call__(self, tape: Tape, calls: Calls, marker: str) -> Steps[None]:
        first = self.first
        if first and marker != first:
            yield from tape.space()
            yield from tape.wants(first)
        while True:
            yield from self._call(tape, calls)
            calls.close()
            try:
                yield from tape.space()
                follows = [tag for tag in (first, self.end) if tag]
                if not follows or (yield from tape.wants(*follows)) == self.end:
                    return
            except Ended:
                return

    def _call(self, tape: Tape, calls: Calls) -> Steps[None]:
        name, sign = yield from tape.until(*self.after_name, self.close)
        name = name.strip()
        calls.begin(name)
        properties = calls.properties(name)
        opening, keyed = "{", sign == self.key
        while sign != self.close:
            if not keyed:
                yield from tape.space()
                sign = yield from tape.wants(self.key, self.close)
                if sign == self.close:
                    break
            keyed = False
            key, _ = yield from tape.until(self.value)
            # DSML says in the tag what it is: name" string="true
            key, _, said = key.strip().partition('" ')
            calls.add(f"{opening}{json.dumps(key, ensure_ascii=False)}: ")
            opening = ", "
            if self.value_begin:
                yield from tape.space()
                yield from tape.wants(self.value_begin)
            schema = properties.get(key)
            text = plain_string(schema) if not said else said.endswith("true")
            yield from self._value(tape, calls, {} if said else schema, text=text)
        calls.add("}" if opening != "{" else "{}")

    def _value(self, tape: Tape, calls: Calls, schema: object, *, text: bool) -> Steps[None]:
        ends = (f"\n{self.value_end}", self.value_end) if self.lined else (self.value_end,)
        if self.lined:
            yield from tape.meets("\n")
        if text:
            calls.add('"')
            yield from tape.relay(lambda part: calls.add(quoted(part)), *ends, must=True)
            calls.add('"')
            return
        whole, _ = yield from tape.until(*ends)
        try:
            value = json.loads(whole)
        except ValueError:
            value = as_python(whole.strip())
        calls.add(json.dumps(suited(value, whole, schema), ensure_ascii=False))


def quoted(text: str) -> str:
    """The inside of a JSON string that stands for `text`; of two halves, each by itself gives the same."""
    return escaped(text.replace("\\", "\\\\").replace('"', '\\"'))


def as_python(text: str) -> object:
    """The value of a Python literal of JSON's kinds, as some templates show lists; else the text itself."""
    try:
        value: object = ast.literal_eval(text)
        json.dumps(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return value
