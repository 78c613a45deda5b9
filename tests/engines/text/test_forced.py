"""Answers held to a form: grammars of every format, and real decoding of random models that would never call by
themselves."""

import json
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from oxlo_local import random_model
from oxlo_local.calls import (
    CallArguments,
    CallBegun,
    Constraint,
    Event,
    Finished,
    Message,
    Reasoning,
    Sampling,
    Text,
    TextCall,
    Thinking,
    Tool,
)  # fmt: skip
from oxlo_local.engines.text.forced import Wanted, frame
from oxlo_local.engines.text.grammar import framed
from oxlo_local.engines.text.thinking import MARKERS, Markers
from oxlo_local.engines.text.toolcalls import FORMATS
from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.gemma import GEMMA4
from oxlo_local.engines.text.toolcalls.glm import GLM
from oxlo_local.engines.text.toolcalls.harmony import HARMONY
from oxlo_local.engines.text.toolcalls.hermes import HERMES
from oxlo_local.engines.text.toolcalls.llama3 import LLAMA3
from oxlo_local.engines.text.toolcalls.qwen3_coder import QWEN3_CODER
from oxlo_local.errors import UnsupportedValue
from tests.engines.text.conftest import MakeEngine, drive

TOKENIZER = LLTokenizer("byte")
COUNTS = '{"type":"object","properties":{"count":{"type":"integer"}},"required":["count"]}'
RECORD = Constraint(
    "json_schema",
    '{"type":"object","properties":{"answer":{"type":"integer"}},"required":["answer"],"additionalProperties":false}',
    "response_format",
)


class Accepts:
    """What the grammar of an answer takes."""

    def __init__(
        self,
        format: Format,
        tools: Mapping[str, str | None] | None,
        content: Constraint | str | None = None,
        thought: Markers | None = None,
        *,
        resumed: bool = False,
    ) -> None:
        writing = format.writing
        make = writing.beside if isinstance(content, Constraint) else writing.grammar
        calls = None if tools is None else make(tools, parallel=True)
        wanted = Wanted(format, content, calls, thought, resumed)  # type: ignore[arg-type]
        self._source = framed(frame(wanted, {}))

    def __call__(self, text: str) -> bool:
        matcher = LLMatcher(TOKENIZER, self._source, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        tokens = TOKENIZER.tokenize_str(text)
        return matcher.validate_tokens(tokens) == len(tokens) and (
            matcher.consume_tokens(tokens) and matcher.is_accepting()
        )


def said(format: Format, text: str) -> str:
    """Content, as the format has it."""
    return f"<|channel|>final<|message|>{text}" if format is HARMONY else text


# -- every format -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_forced_answer_is_calls_as_the_format_writes_them(format: Format) -> None:
    schema = (
        '{"type":"object","properties":{"count":{"type":"integer"},"place":{"type":"string"}},'
        '"required":["place"]}'
    )
    accepts = Accepts(format, {"find": schema, "stop": '{"type":"object","additionalProperties":false}'})
    calls = [("find", '{"count": 3, "place": "Oslo \\"é\\""}'), ("find", '{"place": "Rome"}'), ("stop", "{}")]
    if format.writing.key_before is not None or format is GEMMA4:
        calls[0] = ("find", '{"count": 3, "place": "Oslo é, {x}"}')
    assert accepts(format.writing.text(calls))
    assert accepts(format.writing.text(calls[1:2]))
    assert not accepts(said(format, "Hello."))
    assert not accepts(format.writing.text([("found", '{"place": "Rome"}')]))
    assert not accepts(format.writing.text([("find", '{"count": 3}')]))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_strict_calls_may_be_left_out_but_not_be_wrong(format: Format) -> None:
    accepts = Accepts(format, {"find": COUNTS}, "text")
    call = format.writing.text([("find", '{"count": 31}')])
    assert accepts(said(format, "Well, {so} be it.\n"))
    assert accepts(call)
    assert not accepts(call.replace("31", '"x"'))
    if format is HARMONY:
        lead = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
        assert accepts(lead + call)
    else:
        assert accepts(f"I look.\n{call}")
        assert not accepts(f"I look.\n{call.replace('31', 'x')}")


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_beside_a_schema_the_answer_is_calls_or_valid_content(format: Format) -> None:
    accepts = Accepts(format, {"find": COUNTS}, RECORD)
    call = format.writing.text([("find", '{"count": 31}')])
    assert accepts(call) and accepts(said(format, '{"answer": 3}'))
    for wrong in (call.replace("31", '"x"'), said(format, '{"answer": "x"}'), said(format, "No."), ""):
        assert not accepts(wrong)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_tool_that_is_not_strict_is_called_with_whatever_one_likes(format: Format) -> None:
    accepts = Accepts(format, {"find": COUNTS, "note": None}, RECORD)
    for arguments in ("{}", '{"text": "so", "times": 3, "deep": {"er": [true, null]}}'):
        assert accepts(format.writing.text([("note", arguments)]))


@pytest.mark.parametrize("format", [f for f in FORMATS if f is not HARMONY], ids=lambda format: format.name)
def test_a_model_that_may_think_is_let(format: Format) -> None:
    call = format.writing.text([("find", '{"count": 31}')])
    for content in (None, "text", RECORD):
        accepts = Accepts(format, {"find": COUNTS}, content, MARKERS[0])
        assert accepts(call) and accepts(f"<think>\nI'd call {call}? No: x.\n</think>\n\n{call}")
        assert not accepts("<think>\nWell.</think>\n\n" + call.replace("31", "x"))


def test_gpt_oss_thinks_in_messages_of_its_own() -> None:
    note = "<|channel|>analysis<|message|>Hm, {.<|end|><|start|>assistant"
    accepts = Accepts(HARMONY, None, RECORD)
    assert accepts(note * 2 + said(HARMONY, '{"answer": 3}'))
    assert accepts('<|channel|>final <|constrain|>json<|message|>{"answer": 3}')
    assert not accepts(note + said(HARMONY, "3"))
    forced = Accepts(HARMONY, {"find": COUNTS})
    for head in (
        "<|channel|>commentary to=functions.find <|constrain|>json<|message|>",
        " to=functions.find<|channel|>commentary <|constrain|>json<|message|>",
    ):
        assert forced(note + head + '{"count": 1}') and forced(note + head + '{"count": 1}<|call|>')
        assert not forced(note + head + '{"count": "x"}')
    resumed = Accepts(HARMONY, {"find": COUNTS}, RECORD, resumed=True)
    assert resumed('{"answer": 3}') and not resumed(said(HARMONY, '{"answer": 3}'))
    assert resumed("<|end|><|start|>assistant" + HARMONY.writing.text([("find", '{"count": 1}')]))


def test_a_model_cannot_write_blanks_for_ever() -> None:
    call = HERMES.writing.text([("find", '{"count": 31}')])
    for content in (None, "text"):
        accepts = Accepts(HERMES, {"find": COUNTS}, content)
        assert accepts(call.replace('{"count', '{ "count')) and accepts(call.replace(": 31", ":\n  31"))
        assert not accepts(call.replace(": 31", ":  31")) and not accepts(call.replace(": 31", ":\n\n31"))


def test_control_tokens_stand_in_the_grammar_as_tokens() -> None:
    grammar = HERMES.writing.grammar({"stop": "{}"}, parallel=False)
    text = frame(Wanted(HERMES, None, grammar), {"<tool_call>": 7, "</tool_call>": 8}).lark
    assert "<[7]>" in text and "<[8]>" in text and '"<tool_call>' not in text


# -- arguments that are not JSON --------------------------------------------------------------------------------------


def schema_of(**properties: object) -> str:
    return json.dumps({"type": "object", "properties": properties, "required": [*properties]})


@pytest.mark.parametrize("format", [QWEN3_CODER, GEMMA4], ids=lambda format: format.name)
@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "string", "enum": ["red", "dark blue"]}, ["red", "dark blue"], ["blue", ""]),
        ({"enum": ["red", "dark blue"]}, ["red", "dark blue"], ["blue", "", 3]),
        ({"type": "string", "const": "a.c"}, ["a.c"], ["abc"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["äö", "äöü"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^a+$"}, ["a", "aaa"], ["b", "aab"]),
        ({"type": "string", "pattern": "b|c"}, ["abc", "c"], ["a"]),
        ({"type": "string", "pattern": "^(a|b)/"}, ["a/", "b/x"], ["c/", "xa/"]),
        ({"type": "string", "format": "date"}, ["2024-02-28"], ["2024-02-31", "soon"]),
        ({"type": "integer", "minimum": 3}, [3, 40], [2, 1.5]),
        ({"type": ["integer", "null"]}, [7, None], [True]),
        ({"type": "boolean"}, [True, False], [None]),
    ],
)
def test_a_value_keeps_to_its_schema_in_a_notation_that_is_not_json(
    format: Format, schema: dict[str, object], right: list[object], wrong: list[object]
) -> None:
    accepts = Accepts(format, {"find": schema_of(value=schema)})
    for value in (*right, *wrong):
        text = format.writing.text([("find", json.dumps({"value": value}))])
        assert accepts(text) is (value in right and value not in wrong), text


@pytest.mark.parametrize("format", [QWEN3_CODER, GEMMA4], ids=lambda format: format.name)
@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        (schema_of(value={"type": "string", "pattern": "a", "maxLength": 3}), "maxLength"),
        (schema_of(value={"type": "string", "pattern": "^a|b$"}), "pattern"),
        (schema_of(value={"type": "string", "allOf": [{"maxLength": 3}]}), "allOf"),
        ('{"type":"object","properties":{"a":{}},"minProperties":1}', "minProperties"),
        ('{"type":"object","properties":{"a":{}},"patternProperties":{"b":{}}}', "patternProperties"),
        ('{"type":"object","required":["a"],"additionalProperties":false}', "false"),
    ],
)
def test_what_a_notation_has_no_room_for_is_named(format: Format, schema: str, keyword: str) -> None:
    with pytest.raises(UnsupportedValue, match=keyword) as caught:
        format.writing.grammar({"find": schema}, parallel=True)
    assert caught.value.param == "tools"


def test_tags_refer_to_definitions_and_to_nothing_else() -> None:
    schema = {
        "$ref": "#/$defs/place",
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"at": {"$ref": "#/$defs/point"}, "up": {"$ref": "#/$defs/place"}},
                "required": ["at"],
            },
            "point": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        },
    }
    accepts = Accepts(QWEN3_CODER, {"find": json.dumps(schema)})
    assert accepts(QWEN3_CODER.writing.text([("find", '{"at": [1, 2], "up": {"at": [3]}}')]))
    assert not accepts(QWEN3_CODER.writing.text([("find", '{"at": [1, 2, 3]}')]))
    inner = {"type": "object", "properties": {"a": {"type": "array", "items": {"$ref": "#"}}}}
    with pytest.raises(UnsupportedValue, match="ref"):
        QWEN3_CODER.writing.grammar({"find": json.dumps(inner)}, parallel=True)


def test_keywords_without_a_type_speak_of_their_own_kind() -> None:
    accepts = Accepts(GEMMA4, {"find": '{"properties":{"a":{"minimum":3},"b":{"items":{"type":"null"}}}}'})
    assert accepts(GEMMA4.writing.text([("find", '{"a": 4, "b": [null]}')]))
    for wrong in ('{"a": 2}', '{"b": [1]}'):
        assert not accepts(GEMMA4.writing.text([("find", wrong)]))


def test_gemmas_notation_goes_deep() -> None:
    schema = {
        "type": "object",
        "properties": {
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            "names": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
            "free": {"type": "object"},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
            "any": {},
        },
        "required": ["names"],
        "additionalProperties": False,
    }
    accepts = Accepts(GEMMA4, {"find": json.dumps(schema)})
    for right in (
        {"names": ["a"]},
        {"names": ["a", "b"], "next": {"names": [""], "next": None}},
        {"any": [1, "x", {"y": None}], "free": {"z": [True]}, "map": {"k": 3}, "names": ["a"]},
    ):
        jsonschema.validate(right, schema)
        assert accepts(GEMMA4.writing.text([("find", json.dumps(right))])), right
    refused: tuple[dict[str, object], ...] = (
        {"next": None},
        {"names": []},
        {"names": ["a", "b", "c"]},
        {"names": ["a"], "next": {"next": None}},
        {"map": {"k": "x"}, "names": ["a"]},
        {"names": ["a"], "zoo": 1},
    )
    for wrong in refused:
        assert not accepts(GEMMA4.writing.text([("find", json.dumps(wrong))])), wrong


# -- real decoding ----------------------------------------------------------------------------------------------------

TOOLS = [
    Tool("paint", '{"type":"object","properties":{"colour":{"enum":["red","blue"]}},"required":["colour"],'
         '"additionalProperties":false}'),
    Tool("stop", '{"type":"object","properties":{},"additionalProperties":false}'),
]  # fmt: skip
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
THINKS = PLAIN + "{# may be <think> or not; ends with </think> #}"
GEMMA = (
    "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls %}<|tool_call>call:{{ c.function.name }}{{ c.function.arguments }}<tool_call|>"
    "{% endfor %}{% endfor %}"
)
GPT_OSS = (
    "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}<|start|>{{ m.role }}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}<|start|>assistant{# <|channel|>analysis<|message|> #}"
)


def asked(**more: object) -> TextCall:
    fields: dict[str, object] = {
        "messages": [Message("user", "go")],
        "tools": TOOLS,
        "tool_choice": "required",
        "sampling": Sampling(temperature=1.5, seed=5),
        "max_tokens": 200,
    } | more
    return TextCall("c", **fields)  # type: ignore[arg-type]


def events_of(make_engine: MakeEngine, call: TextCall, template: str = PLAIN, **more: object) -> list[Event]:
    answers = drive(make_engine(chat_template=template, **more), [call])
    return [event for step in answers.steps for event in step]


def content_of(events: list[Event], choice: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, Text) and e.choice == choice)


def check_calls(events: list[Event], choices: int) -> None:
    for choice in range(choices):
        (begun,) = [e for e in events if isinstance(e, CallBegun) and e.choice == choice]
        text = "".join(e.text for e in events if isinstance(e, CallArguments) and e.choice == choice)
        arguments = json.loads(text)
        assert begun.call_id.startswith("call_")
        assert arguments == {} if begun.name == "stop" else arguments["colour"] in ("red", "blue")
    assert {e.reason for e in events if isinstance(e, Finished)} == {"tool_calls"}
    assert not content_of(events)


@pytest.mark.parametrize("template", [PLAIN, GEMMA], ids=["generic", "gemma4"])
def test_a_model_that_must_call_calls_what_is_there_with_valid_arguments(
    make_engine: MakeEngine, template: str
) -> None:
    check_calls(events_of(make_engine, asked(n=4, parallel_tool_calls=False), template), 4)


def test_a_model_that_may_call_writes_text(make_engine: MakeEngine) -> None:
    strict = [Tool("stop", '{"type":"object","properties":{},"additionalProperties":false}', strict=True)]
    events = events_of(make_engine, asked(tools=strict, tool_choice="auto", max_tokens=20))
    assert content_of(events)


def test_beside_tools_a_schema_holds_or_a_call_is_made(make_engine: MakeEngine) -> None:
    events = events_of(
        make_engine, asked(tool_choice="auto", constraint=RECORD, n=8, parallel_tool_calls=False)
    )
    called = {e.choice for e in events if isinstance(e, CallBegun)}
    reasons = {e.choice: e.reason for e in events if isinstance(e, Finished)}
    spoke = {choice for choice, reason in reasons.items() if reason == "stop"}
    assert called and spoke and not called & spoke
    for choice in spoke:
        assert json.loads(content_of(events, choice)).keys() == {"answer"}


def with_specials(path: Path, monkeypatch: pytest.MonkeyPatch, *markers: str) -> tuple[Path, dict[str, int]]:
    """A random model whose vocabulary has these control tokens; and their ids."""
    specials = (*random_model.SPECIALS, *markers)
    monkeypatch.setattr(random_model, "SPECIALS", specials)
    random_model.write(path / "special.gguf")
    return path / "special.gguf", {marker: specials.index(marker) for marker in markers}


@pytest.mark.parametrize("bias", [8.0, -100.0], ids=["thinks", "does not"])
def test_a_schema_holds_from_the_end_of_a_thought_that_need_not_be(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    model, ids = with_specials(tmp_path, monkeypatch, "<think>", "</think>")
    sampling = Sampling(seed=1, logit_bias={ids["<think>"]: bias, ids["</think>"]: 4.0})
    call = asked(tools=[], tool_choice="auto", constraint=RECORD, sampling=sampling, max_tokens=400)
    answers = drive(make_engine(model, chat_template=THINKS), [call])
    events = [event for step in answers.steps for event in step]
    assert any(isinstance(event, Reasoning) for event in events) is (bias > 0)
    assert json.loads(content_of(events)).keys() == {"answer"}
    off = asked(tools=[], tool_choice="auto", constraint=RECORD, thinking=Thinking(enabled=False))
    template = THINKS + "{% if enable_thinking is defined and not enable_thinking %}{% endif %}"
    answers = drive(make_engine(model, chat_template=template), [off])
    assert not any(isinstance(event, Reasoning) for step in answers.steps for event in step)


def test_between_control_tokens_there_may_be_nothing(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markers = (
        "<think>",
        "</think>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "</tool_call>",
    )
    model, ids = with_specials(tmp_path, monkeypatch, "<tool_call>", *markers)
    engine = make_engine(model)
    calls = GLM.writing.grammar({"find": schema_of(place={"type": "string"})}, parallel=True)
    wanted = frame(Wanted(GLM, None, calls, MARKERS[0]), ids)
    for place in ("", "Oslo", "Oslo\n"):
        guide = engine._grammars.guide(wanted)
        guide.begin()
        text = "<think></think>\n\n" + GLM.writing.text([("find", json.dumps({"place": place}))])
        for token in engine._llama.tokenize(text, special=True, add_special=False):
            guide.look_ahead()
            assert guide.allows(token), (place, engine._llama.token_text(token))
            guide.accept(token)
    guide = engine._grammars.guide(wanted)
    guide.begin()
    guide.look_ahead()
    assert not guide.allows(ids["<arg_key>"])


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_gpt_oss_calls_strictly_after_it_has_thought(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    markers = (
        "<|start|>",
        "<|channel|>",
        "<|message|>",
        "<|constrain|>",
        "<|end|>",
        "<|call|>",
        "<|return|>",
    )
    model, ids = with_specials(tmp_path, monkeypatch, *markers)
    strict = [Tool(tool.name, tool.parameters, strict=True) for tool in TOOLS]
    sampling = Sampling(temperature=1.2, seed=3, logit_bias={ids["<|end|>"]: 6.0})
    call = asked(tools=strict, tool_choice=choice, n=12, sampling=sampling, parallel_tool_calls=False)
    events = [e for step in drive(make_engine(model, chat_template=GPT_OSS), [call]).steps for e in step]
    assert any(isinstance(event, Reasoning) for event in events)
    called = {e.choice for e in events if isinstance(e, CallBegun)}
    ended = {e.choice: e.reason for e in events if isinstance(e, Finished)}
    if choice == "required":
        assert called == {number for number, reason in ended.items() if reason != "length"}
    assert called
    assert not any(isinstance(e, Text) and e.choice in called and "colour" in e.text for e in events)
    for number in called:
        text = "".join(e.text for e in events if isinstance(e, CallArguments) and e.choice == number)
        assert ended[number] == "tool_calls" and json.loads(text).get("colour") in (None, "red", "blue")


@pytest.mark.parametrize("name", ["date", "date-time", "email", "ipv4", "ipv6", "uuid", "uri"])
def test_the_formats_of_text_let_nothing_through_that_is_none(name: str) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from oxlo_local.engines.text.toolcalls.values import FORMATS as PATTERNS

    checker = jsonschema.FormatChecker()

    @settings(max_examples=50, suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.from_regex(PATTERNS[name], fullmatch=True))
    def holds(value: str) -> None:
        jsonschema.validate(value, {"format": name}, format_checker=checker)

    holds()


def test_llama_calls_beside_other_json() -> None:
    accepts = Accepts(LLAMA3, {"find": COUNTS}, Constraint("json_schema", '{"type":"object"}', "guided_json"))
    assert accepts(
        '{"name": "find", "parameters": {"count": 3}}; {"name": "find", "parameters": {"count": 4}}'
    )
    assert accepts('{"name": "Bob"}')
