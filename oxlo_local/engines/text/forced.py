"""A format's calls as a grammar for llguidance, for answers that must be calls, or whose calls must be valid.

Markers that are control tokens stand in it as tokens, since no text can mean them.
"""

import json
import re
from collections.abc import Mapping, Sequence

from oxlo_local.engines.text.toolcalls.format import Free, Grammar, Maybe, Part, Schema
from oxlo_local.errors import UnsupportedValue


def lark(grammar: Grammar, tokens: Mapping[str, int], *, unless: Sequence[str] = ()) -> str:
    """The grammar in Lark. `tokens` = control tokens by their text.

    With `unless`, the markers that begin a call, the answer may also be text in which none of them occurs, and such
    text may come before the calls. Raises UnsupportedValue where a string would have to end with a control token, or
    none of the markers begins the format's own calls.
    """
    rules: list[str] = []
    begin, firsts = grammar.begin, grammar.calls
    if unless:
        lead = begin or str(firsts[0][0])
        mark = next((mark for mark in unless if lead.startswith(mark)), None)
        if mark is None:
            raise UnsupportedValue("this model's calls cannot be strict yet", param="tools")
        barred = "".join(f" & ~/(?s:.*){regex(each)}(?s:.*)/" for each in unless if each not in tokens)
        if mark in tokens:  # which no text can contain
            rules += ["start: TEXT? calls?", f"TEXT: /(?s:.+)/{barred}"]
        else:
            rules += [
                "start: TEXT | head calls",
                f"TEXT: /(?s:.*)/{barred}",
                f"head[lazy]: /(?s:.*){regex(mark)}/",
            ]
            if begin:
                begin = begin[len(mark) :]
            else:
                firsts = tuple((str(parts[0])[len(mark) :], *parts[1:]) for parts in firsts)
    more = "" if grammar.between is None else f"({literal(grammar.between, tokens)} call)*"
    name = "calls" if unless else "start"
    rules.append(f"{name}: {literal(begin, tokens)} first {more} {literal(grammar.end, tokens)}")
    rules.append(one_of("first", firsts, tokens, rules))
    if more:
        rules.append(one_of("call", grammar.calls, tokens, rules))
    return "\n".join(rules) + "\n"


def one_of(
    name: str, calls: tuple[tuple[Part, ...], ...], tokens: Mapping[str, int], rules: list[str]
) -> str:
    """The rule of one call, whatever it calls; rules that it needs are added to `rules`."""
    return f"{name}: {' | '.join(sequence(parts, tokens, rules) for parts in calls)}"


def sequence(parts: tuple[Part, ...], tokens: Mapping[str, int], rules: list[str]) -> str:
    """Parts in order; rules that they need are added to `rules`."""
    words = []
    waiting = list(parts)
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, Free):
            words.append(text_until(waiting.pop(0), tokens, rules))
        elif isinstance(part, Schema):
            rules.append(f"value{len(rules)}: %json {part.schema}")
            words.append(rules[-1].partition(":")[0])
        elif isinstance(part, Maybe):
            words.append(f"({sequence(part.parts, tokens, rules)})?")
        else:
            words.append(literal(part, tokens))
    return " ".join(filter(None, words))


def text_until(end: Part, tokens: Mapping[str, int], rules: list[str]) -> str:
    """Any text, and the literal that ends it."""
    assert isinstance(end, str)
    if any(token in end for token in tokens):
        raise UnsupportedValue("the format of this model's calls cannot be forced yet", param="tool_choice")
    rules.append(f"text{len(rules)}[lazy]: /(?s:.*){regex(end)}/")
    return rules[-1].partition("[")[0]


def regex(text: str) -> str:
    """A regular expression for one string, as it stands between slashes."""
    return re.escape(text).replace("/", "\\/").replace("\n", "n")


def literal(text: str, tokens: Mapping[str, int]) -> str:
    """A string, with the control tokens in it as tokens."""
    if not text:
        return ""
    if not tokens:
        return json.dumps(text, ensure_ascii=False)
    pieces = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)
    return " ".join(
        f"<[{tokens[piece]}]>" if piece in tokens else json.dumps(piece, ensure_ascii=False)
        for piece in pieces
        if piece
    )
