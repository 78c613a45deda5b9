"""What an answer has to be, as one grammar for llguidance: thoughts before it, content of a form, calls that are valid.

A model that may think is let: what is asked of the answer holds from the end of its thoughts. Markers that are control
tokens stand in the grammar as tokens, since no text can mean them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from oxlo_local.calls import Constraint
from oxlo_local.engines.text.grammar import Frame, guided
from oxlo_local.engines.text.thinking import Markers
from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.shape import (
    Free,
    Grammar,
    Json,
    OneOf,
    Part,
    Rule,
    Some,
    Written,
)
from oxlo_local.engines.text.unmarked import core, counted, exactly, pieces, tagged, tellable, times

Content = Constraint | Literal["text"] | None


@dataclass(frozen=True)
class Wanted:
    """What is asked of an answer. `content` is what it may be instead of calls: a constraint, any text, or nothing.

    `calls`: the calls that it may be, None where it may be none. `thought`: the markers of a thought that may come
    first. `resumed`: the prompt ends within the content, which the answer goes on with.
    """

    format: Format
    content: Content
    calls: Grammar | None = None
    thought: Markers | None = None
    resumed: bool = False


def frame(wanted: Wanted, tokens: Mapping[str, int]) -> Frame:
    """The grammar of the whole answer. `tokens` = control tokens by their text."""
    lark = Lark(tokens)
    format, content, calls = wanted.format, wanted.content, wanted.calls
    before = ""
    if wanted.thought is not None:
        lark.define("thought", (wanted.thought.opens, Free(), wanted.thought.closes))
        lark.rules.append("gap: /[ \\n]{1,8}/")
        before = "(thought gap?)?"
    elif format.notes and not wanted.resumed:
        lark.define("note", format.notes)
        before = "note*"
    lark.rules.append(f"start: {before} answer")
    final = "" if wanted.resumed else lark.sequence(format.final)
    forms = []
    if isinstance(content, Constraint):
        forms.append(f"{final} @inside")
    elif content is not None and format.notes:
        lark.rules.append("TEXT: /(?s:.+)/")
        forms.append(f"{final} TEXT?")
    if calls is not None:
        lark.calls(calls, begin=format.resume if wanted.resumed else "")
        if content != "text" or format.notes:
            forms.append("calls")
        else:
            opens = () if wanted.thought is None else (wanted.thought.opens,)
            marks = (*format.starts, *opens)
            forms.append(f"{lark.text(marks if tellable(marks) else format.starts)} calls?")
    lark.rules.append(f"answer: {' | '.join(forms)}")
    inside = content if isinstance(content, Constraint) else None
    return Frame("\n".join(lark.rules) + "\n", inside, "tools" if inside is None else inside.param)


@dataclass
class Lark:
    """Rules in llguidance's dialect of Lark, as they are collected."""

    tokens: Mapping[str, int]
    rules: list[str] = field(default_factory=list)

    def define(self, name: str, parts: Sequence[Part]) -> None:
        """Add a rule."""
        self.rules.append(f"{name}: {self.sequence(parts)}")

    def calls(self, calls: Grammar, *, begin: str = "") -> None:
        """Add the rules of calls, which stand together in `calls`; a call by itself is `call`."""
        for name, parts in calls.rules.items():
            self.define(name, parts)
        self.rules.append(f"call: {self._one_of(calls.calls)}")
        more = "" if calls.between is None else f"({self.literal(calls.between)} call)*"
        head, end = self.literal(begin + calls.begin), self.literal(calls.end)
        self.rules.append(f"calls: {head} call {more} {end}")

    def text(self, marks: Sequence[str]) -> str:
        """Text in which none of these markers occurs; those with tokens in them never do."""
        written = [mark for mark in marks if not any(token in mark for token in self.tokens)]
        if not written:
            return "(/(?s:.+)/)?"
        first, *others = map(self._terminal, pieces(written))
        return self._named(f"{first}? ({' | '.join(others)})*")

    def _one_of(self, forms: Sequence[Sequence[Part]]) -> str:
        return " | ".join(self.sequence(parts) or '""' for parts in forms)

    def sequence(self, parts: Sequence[Part]) -> str:
        """Parts in order; rules that they need are added."""
        waiting = iter(parts)
        return " ".join(filter(None, (self._word(part, waiting) for part in waiting)))

    def _word(self, part: Part, following: Iterator[Part]) -> str:
        match part:
            case str():
                return self.literal(part)
            case Rule(name):
                return name
            case Free():
                return self._free(part, literal_of(next(following)))
            case Written():
                return self._until(part, literal_of(next(following)))
            case Json(schema):
                return self._named(f"%json {guided(schema)}")
            case OneOf(forms):
                return f"({self._one_of(forms)})"
            case Some():
                return self._some(part)

    def _some(self, part: Some) -> str:
        once = self._named(self.sequence(part.parts))
        most = "" if part.most is None else str(part.most)
        if not part.between:
            return f"{once}{{{part.least},{most}}}"
        if part.most == 0:
            return ""
        more = f"{max(0, part.least - 1)},{'' if part.most is None else part.most - 1}"
        several = f"{once} ({self.literal(part.between)} {once}){{{more}}}"
        return f"({several})" if part.least else f"({several})?"

    def _named(self, body: str, options: str = "") -> str:
        name = f"rule{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body}")
        return name

    def _terminal(self, body: str) -> str:
        name = f"TERMINAL{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def _free(self, free: Free, end: str) -> str:
        """Free text and the literal that ends it.

        White space at the head of that is taken off where a call is read: it counts as text while there is room for
        more of that, and may be missing.
        """
        least, most = free.least, free.most
        space = end[: len(end) - len(end.lstrip())]
        behind = end[len(space) :]
        head, *more = self._split(behind)
        mark = core(head)
        if head in self.tokens or (more and mark == head):  # a token tells that the text ends
            lead = "" if head in self.tokens else head
            name = self._named(f"/(?s:.){times(least, most)}{exactly(space + lead)}/")
            return f"{name} {self.literal(behind.removeprefix(lead))}"
        if least == most:
            return f"{counted(mark[0], least, most)} {self.literal(end)}"
        whole = self.literal(behind)
        least += bool(least and space)
        plain = counted(mark[0], least, most)
        if most is None:
            odd = " | ".join(map(self._terminal, pieces((mark,))[1:]))
            alone = f"| ({odd})+" if free.least == 1 else ""
            return f"({plain} ({odd})* {alone}) {whole}"
        if space:
            plain += f" ({self.literal(space)})?"
        if most < 4 or least > most // 2 + 2:
            return f"{plain} {whole}"
        early, late = tagged(mark, least, most)
        return (
            f"({plain} {whole} | {early} {self._named(late, '[lazy]')} {self.literal(behind[len(mark) :])})"
        )

    def _until(self, written: Written, end: str) -> str:
        """Text of a pattern, and the literal that ends it: its first words belong to the lexeme, or a token cuts it."""
        head, *rest = self._split(end)
        plain = "" if head in self.tokens else head
        clear = written.clear or plain == "" or any(piece in self.tokens for piece in rest)
        name = self._named(f"/({slashed(written.pattern)}){exactly(plain)}/", "" if clear else "[lazy]")
        return f"{name} {self.literal(end.removeprefix(plain))}"

    def literal(self, text: str) -> str:
        """A string, with the control tokens in it as tokens."""
        return " ".join(
            f"<[{self.tokens[piece]}]>" if piece in self.tokens else json.dumps(piece, ensure_ascii=False)
            for piece in self._split(text)
        )

    def _split(self, text: str) -> list[str]:
        """The control tokens in a text, and what stands between them."""
        if not self.tokens:
            return [text] if text else []
        return list(filter(None, re.split("(" + "|".join(map(re.escape, self.tokens)) + ")", text)))


def slashed(pattern: str) -> str:
    """A regular expression as it stands between slashes."""
    return re.sub(r"\\.|/|\n", lambda found: {"/": "\\/", "\n": "\\n"}.get(found[0], found[0]), pattern)


def literal_of(part: Part) -> str:
    """The literal that a format has behind free text."""
    assert isinstance(part, str)
    return part
