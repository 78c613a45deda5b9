import json
import time

import pytest

from oxlo_local.calls import Sampling, Usage
from oxlo_local.errors import BadRequest, OxloError, UnknownParameter, every_error
from oxlo_local.protocol import chat, parts
from tests.openai_description import judge

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def body(**fields: object) -> bytes:
    return json.dumps({**HELLO, **fields}).encode()


def request(**fields: object) -> chat.ChatRequest:
    return chat.decode(body(**fields), strict=True)[0]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "'a' is NaN or infinite"),
        (b'{"a": Infinity}', "'a' is NaN or infinite"),
        (b'{"a": [NaN]}', "not valid JSON"),
        (b'{"a": "NaN", }', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": 1} {"b": 2}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b"[]", "JSON object"),
        (b'"text"', "JSON object"),
        (b"null", "JSON object"),
        (b"[" * 100_000, "deeply"),
        (b'{"a":' * 100_000, "deeply"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "deeply"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"a": {"b": 1, "b": 2}}', "twice"),
        (b'{"\\u0061": 1, "a": 2}', "twice"),
        (b'{"a": [' + b"1," * 1_100_000 + b"1]}", "elements"),
    ],
)
def test_a_body_that_is_no_single_json_object_is_refused(sent: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        parts.read_object(sent)


@pytest.mark.parametrize(
    "sent",
    [
        b'{"a": "\\u00e9\\n\\/", "b": 1.50, "c": 1e3, "d": {"a": 1}, "e": [{"a": 1}, {"a": 1}]}',
        b' {"a" :\t1 }\r\n',
        b'{"a": 123456789012345678901234567890}',
    ],
)
def test_an_unusual_but_sound_body_is_read(sent: bytes) -> None:
    assert parts.read_object(sent) == json.loads(sent)


def test_a_member_named_twice_is_named_in_param() -> None:
    with pytest.raises(BadRequest) as caught:
        parts.read_object(b'{"model": "a", "n": 1, "model": "b"}')
    assert caught.value.param == "model"


def test_huge_bodies_are_answered_within_a_second() -> None:
    size = 64 * 1024 * 1024
    many = b'{"a": [' + b"[]," * (size // 3) + b"[]]}"
    keys = b"{" + b",".join(b'"%d":0' % number for number in range(450_000)) + b"}"
    for sent in (many, b'{"a":"' + b"x" * size + b'"}', keys):
        began = time.perf_counter()
        try:
            parts.warn_unknown(
                parts.unknown_names(parts.read_object(sent), frozenset()), frozenset(), strict=False
            )
        except BadRequest:
            pass
        assert time.perf_counter() - began < 1.5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [*HELLO["messages"], {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": 4}]}]}, "messages[0].content[0].type"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.01}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"typical_p": -1}, "typical_p"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"mirostat": 3}, "mirostat"),
        ({"mirostat_eta": 2}, "mirostat_eta"),
        ({"mirostat_tau": -1}, "mirostat_tau"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.0}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"5" * 10: 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"truncation": "some"}, "truncation"),
        ({"user": 5}, "user"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repetition_penalty"),
        ({"mirostat": 1, "mirostat_mode": 2}, "mirostat_mode"),
    ],
)
def test_a_wrong_value_is_a_400_that_names_its_path(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request(**fields)
    assert caught.value.param == param
    assert caught.value.message.endswith(".") and "$" not in caught.value.message


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat.decode(json.dumps({k: v for k, v in HELLO.items() if k != missing}).encode(), strict=False)
    assert caught.value.param == missing


def test_a_lower_cap_of_choices_holds() -> None:
    with pytest.raises(BadRequest) as caught:
        chat.decode(body(n=5), strict=False, max_n=4)
    assert caught.value.param == "n"
    assert chat.decode(body(n=4), strict=False, max_n=4)[0].choices_each == 4


def test_null_is_as_good_as_nothing() -> None:
    names = [
        "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repetition_penalty",
        "repeat_last_n", "frequency_penalty", "presence_penalty", "mirostat", "mirostat_mode", "mirostat_tau",
        "mirostat_eta", "logit_bias", "seed", "stop", "n", "stream", "stream_options", "truncation", "user",
        "metadata", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "safety_identifier",
    ]  # fmt: skip
    assert request(**dict.fromkeys(names)) == request()


def test_what_is_unset_comes_from_the_model_and_then_from_openai() -> None:
    assert parts.sampling_of(request(), {}) == Sampling()
    asked = request(temperature=0, top_k=-1, seed=-7, logit_bias={"12": -100}, repetition_penalty=1.5)
    sampling = parts.sampling_of(asked, {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0})
    assert sampling == Sampling(
        temperature=0.0, top_p=0.9, top_k=0, repeat_penalty=1.5, seed=-7, logit_bias={12: -100.0}
    )


def test_an_unknown_field_is_named_or_refused() -> None:
    warnings = parts.warn_unknown(
        ["temprature", "x\n\u00e9" + "y" * 200], frozenset({"temperature"}), strict=False
    )
    assert warnings[0] == 'unknown field "temprature" has no effect'
    assert warnings[1].isascii() and "\n" not in warnings[1] and len(warnings[1]) < 200
    assert (
        parts.warn_unknown([str(n) for n in range(14)], frozenset(), strict=False)[-1]
        == "4 more unknown fields"
    )
    with pytest.raises(UnknownParameter, match="'temperature'") as caught:
        parts.warn_unknown(["temprature"], frozenset({"temperature"}), strict=True)
    assert caught.value.param == "temprature"


def test_a_warnings_header_is_printable_and_short() -> None:
    header = parts.warnings_header(["a\r\nset-cookie: x", "caf\u00e9 \U0001f600", "z" * 5000])
    assert header.startswith("a\\u000d\\u000aset-cookie: x; caf\\u00e9 \\u1f600")
    assert len(header) == 2000 and all(" " <= character <= "~" for character in header)


def test_usage_counts_every_choice_and_the_prompt_once() -> None:
    usage = parts.usage_object(
        Usage(prompt_tokens=5, completion_tokens=12, cached_tokens=3, reasoning_tokens=2)
    )
    assert usage["total_tokens"] == 17
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3, "audio_tokens": 0}
    judge("CompletionUsage", usage)


def test_a_fingerprint_tells_models_and_versions_apart() -> None:
    prints = {parts.head_of("id", 1, model, version).fingerprint for model in "ab" for version in "12"}
    assert len(prints) == 4
    assert parts.head_of("id", 1, "a", "1") == parts.head_of("id", 1, "a", "1")


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.code)
def test_every_error_has_openais_shape(kind: type[OxloError]) -> None:
    for error in (kind("what to do"), kind("what to do", param="messages[0].role")):
        judge("ErrorResponse", parts.error_object(error))
        assert json.loads(parts.error_event(error).removeprefix(b"data: ")) == parts.error_object(error)
