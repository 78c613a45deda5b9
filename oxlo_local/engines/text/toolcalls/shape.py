"""What calls look like that are held to a form: literal text, and places for what the model chooses.

A format makes a `Grammar` of these (`format.Writing`); `forced` turns it into llguidance's notation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Json:
    """A place for JSON that is valid against `schema` (JSON text)."""

    schema: str


@dataclass(frozen=True)
class Free:
    """A place for text of `least` to `most` characters (None = any number), up to the literal behind it."""

    least: int = 0
    most: int | None = None


@dataclass(frozen=True)
class Written:
    """A place for text that matches `pattern`, a regular expression, and ends where the literal behind it begins.

    `clear`: it cannot have the character in it that the literal begins with.
    """

    pattern: str
    clear: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of several forms."""

    forms: "tuple[tuple[Part, ...], ...]"


@dataclass(frozen=True)
class Some:
    """Parts repeated, `most` times at most (None = without end), with `between` in between."""

    parts: "tuple[Part, ...]"
    most: int | None = None
    least: int = 0
    between: str = ""


@dataclass(frozen=True)
class Rule:
    """Parts that the grammar has under a name."""

    name: str


Part = str | Json | Free | Written | OneOf | Some | Rule


@dataclass(frozen=True)
class Grammar:
    """`begin`, one of `calls` (or several with `between`; None = one only), `end`. Strings are literal."""

    begin: str
    calls: tuple[tuple[Part, ...], ...]
    between: str | None
    end: str
    rules: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)


def maybe(*parts: Part) -> Some:
    """Parts that may be left out together."""
    return Some(parts, most=1)
