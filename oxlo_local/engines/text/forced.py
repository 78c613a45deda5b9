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
from oxlo_local.engines.text.toolcalls.shape import Grammar, Json, OneOf, Part, Rule, Some, Written

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
        lark.define("thought", (wanted.thought.opens, Written(), wanted.thought.closes))
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
            forms.append(lark.after_text(calls, format.starts, wanted.thought))
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

    def after_text(self, calls: Grammar, starts: Sequence[str], thought: Markers | None) -> str:
        """Text in which none of the markers `starts` occurs and that is no thought, calls, or both."""
        lead = calls.begin or str(calls.calls[0][0])
        mark = next(mark for mark in starts if lead.startswith(mark))
        barred = "".join(f" & ~/(?s:.*){regex(each)}(?s:.*)/" for each in starts if each not in self.tokens)
        no_thought = ""
        if thought is not None and not any(token in thought.opens for token in self.tokens):
            no_thought = f" & ~/{regex(thought.opens)}(?s:.*)/"
        if mark in self.tokens:  # which no text can contain
            self.rules.append(f"TEXT: /(?s:.+)/{barred}{no_thought}")
            return "TEXT? calls?"
        # The text and the marker are one: only so can it be told where the text ends.
        self.rules += [
            f"TEXT: /(?s:.*)/{barred}{no_thought}",
            f"LEAD: /(?s:.*){regex(mark)}/{no_thought}",
            "lead[lazy]: LEAD",
        ]
        begin, firsts = calls.begin.removeprefix(mark), calls.calls
        if not calls.begin:
            firsts = tuple((str(parts[0]).removeprefix(mark), *parts[1:]) for parts in firsts)
        self.rules.append(f"first: {self._one_of(firsts)}")
        more = "" if calls.between is None else f"({self.literal(calls.between)} call)*"
        return f"TEXT | lead {self.literal(begin)} first {more} {self.literal(calls.end)}"

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
            case Written(pattern):
                return self._until(pattern, following)
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

    def _named(self, body: str) -> str:
        name = f"rule{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def _until(self, pattern: str, following: Iterator[Part]) -> str:
        """Text of a pattern, and the literal that ends it: its first words belong to the lexeme, or a token cuts it."""
        end = next(following)
        assert isinstance(end, str)
        head, *rest = self._split(end)
        plain = "" if head in self.tokens else head
        lazy = "" if plain == "" or any(piece in self.tokens for piece in rest) else "[lazy]"
        name = f"text{len(self.rules)}"
        self.rules.append(f"{name}{lazy}: /({slashed(pattern)}){regex(plain)}/")
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


def regex(text: str) -> str:
    """A regular expression for one string, as it stands between slashes."""
    return re.escape(text).replace("/", "\\/").replace("\n", "n")
