"""Answers that have to be calls: real decoding of a random model, which would never call by itself."""

import json

import pytest

from oxlo_local.calls import (
    CallArguments,
    CallBegun,
    Event,
    Failed,
    Finished,
    Message,
    Sampling,
    Text,
    TextCall,
    Tool,
)  # fmt: skip
from oxlo_local.engines.text.forced import lark
from oxlo_local.engines.text.toolcalls import FORMATS
from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.hermes import HERMES
from tests.engines.text.conftest import MakeEngine, drive

TOOLS = [
    Tool("paint", '{"type":"object","properties":{"colour":{"enum":["red","blue"]}},"required":["colour"],'
         '"additionalProperties":false}'),
    Tool("stop", '{"type":"object","properties":{},"additionalProperties":false}'),
]  # fmt: skip
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
OPENS = PLAIN + "<think>{# ends with </think> #}"


def forced(**more: object) -> TextCall:
    fields: dict[str, object] = {
        "messages": [Message("user", "go")],
        "tools": TOOLS,
        "tool_choice": "required",
        "sampling": Sampling(temperature=1.5, seed=5),
        "max_tokens": 200,
    } | more
    return TextCall("c", **fields)  # type: ignore[arg-type]


def events_of(make_engine: MakeEngine, call: TextCall, template: str = PLAIN) -> list[Event]:
    answers = drive(make_engine(chat_template=template), [call])
    return [event for step in answers.steps for event in step]


def test_a_model_that_must_call_calls_what_is_there_with_valid_arguments(make_engine: MakeEngine) -> None:
    events = events_of(make_engine, forced(n=4, parallel_tool_calls=False))
    for choice in range(4):
        (begun,) = [e for e in events if isinstance(e, CallBegun) and e.choice == choice]
        text = "".join(e.text for e in events if isinstance(e, CallArguments) and e.choice == choice)
        arguments = json.loads(text)
        assert begun.call_id.startswith("call_")
        assert arguments == {} if begun.name == "stop" else arguments["colour"] in ("red", "blue")
    assert {e.reason for e in events if isinstance(e, Finished)} == {"tool_calls"}
    assert not "".join(e.text for e in events if isinstance(e, Text))


def test_a_format_that_cannot_be_forced_says_so(make_engine: MakeEngine) -> None:
    template = (
        "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls %}<|tool_call>call:{{ c.function.name }}{{ c.function.arguments }}<tool_call|>"
        "{% endfor %}{% endfor %}"
    )
    (event,) = events_of(make_engine, forced(), template)
    assert isinstance(event, Failed)
    assert (event.code, event.param) == ("unsupported_value", "tool_choice")


def test_control_tokens_stand_in_the_grammar_as_tokens() -> None:
    assert HERMES.writing is not None
    grammar = HERMES.writing.grammar({"stop": "{}"}, parallel=False)
    text = lark(grammar, {"<tool_call>": 7, "</tool_call>": 8})
    assert "<[7]>" in text and "<[8]>" in text and '"<tool_call>' not in text


WRITING = [format for format in FORMATS if format.writing]


@pytest.mark.parametrize("format", WRITING, ids=lambda format: format.name)
def test_every_grammar_compiles_and_accepts_what_the_format_writes(format: Format) -> None:
    from llguidance import LLMatcher, LLTokenizer

    assert format.writing is not None
    properties = '"properties":{"place":{"type":"string"},"count":{"type":"integer"}}'
    schema = '{"type":"object",' + properties + ',"required":["place"]}'
    grammar = lark(format.writing.grammar({"find": schema}, parallel=True), {})
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    calls = [("find", '{"place": "Oslo", "count": 3}'), ("find", '{"place": "Rome"}')]
    text = format.writing.text(calls)
    tokens = tokenizer.tokenize_str(text)
    assert matcher.validate_tokens(tokens) == len(tokens), text


@pytest.mark.parametrize("format", WRITING, ids=lambda format: format.name)
def test_strict_calls_may_be_left_out_but_not_be_wrong(format: Format) -> None:
    from llguidance import LLMatcher, LLTokenizer

    assert format.writing is not None
    schema = '{"type":"object","properties":{"count":{"type":"integer"}},"required":["count"]}'
    grammar = format.writing.grammar({"find": schema}, parallel=True)
    tokenizer = LLTokenizer("byte")
    source = LLMatcher.grammar_from_lark(lark(grammar, {}, unless=format.starts))

    def accepts(text: str) -> bool:
        matcher = LLMatcher(tokenizer, source)
        assert not matcher.is_error(), matcher.get_error()
        return (
            all(matcher.consume_token(token) for token in tokenizer.tokenize_str(text))
            and matcher.is_accepting()
        )

    call = format.writing.text([("find", '{"count": 31}')])
    assert accepts("Well, {so} be it.\n")
    assert accepts(call)
    assert accepts(f"I look.\n{call}")
    assert not accepts(call.replace("31", '"x"'))
    assert not accepts(f"I look.\n{call.replace('31', 'x')}")


def test_a_model_that_may_call_writes_text(make_engine: MakeEngine) -> None:
    strict = [Tool("stop", '{"type":"object","properties":{},"additionalProperties":false}', strict=True)]
    events = events_of(make_engine, forced(tools=strict, tool_choice="auto", max_tokens=20))
    assert "".join(e.text for e in events if isinstance(e, Text))
