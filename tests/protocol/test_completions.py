import json

import pytest

from oxlo_local.calls import Event, Finished, Text, TextCall, TokenLogprob
from oxlo_local.errors import BadRequest, UnknownParameter, UnsupportedValue
from oxlo_local.protocol import completions
from tests.openai_description import events_of, judge, judge_completion_chunk
from tests.protocol.events import DONE, HEAD, rendered, spoken, token


def request(prompt: object = "once", **fields: object) -> completions.CompletionRequest:
    body = json.dumps({"model": "m", "prompt": prompt, **fields}).encode()
    return completions.decode(body, strict=True)[0]


def call(prompt: object = "once", **fields: object) -> TextCall:
    return completions.to_call(request(prompt, **fields), {}, "cmpl-1")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("once", ["once"]),
        ("", [""]),
        (None, [""]),
        (["once", "twice"], ["once", "twice"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt: object, prompts: list[object]) -> None:
    assert call(prompt).prompts == prompts


def test_defaults_are_openais() -> None:
    made = call()
    assert (made.max_tokens, made.n, made.logprobs, made.echo, made.suffix) == (16, 1, None, False, None)


def test_every_field_reaches_the_call() -> None:
    made = call(
        suffix="end", max_tokens=3, echo=True, logprobs=0, n=2, best_of=2, truncation="auto", stop="x", seed=1
    )
    assert (made.max_tokens, made.n, made.logprobs, made.echo, made.suffix) == (3, 2, 0, True, "end")
    assert (made.truncate, made.stop, made.sampling.seed) == (True, ["x"], 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": ["a", [1]]}, "prompt[1]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[1, 2**40]]}, "prompt[0][1]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 2049}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 100}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"echo": 1}, "echo"),
        ({"suffix": 5}, "suffix"),
        ({"best_of": -1}, "best_of"),
    ],
)
def test_a_wrong_value_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request(**fields)
    assert caught.value.param == param


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(BadRequest) as caught:
        completions.decode(b'{"model": "m"}', strict=False)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("fields", [{"best_of": 3}, {"n": 2, "best_of": 3}, {"n": 3, "best_of": 2}])
def test_answers_are_never_made_to_be_thrown_away(fields: dict[str, object]) -> None:
    with pytest.raises(UnsupportedValue) as caught:
        request(**fields)
    assert caught.value.param == "best_of"
    assert request(n=2, best_of=1).choices_each == 2


def test_scoring_a_text_needs_no_new_tokens() -> None:
    assert call(max_tokens=0, echo=True, logprobs=1).max_tokens == 0


def test_a_field_of_chat_is_unknown_here() -> None:
    with pytest.raises(UnknownParameter) as caught:
        request(messages=[])
    assert caught.value.param == "messages"
    with pytest.raises(UnknownParameter):
        request(stream=True, stream_options={"speed": 1})


# -- answers ----------------------------------------------------------------------------------------------------------


def streamed(events: list[Event], **fields: object) -> list[dict[str, object]]:
    chunks = events_of(rendered(completions.renderer(request(stream=True, **fields), HEAD), events))
    for chunk in chunks:
        judge_completion_chunk(chunk)
    return chunks


def answer(events: list[Event], prompt: object = "once", **fields: object) -> list[dict[str, object]]:
    value = json.loads(rendered(completions.renderer(request(prompt, **fields), HEAD), events))
    judge("CreateCompletionResponse", value)
    choices: list[dict[str, object]] = value["choices"]
    return choices


def test_a_stream_says_text_reason_and_done() -> None:
    chunks = streamed([*spoken("a", "\u20ac"), DONE], stream_options={"include_usage": True})
    choices = [choice for chunk in chunks for choice in chunk["choices"]]  # type: ignore[attr-defined]
    assert "".join(choice["text"] for choice in choices) == "a\u20ac"
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    assert [chunk["usage"] is None for chunk in chunks] == [True, True, True, False]
    assert chunks[-1]["choices"] == []


def test_a_stream_without_usage_does_not_speak_of_it() -> None:
    assert all("usage" not in chunk for chunk in streamed([*spoken("a"), DONE]))


def test_offsets_of_streamed_tokens_run_on_for_each_choice() -> None:
    events = [*spoken("ab", "cd", choice=0, logprobs=True), *spoken("e", "f", choice=1, logprobs=True), DONE]
    choices = [chunk["choices"][0] for chunk in streamed(events, n=2, logprobs=1)]  # type: ignore[index]
    offsets = [(c["index"], c["logprobs"]["text_offset"]) for c in choices if c["logprobs"]]
    assert offsets == [(0, [0]), (0, [2]), (1, [0]), (1, [1])]


def test_every_prompt_and_sample_is_a_choice() -> None:
    events = [event for choice in range(4) for event in spoken(str(choice), choice=choice)]
    choices = answer([*events, DONE], ["a", "b"], n=2)
    assert [(choice["index"], choice["text"]) for choice in choices] == [
        (0, "0"),
        (1, "1"),
        (2, "2"),
        (3, "3"),
    ]


def test_a_table_of_logprobs() -> None:
    first = TokenLogprob("Once", list(b"Once"), None, [])
    halves = [token("\ufffd", -1.0, b"\xe2\x82"), token("\ufffd", -2.0, b"\xac")]
    echoed: list[Event] = [Text("c", 0, "Once", 0, [first]), Text("c", 0, "\u20ac", 2, halves)]
    events = [*echoed, *spoken("!", logprobs=True), Finished("c", 0, "length"), DONE]
    table = answer(events, echo=True, logprobs=2)[0]["logprobs"]
    assert table == {
        "tokens": ["Once", "bytes:\\xe2\\x82", "bytes:\\xac", "!"],
        "token_logprobs": [0.0, -1.0, -2.0, -0.5],
        "top_logprobs": [
            {},
            {"bytes:\\xe2\\x82": -1.0, "no": -9999.0},
            {"bytes:\\xac": -2.0, "no": -9999.0},
            {"!": -0.5, "no": -9999.0},
        ],
        "text_offset": [0, 4, 5, 5],
    }


def test_a_token_that_is_a_replacement_character_keeps_its_text() -> None:
    table, following = completions.token_table([token("\ufffd", -1.0, "\ufffd".encode())], "x", 3)
    assert (table.tokens, table.text_offset, following) == (["\ufffd"], [3], 4)


def test_a_space_that_only_the_token_has_moves_nothing() -> None:
    start = TokenLogprob("<s>", [], None, [])
    tokens = [start, token(" Once"), token(" upon")]
    assert completions.token_table(tokens, "Once upon", 0)[0].text_offset == [0, 0, 4]
    assert completions.token_table(tokens, " Once upon", 0)[0].text_offset == [0, 0, 5]


def test_logprobs_are_null_unless_asked_for() -> None:
    assert answer([*spoken("a"), DONE])[0]["logprobs"] is None
    assert answer([*spoken("a", logprobs=True), DONE], logprobs=0)[0]["logprobs"] is not None
