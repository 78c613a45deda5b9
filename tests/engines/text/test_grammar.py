"""Constrained answers of real models with random weights: whatever they say, it parses and is valid."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from oxlo_local.calls import Constraint, Done, Finished, Sampling, Started, TextCall
from oxlo_local.engines.text import grammar
from oxlo_local.engines.text.grammar import Frame, Grammars
from oxlo_local.engines.weights import Weights
from oxlo_local.protocol import schemas
from oxlo_local.random_model import SPECIALS, Architecture
from tests.engines.text.conftest import Answers, MakeEngine, drive

WARM = Sampling(temperature=1.0, seed=11)
STRING = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, dict[str, object]] = {
    "any object": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "integer"}},
    "person": {
        "type": "object",
        "properties": {"name": STRING, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["naïve", "日本語", 'quote " and \\', 1.5, None, {"a": [1, "🎈"]}]},
    "const": {"const": {"deep": [{"er": True}]}},
    "nested arrays": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": {"type": "array", "maxItems": 2, "items": {"type": "number", "minimum": -1, "maximum": 1}},
    },
    "tuple": {"type": "array", "prefixItems": [STRING, {"type": "boolean"}], "items": False, "minItems": 2},
    "$defs": {
        "$defs": {"point": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "recursion": {
        "type": "object",
        "properties": {"value": {"enum": [1, 2]}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "unicode pattern": {"type": "string", "pattern": "^[äöüß]{3}[α-ω]?$"},
    "formats": {
        "type": "object",
        "properties": {each: {"type": "string", "format": each} for each in ("date-time", "ipv4", "uuid")},
        "required": ["date-time", "ipv4", "uuid"],
        "additionalProperties": False,
    },
    "anyOf": {"anyOf": [{"type": "integer", "multipleOf": 7}, {"type": "string", "maxLength": 2}]},
    "oneOf": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}},
                "required": ["kind"],
                "maxProperties": 1,
            }
            for kind in ("a", "b")
        ]
    },
    "allOf": {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 20}]},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "types": {"type": ["integer", "null"], "minimum": 5, "maximum": 9999},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^[ab]$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
}


def schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value), "response_format.json_schema.schema")


def call(id: str, constraint: Constraint | None, max_tokens: int = 400, **more: object) -> TextCall:
    fields: dict[str, object] = {"sampling": WARM, "constraint": constraint} | more
    return TextCall(id, prompts=["tell me"], max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


def reasons(answers: Answers, id: str) -> list[str]:
    found = [
        event for step in answers.steps for event in step if isinstance(event, Finished) and event.id == id
    ]
    return [event.reason for event in sorted(found, key=lambda event: event.choice)]


def assert_valid(text: str, wanted: dict[str, object]) -> None:
    value = json.loads(text)
    jsonschema.Draft202012Validator(wanted, format_checker=jsonschema.FormatChecker()).validate(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_is_valid(make_engine: MakeEngine, name: str) -> None:
    wanted = SCHEMAS[name]
    engine = make_engine(parallel=8)
    answers = drive(
        engine,
        [call(f"c{seed}", schema(wanted), n=4, sampling=Sampling(seed=100 * seed)) for seed in range(2)],
    )
    ended = 0
    for (id, choice), text in answers.texts.items():
        reason = reasons(answers, id)[choice]
        if reason == "stop":
            assert_valid(text, wanted)
            ended += 1
    assert ended
    assert all(isinstance(end, Done) for end in answers.ends.values())


OPEN: dict[str, object] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "é": {"type": "integer"}},
}
OFTEN = (
    '{"a": 1, "b": 2}',
    '{"b": 2}',
    '{"a": "x"}',
    "{}",
    "[]",
    "[1]",
    "[1, 2]",
    '["a"]',
    "1",
    "2.5",
    "6",
    '"a"',
    '"abc"',
)
# By keyword: schemas, and texts that tell whether they hold, beside those of OFTEN.
KEYWORDS: dict[str, list[tuple[dict[str, object], tuple[str, ...]]]] = {
    "properties": [
        (OPEN, ('{"\\u0061": "x"}', '{"\\u00e9": "x"}', '{"a": 1, "a": "x"}', '{"b": 1, "a": "x"}'))
    ],
    "additionalProperties": [
        (
            {"type": "object", "required": ["a"], "additionalProperties": {"type": "integer"}},
            ('{"b": "x", "a": 1}',),
        ),
        ({"properties": {"a": {}}, "additionalProperties": False}, ('{"A": 1}',)),
    ],
    "patternProperties": [
        (
            {
                "type": "object",
                "properties": {"ab": {"type": "integer"}},
                "patternProperties": {"^a": {"maximum": 5}},
            },
            ('{"ab": 9}', '{"ab": 3}', '{"ac": 9}', '{"ac": 2}', '{"\\u0061c": 9}'),
        )
    ],
    "required": [({"required": ["a"]}, ()), ({**OPEN, "required": ["a", "é"]}, ('{"a": 1, "é": 1}',))],
    "minProperties": [({"type": "object", "minProperties": 1}, ()), ({**OPEN, "minProperties": 0}, ())],
    "maxProperties": [({"type": "object", "maxProperties": 1}, ())],
    "items": [({"type": "array", "items": False}, ()), ({"items": {"type": "integer"}}, ())],
    "prefixItems": [
        ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}}, ('[1, "a"]',))
    ],
    "additionalItems": [({"type": "array", "items": [{"type": "integer"}], "additionalItems": False}, ())],
    "minItems": [({"minItems": 2}, ()), ({"enum": [[1], [1, 2]], "minItems": 2}, ())],
    "maxItems": [({"type": "array", "maxItems": 1}, ())],
    "minLength": [({"type": "string", "minLength": 2}, ('"\\ud83c\\udf88"', '"🎈"', '"\\n"', '"ab"'))],
    "maxLength": [({"type": "string", "maxLength": 1}, ('"🎈"', '"\\n"', '"\\n\\n"'))],
    "pattern": [
        ({"type": "string", "pattern": "^a|b$"}, ('"ax"', '"xb"', '"xbx"')),
        ({"type": "string", "pattern": "^.$", "maxLength": 3}, ('"\\n"', '"ab"')),
    ],
    "format": [
        (
            {"type": "string", "format": "date"},
            ('"2024-02-29"', '"2023-02-29"', '"1900-02-29"', '"2024-04-31"'),
        ),
        ({"type": "string", "format": "date", "pattern": "^2024"}, ('"2023-01-01"', '"2024-01-01"')),
        (
            {"format": "date-time"},
            ('"2024-02-29T01:02:03Z"', '"2023-02-29T01:02:03Z"', '"2024-02-29T25:02:03Z"'),
        ),
        ({"type": "string", "format": "ipv4"}, ('"1.2.3.4"', '"256.1.1.1"', '"01.1.1.1"')),
        ({"type": "string", "format": "ipv6"}, ('"::1"', '":::"', '"1::2::3"')),
        ({"type": "string", "format": "uuid"}, ('"2eb8aa08-aa98-11ea-b4aa-73b441d16380"', '"2eb8aa08"')),
    ],
    "enum": [({"type": "integer", "enum": ["a", 1]}, ()), ({"enum": [1, 6], "minimum": 3}, ())],
    "const": [({"const": {"a": 1}}, ('{"a": 1}', '{"a": 1, "a": 2}'))],
    "minimum": [({"minimum": 3}, ("1e3",)), ({"type": "integer", "minimum": 2.5}, ("2", "3"))],
    "maximum": [({"type": "number", "maximum": 5}, ("1e3", "5", "5.0", "5.01"))],
    "exclusiveMinimum": [({"type": "number", "exclusiveMinimum": 1, "minimum": 1}, ("1.0", "1.1"))],
    "exclusiveMaximum": [({"type": "number", "exclusiveMaximum": 6}, ("6.0", "5.9", "1e1"))],
    "multipleOf": [
        ({"type": "integer", "multipleOf": 3}, ("4", "-6")),
        ({"type": "number", "multipleOf": 0.5}, ("2.25",)),
    ],
    "anyOf": [({**OPEN, "anyOf": [{"required": ["a"]}, {"required": ["é"]}]}, ('{"é": 1}',))],
    "allOf": [({"allOf": [{**OPEN, "additionalProperties": False}, {"properties": {"b": {}}}]}, ())],
    "oneOf": [({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ())],
    "$ref": [({"$ref": "#/$defs/s", "maxLength": 1, "$defs": {"s": {"type": "string"}}}, ())],
    "type": [({"type": ["integer", "null"]}, ("null", "1.5"))],
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_is_never_loosened(keyword: str) -> None:
    """What the grammar takes is valid, by a reference that has nothing in common with it."""
    tokenizer = LLTokenizer("byte")
    for wanted, told in KEYWORDS[keyword]:
        matcher = LLMatcher(
            tokenizer, grammar.framed(Frame("start: @inside", schema(wanted), "p")), log_level=0
        )
        assert not matcher.is_error(), matcher.get_error()
        older = jsonschema.Draft7Validator if "additionalItems" in wanted else jsonschema.Draft202012Validator
        judge = older(wanted, format_checker=older.FORMAT_CHECKER)
        taken = set()
        for text in (*OFTEN, *told):
            tokens = tokenizer.tokenize_str(text)
            here = matcher.deep_copy()
            if here.consume_tokens(tokens) and here.is_accepting():
                taken.add(judge.is_valid(json.loads(text)))
        assert taken == {True}, wanted


def test_every_keyword_that_is_enforced_is_judged() -> None:
    assert KEYWORDS.keys() == schemas.ENFORCED


KINDS: list[Architecture] = ["llama", "gemma2", "mamba", "jamba"]
SAMPLERS = {
    "greedy": Sampling(temperature=0),
    "numpy": Sampling(temperature=1.3, top_p=0.9, min_p=0.01, seed=4),
    "top_k": Sampling(temperature=1.0, top_k=5, seed=4),
    "chain": Sampling(temperature=1.0, repeat_penalty=1.2, seed=4),
    "typical": Sampling(temperature=1.0, typical_p=0.8, seed=4),
    "mirostat": Sampling(temperature=1.0, mirostat=2, seed=4),
    "biased": Sampling(temperature=1.0, logit_bias={7: 50.0, 20: -100.0}, seed=4),
}
CODE = Constraint("regex", "[0-9]{4}-[a-f]{4}(-[ghi]{2}){3}", "guided_regex")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_obeys(make_engine: MakeEngine, kind: Architecture, sampler: str) -> None:
    answers = drive(make_engine(kind), [call("c", CODE, sampling=SAMPLERS[sampler])])
    assert re.fullmatch(CODE.text, answers.texts["c", 0])
    assert reasons(answers, "c") == ["stop"]


def test_the_graphs_own_sampler_stays_out_of_it(make_engine: MakeEngine) -> None:
    engine = make_engine(backend_sampling=True)
    answers = drive(engine, [call("c", CODE), call("free", None, max_tokens=20)])
    assert re.fullmatch(CODE.text, answers.texts["c", 0])
    assert answers.done("free").usage.completion_tokens == 20


def test_a_seed_decides_a_constrained_answer(make_engine: MakeEngine) -> None:
    wanted = schema(SCHEMAS["nested arrays"])
    engine = make_engine()
    first = drive(engine, [call("a", wanted)])
    again = drive(
        engine, [call("b", wanted), call("c", wanted, sampling=Sampling(seed=99)), call("free", None, 30)]
    )
    assert first.texts["a", 0] == again.texts["b", 0] != again.texts["c", 0]


def test_logprobs_are_the_models_own(make_engine: MakeEngine) -> None:
    """The first token is scored over the whole vocabulary: what the grammar forbids keeps its probability."""
    engine = make_engine()
    free = drive(engine, [call("f", None, 1, logprobs=3, sampling=Sampling(temperature=0))])
    bound = drive(engine, [call("b", CODE, logprobs=3, sampling=Sampling(temperature=0))])
    ours, theirs = bound.logprobs["b", 0], free.logprobs["f", 0]
    assert [each.bytes for each in ours[0].top] == [each.bytes for each in theirs[0].top]
    assert b"".join(bytes(each.bytes) for each in ours).decode() == bound.texts["b", 0]
    assert all(each.logprob is not None and each.logprob > -50 for each in ours)


def test_a_cut_answer_says_length_and_a_whole_one_stop(make_engine: MakeEngine) -> None:
    exact = Constraint("regex", "a{12}", "guided_regex")
    answers = drive(make_engine(), [call("cut", exact, 2), call("whole", exact, 12), call("none", CODE, 400)])
    assert reasons(answers, "cut") == ["length"] and set(answers.texts["cut", 0]) == {"a"}
    assert reasons(answers, "whole") == ["stop"] and answers.texts["whole", 0] == "a" * 12


def test_an_end_token_comes_only_where_the_text_is_whole(make_engine: MakeEngine) -> None:
    """Every end token is made as likely as can be, and still the answer is finished first."""
    ends = range(len(SPECIALS))  # they come first in a model of random_model
    eager = Sampling(temperature=0, logit_bias=dict.fromkeys(ends, 100.0))
    answers = drive(
        make_engine(), [call("c", Constraint("regex", "[ab]{3}[cd]+", "guided_regex"), sampling=eager)]
    )
    assert re.fullmatch("[ab]{3}[cd]", answers.texts["c", 0])


def test_a_preempted_sequence_goes_on_in_its_grammar(make_engine: MakeEngine) -> None:
    engine = make_engine(parallel=4, ctx=256, kv_layout="unified")
    long = Constraint("regex", "([0-9]{3}[a-f]{2}-){30}!", "guided_regex")
    answers = drive(engine, [call(f"c{i}", long, 200, sampling=Sampling(seed=i)) for i in range(4)])
    assert engine.gauges().preemptions > 0
    for i in range(4):
        assert re.fullmatch(long.text, answers.texts[f"c{i}", 0])


def test_a_reused_prefix_changes_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = "the same long beginning, again and again, " * 3
    texts = []
    for id in ("cold", "warm"):
        asked = TextCall(id, prompts=[prompt], max_tokens=100, sampling=WARM, constraint=CODE)
        answers = drive(engine, [asked])
        texts.append(answers.texts[id, 0])
    assert answers.done("warm").usage.cached_tokens > 0
    assert all(re.fullmatch(CODE.text, text) for text in texts)


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Constraint("regex", "(", "p"), "regex"),
        (Constraint("regex", "a(?=b)", "p"), "look-ahead"),
        (Constraint("grammar", "root ::= missing", "p"), "missing"),
        (Constraint("grammar", 'root ::= "open', "p"), "end of input"),
        (Constraint("grammar", "start: start", "p"), "no text matches"),
        (Constraint("json_schema", "{", "p"), "Expecting"),
        (schema({"not": {"type": "string"}}), "not"),
        (schema({"type": "string", "pattern": "(a)\\1"}), "backreferences"),
        (schema({"$ref": "#"}), "no text matches"),
        (schema({"type": "object", "x-guidance": {"lenient": True}, "not": {}}), "not"),
    ],
)
def test_what_cannot_be_compiled_fails_alone(
    make_engine: MakeEngine, constraint: Constraint, words: str
) -> None:
    answers = drive(make_engine(), [call("bad", constraint), call("good", CODE)])
    failed = answers.failed("bad")
    assert failed.code == "unsupported_value" and words in failed.message and failed.param == constraint.param
    assert re.fullmatch(CODE.text, answers.texts["good", 0])


def test_a_schema_that_compiles_too_long_is_refused_in_time(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = schema(
        {"type": "object", "properties": {f"property{i:05}": {"type": "string"} for i in range(1600)}}
    )
    engine = make_engine()
    with monkeypatch.context() as impatient:
        impatient.setattr("oxlo_local.engines.text.grammar.SECONDS", 0.05)
        answers = drive(engine, [call("slow", slow), call("other", None, 30)])
    failed = answers.failed("slow")
    assert "takes longer" in failed.message and failed.code == "unsupported_value"
    assert answers.done("other").usage.completion_tokens == 30


def test_biases_that_ban_every_allowed_token_fail_the_request(make_engine: MakeEngine) -> None:
    engine = make_engine()
    bans = Sampling(logit_bias=dict.fromkeys(range(engine.facts.vocab_size), -100.0))
    failed = drive(engine, [call("c", CODE, sampling=bans)]).failed("c")
    assert (failed.code, failed.param) == ("invalid_value", "logit_bias")


def test_a_guide_that_begins_later_leaves_what_comes_before_alone(
    model_path: Callable[[Architecture], Path],
) -> None:
    """As for a model that thinks first: free until `begin`, then the grammar from its start."""
    weights = Weights(model_path("llama"), 0, lambda _: None)
    grammars = Grammars(weights)
    guide = grammars.guide(Constraint("regex", "[0-9]", "p"))
    letter, digit = (weights.tokenize(text, special=False, add_special=False)[-1] for text in ("a", "7"))
    free = np.zeros(weights.n_vocab, np.float32)
    with grammars.beside([guide]):
        guide.restrict(free)
    assert np.isfinite(free).all() and guide.allows(letter)
    guide.accept(letter)
    guide.begin()
    other = guide.copy()
    other.begin()
    for each in (guide, other):
        bound = np.zeros(weights.n_vocab, np.float32)
        with grammars.beside([guide, other]):
            pass
        each.restrict(bound)
        left = [token for token in range(weights.n_vocab) if np.isfinite(bound[token])]
        assert b"".join(map(weights.piece, left)).isdigit()
        assert each.allows(digit) and not each.allows(letter) and not any(map(each.allows, weights.eog))
    guide.accept(digit)
    assert (guide.complete, other.complete) == (True, False)
    assert grammars.close()
    weights.close()


def test_the_grammars_used_last_are_kept(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "KEPT", 2)
    grammars = make_engine()._grammars
    compiled: list[str] = []
    compile = grammars._compile

    def counted(constraint: Constraint) -> LLMatcher:
        compiled.append(constraint.text)
        return compile(constraint)

    monkeypatch.setattr(grammars, "_compile", counted)
    for text in "abaca":
        grammars.guide(Constraint("regex", text, "guided_regex"))
    assert compiled == ["a", "b", "c"]


def test_a_known_grammar_holds_up_no_step(make_engine: MakeEngine) -> None:
    engine = make_engine()
    constraint = Constraint("regex", "[ab]{9}", "guided_regex")
    drive(engine, [call("compiled", constraint)])
    for each in range(4):
        engine.submit(call(f"c{each}", constraint))
    started = [event.id for event in engine.step() if isinstance(event, Started)]
    assert sorted(started) == ["c0", "c1", "c2", "c3"]


def test_a_cancelled_call_is_forgotten_while_it_compiles(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.submit(call("c", schema(SCHEMAS["recursion"])))
    engine.cancel("c")
    answers = Answers()
    while engine.busy():
        answers.take(engine.step())
    assert answers.failed("c").code == "cancelled"
