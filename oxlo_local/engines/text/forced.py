"""A format's calls as a grammar that llguidance reads, for answers that have to be calls.

Markers that are control tokens stand in it as tokens, since no text can mean them.
"""

import json
import re
from collections.abc import Mapping

from oxlo_local.engines.text.toolcalls.format import Free, Grammar, Maybe, Part, Schema
from oxlo_local.errors import UnsupportedValue


def lark(grammar: Grammar, tokens: Mapping[str, int]) -> str:
    """The grammar in Lark. `tokens` = control tokens by their text.

    Raises UnsupportedValue where a string would have to end with a control token.
    """
    rules: list[str] = []
    calls = [f"call{number}" for number in range(len(grammar.calls))]
    head, tail = literal(grammar.begin, tokens), literal(grammar.end, tokens)
    more = "" if grammar.between is None else f"({literal(grammar.between, tokens)} call)*"
    rules.append(f"start: {head} call {more} {tail}")
    rules.append(f"call: {' | '.join(calls)}")
    for name, parts in zip(calls, grammar.calls, strict=True):
        rules.append(f"{name}: {sequence(parts, tokens, rules)}")
    return "\n".join(rules) + "\n"


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
    pattern = re.escape(end).replace("/", "\\/").replace("\n", "n")
    rules.append(f"text{len(rules)}[lazy]: /(?s:.*){pattern}/")
    return rules[-1].partition("[")[0]


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
