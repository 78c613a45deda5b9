"""Text in which none of some markers occurs, as lexemes whose masks llguidance finds quickly.

A mask is cheap where hardly any token may come, and where llguidance sees that a whole slice of the vocabulary may:
it looks whether one of the lexemes that are open is, from here on, characters of a class again and again, and the class
holds the slice's (`SLICES`). It does not look into lazy lexemes, nor through a complement without a bound: either costs
a walk over all of the vocabulary for each token, a millisecond at 150 k of them.

So a text goes in pieces of three kinds, each a lexeme. It is cut before each character `<` that markers begin with:

    what stands before the first     [^<]+
    a piece without a divider        <[^<>]*
    a piece with one                 (<[^<>]*> and not <mark>)[^<]*

The divider (here >) is one character of each marker's. While a piece may still become a marker, the second kind is open
beside it, and is the class that llguidance looks for.
"""

import re
from collections.abc import Sequence

# As llguidance's own, which are made for the inside of JSON strings; what markers are made of is left out too.
PLAIN = r'[^"\\<>\[\]{:\x00-\x1F\x7F]'
SLICES = (r"[\x20\x0A\x0D\x09]+", f"{PLAIN}{{1,10}}", f"{PLAIN}{{1,30}}", f"{PLAIN}+")


def pieces(marks: Sequence[str]) -> list[str]:
    """Lark terminals of which any number, one behind the other, is a text without `marks`, and every such text.

    What ends the text may be any of the marks. Raises ValueError for marks of which one has another's first character
    inside, or no divider.
    """
    firsts = "".join(sorted({mark[0] for mark in marks}))
    if any(character in mark[1:] for mark in marks for character in firsts):
        raise ValueError(f"a marker has a first character inside: {marks}")
    free = f"[^{chars(firsts)}]"
    found = [f"/{free}+/"]
    for first in firsts:
        own = [mark for mark in marks if mark[0] == first]
        if first in own:
            continue
        heads = divided(own)
        ends = "".join(sorted({head[-1] for head in heads.values()}))
        before = f"{chars(first)}[^{chars(firsts + ends)}]*"
        barred = "|".join(sorted({exactly(head) for head in heads.values()}))
        found += [f"/{before}/", f"(/{before}[{chars(ends)}]/ & ~/{barred}/) /{free}*/"]
        found += [
            f"/{exactly(head)}({unlike(mark[len(head) :], firsts)})?/"
            for mark, head in heads.items()
            if mark != head
        ]
    return found


def tellable(marks: Sequence[str]) -> bool:
    """Whether `pieces` can tell these markers apart: those of one format always, a thought's beside them nearly so."""
    try:
        return bool(pieces(marks))
    except ValueError:
        return False


def divided(marks: Sequence[str]) -> dict[str, str]:
    """The markers, each with its part up to the divider: the last character that it has once only, or that all have.

    Raises ValueError where a divider of one stands elsewhere in another.
    """
    own = {mark: [character for character in mark[1:] if mark.count(character) == 1] for mark in marks}
    common = [character for character in own[marks[0]] if all(character in each for each in own.values())]
    for dividers in ({mark: each[-1:] for mark, each in own.items()}, dict.fromkeys(marks, common[-1:])):
        if not all(dividers.values()):
            continue
        heads = {mark: mark[: mark.index(character) + 1] for mark, (character,) in dividers.items()}
        if not any(end in head[:-1] for head in heads.values() for (end,) in dividers.values()):
            return heads
    raise ValueError(f"the markers have no dividers: {marks}")


def unlike(tail: str, barred: str) -> str:
    """An expression for some text that does not begin with `tail`, without the characters `barred`."""
    other = f"[^{chars(tail[0] + barred)}][^{chars(barred)}]*"
    return other if len(tail) == 1 else f"{other}|{exactly(tail[0])}({unlike(tail[1:], barred)})?"


def core(end: str) -> str:
    """The marker in what ends a text: without the white space around it, up to its first character's second place."""
    mark = end.strip()
    again = mark.find(mark[:1], 1)
    return mark if again < 0 else mark[:again]


def counted(without: str, least: int, most: int | None) -> str:
    """Text of so many characters (`most` None = any number), none of them in `without`, as a terminal or nothing."""
    if most == 0:
        return ""
    terminal = f"/[^{chars(without)}]{times(max(1, least), most)}/"
    return terminal if least else f"({terminal})?"


def tagged(mark: str, least: int, most: int) -> tuple[str, str]:
    """Texts of so many characters with the marker's first one among them, which `counted` leaves out; and the marker.

    What stands before that character, and a lazy terminal. It is narrow, so that lengths need not be counted across
    the two: the character comes in the first half, and what follows it is not what follows in the marker.
    """
    half = most // 2
    late = f"/{exactly(mark[0])}[^{chars(mark[:2])}](?s:.){times(0, max(0, most - half - 2))}{exactly(mark)}/"
    return counted(mark[0], max(0, least - 2), half), late


def times(least: int, most: int | None) -> str:
    """A regular expression's repetition."""
    return f"{{{least},{'' if most is None else most}}}"


def exactly(text: str) -> str:
    """A regular expression for one string, as it stands between slashes."""
    return re.escape(text).replace("/", "\\/").replace("\n", "n")


def chars(text: str) -> str:
    """Characters as they stand in a class, between slashes."""
    return exactly(text)
