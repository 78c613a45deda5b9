"""Text without markers: the lexemes take what has none of them, nothing else, and are cheap to mask."""

import json
import random

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from oxlo_local.calls import (
    CallArguments,
    CallBroken,
    Finished,
    Message,
    Sampling,
    TextCall,
    TokenizeCall,
    Tokens,
    Tool,
)
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.engines.text.forced import Lark, Wanted, frame
from oxlo_local.engines.text.thinking import MARKERS
from oxlo_local.engines.text.toolcalls import FORMATS
from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.harmony import HARMONY
from oxlo_local.engines.text.toolcalls.shape import Free
from oxlo_local.engines.text.unmarked import SLICES, core, pieces, tellable
from tests.engines.text.conftest import MakeEngine, drive

BYTES = LLTokenizer("byte")
MARKS = [
    ("</parameter>",),
    ("<tool_call>", "<function="),
    ("<tool_call>", "<think>"),
    ('{"name": "', "<|python_tag|>"),
    ("Action:\n```json\n", "Action: ```json\n"),
    ("functools[",),
    ("[TOOL_CALLS]", "[THINK]"),
    ("<",),
]


def taken(source: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, source, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.consume_tokens(BYTES.tokenize_str(text)) and matcher.is_accepting()


def rules(marks: tuple[str, ...], end: str) -> str:
    first, *others = pieces(marks)
    named = [f"P{place}: {piece}" for place, piece in enumerate(others)]
    segments = " | ".join(f"P{place}" for place in range(len(others)))
    text = f"({first})? ({segments})*" if others else f"({first})?"
    return "\n".join([f"start: text {json.dumps(end)}?", f"text: {text}", *named]) + "\n"


@pytest.mark.parametrize("marks", MARKS, ids=" ".join)
def test_a_text_is_taken_where_no_marker_is_in_it(marks: tuple[str, ...]) -> None:
    draw = random.Random(7)
    source = rules(marks, marks[0])
    shreds = [
        mark[start:stop] for mark in marks for start, stop in ((0, 1), (0, -1), (1, None), (0, None), (0, 4))
    ]
    seen = {True: 0, False: 0}
    for _ in range(300):
        text = "".join(draw.choice([*shreds, "a", " b\n", "é", '"', ">"]) for _ in range(draw.randint(0, 6)))
        whole = not any(mark in text.removesuffix(marks[0]) for mark in marks)
        assert taken(source, text) is whole, text
        seen[whole] += 1
    assert min(seen.values()) > 20


def test_markers_that_cannot_be_told_apart_are_refused() -> None:
    for marks in (("<a<",), ("<aa", "<aab"), ("<>", "<x><")):
        with pytest.raises(ValueError, match="marker"):
            pieces(marks)


def test_a_thought_that_cannot_be_told_from_calls_may_stand_in_the_text() -> None:
    marks = ("Action:\n```json\n", "<|START_THINKING|>")
    assert not tellable(marks) and all(tellable((mark,)) for mark in marks)


def test_the_marker_in_what_ends_a_text() -> None:
    ends = {
        "\n</parameter>\n": "</parameter>",
        "<|end|><|start|>assistant": "<|end|>",
        "</think>": "</think>",
    }
    assert {end: core(end) for end in ends} == ends


TEXTS = '{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"string","minLength":1}},"required":["a"]}'


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_no_lexeme_of_free_text_is_lazy(format: Format) -> None:
    """Each token of a lazy one costs a walk over the vocabulary."""
    calls = format.writing.grammar({"find": TEXTS, "any": None}, parallel=True)
    for thought in (None,) if format is HARMONY else MARKERS:
        for wanted in (Wanted(format, None, calls, thought), Wanted(format, "text", calls, thought)):
            assert "lazy" not in frame(wanted, {}).lark


@pytest.mark.parametrize("least", [0, 1, 2, 5])
@pytest.mark.parametrize("most", [None, 1, 2, 3, 5, 9])
def test_lengths_hold_with_and_without_white_space_before_the_marker(least: int, most: int | None) -> None:
    if most is not None and most < least:
        return
    lark = Lark({})
    lark.define("start", (Free(least, most), "\n</p>\n"))
    source = "\n".join(lark.rules) + "\n"
    for count in range(12):
        fits = least <= count and (most is None or count <= most)
        assert taken(source, "x" * count + "\n</p>\n") is fits
        assert not taken(source, "x" * count + "</p>\n") or fits
        if count > 4:
            assert not taken(source, "a<bc" + "x" * (count - 4) + "\n</p>\n") or fits


def test_the_slices_lie_in_one_another() -> None:
    assert len(SLICES) == 4 and len({piece[: piece.index("]")] for piece in SLICES[1:]}) == 1


# -- real decoding ----------------------------------------------------------------------------------------------------

CODER = (
    "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments.items() %}"
    "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}{% endfor %}"
)
NOTE = {
    "type": "object",
    "properties": {
        "short": {"type": "string", "maxLength": 7},
        "long": {"type": "string", "minLength": 1, "maxLength": 30},
        "exact": {"type": "string", "minLength": 3, "maxLength": 3},
        "bounded": {"type": "string", "minLength": 2, "maxLength": 9},
    },
    "required": ["short", "long", "exact", "bounded"],
    "additionalProperties": False,
}


def test_free_text_in_tags_is_read_as_it_is_valid(make_engine: MakeEngine) -> None:
    """Over a model that likes tags and line feeds; it ends where it has to."""
    engine = make_engine(chat_template=CODER)
    likes = {token: 5.0 for text in ("<", "</", "\n", ">", "par") for token in tokens_of(engine, text)}
    called = 0
    for seed in range(6):
        call = TextCall(
            f"c{seed}",
            [Message("user", "go")],
            tools=[Tool("note", json.dumps(NOTE))],
            tool_choice="required",
            parallel_tool_calls=False,
            sampling=Sampling(temperature=1.2, seed=seed, logit_bias=likes),
            max_tokens=600,
            n=4,
        )
        events = [event for step in drive(engine, [call]).steps for event in step]
        assert not any(isinstance(event, CallBroken) for event in events)
        for event in events:
            if isinstance(event, Finished) and event.reason == "tool_calls":
                mine = (e for e in events if isinstance(e, CallArguments) and e.choice == event.choice)
                jsonschema.validate(json.loads("".join(e.text for e in mine)), NOTE)
                called += 1
    assert called > 8


def tokens_of(engine: TextEngine, text: str) -> list[int]:
    events = [event for step in drive(engine, [TokenizeCall("t", text)]).steps for event in step]
    return next(event.tokens for event in events if isinstance(event, Tokens))
