"""Questions about tokens, short ones and long ones, and their place beside a running generation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from oxlo_local.calls import (
    CountCall,
    DetokenizeCall,
    Done,
    EmbedCall,
    Event,
    Failed,
    Load,
    Message,
    PromptCall,
    Sampling,
    Text,
    TextCall,
    TextOptions,
    TokenizeCall,
    Tokens,
)
from oxlo_local.engines.questions import INLINE, MOST, Questions, no_chat
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.engines.weights import Weights
from oxlo_local.random_model import write


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "tiny.gguf"
    write(file)
    return file


@pytest.fixture
def questions(path: Path) -> Iterator[Questions]:
    weights = Weights(path, 0, lambda _: None)
    asked = Questions(weights, no_chat, no_chat)
    yield asked
    asked.close()
    weights.close()


@pytest.fixture
def engine(path: Path) -> Iterator[TextEngine]:
    options = TextOptions(ctx=512, parallel=1, threads=1, together=2)
    made = TextEngine(Load("text", "tiny", str(path), options), lambda _: None)
    yield made
    made.close()


def answered(questions: Questions) -> list[Event]:
    events: list[Event] = []
    while questions.busy():
        questions.wait(10)
        events += questions.answers()
    return events


def test_a_short_question_is_answered_at_once(questions: Questions) -> None:
    questions.ask(TokenizeCall("a", "hello"))
    started, tokens, done = questions.answers()
    assert isinstance(tokens, Tokens) and b"".join(tokens.pieces) == b"hello"
    assert isinstance(done, Done) and done.usage.prompt_tokens == len(tokens.tokens)
    assert not questions.busy() and questions.answers() == []


def test_a_long_one_is_answered_on_the_side(questions: Questions) -> None:
    questions.ask(TokenizeCall("long", "word " * INLINE))
    questions.ask(TokenizeCall("short", "word"))
    assert "short" in {event.id for event in questions.answers()}
    rest = answered(questions)
    assert {event.id for event in rest} <= {"long"} and not questions.busy()


def test_a_cancelled_one_has_one_end(questions: Questions) -> None:
    questions.ask(TokenizeCall("a", "word " * 10 * INLINE))
    questions.cancel("a")
    questions.cancel("nobody")
    assert answered(questions) == [Failed("a", "cancelled", "the client left")]


def test_no_more_is_taken_than_can_be_answered_in_a_second(questions: Questions) -> None:
    questions.ask(TokenizeCall("a", "x" * (MOST + 1)))
    questions.ask(DetokenizeCall("b", [7] * (MOST + 1)))
    questions.ask(DetokenizeCall("c", [7] * MOST))
    ends = {event.id: event for event in answered(questions)}
    for id, param in (("a", "content"), ("b", "tokens")):
        end = ends[id]
        assert isinstance(end, Failed) and end.param == param and "1,048,576" in end.message
    assert isinstance(ends["c"], Done)


def test_what_cannot_be_answered_fails_alone(questions: Questions) -> None:
    questions.ask(DetokenizeCall("a", [1, 10**6]))
    questions.ask(PromptCall("b", TextCall("b", messages=[])))
    ends = {event.id: event for event in answered(questions)}
    first, second = ends["a"], ends["b"]
    assert isinstance(first, Failed) and (first.code, first.param) == ("invalid_value", "tokens")
    assert isinstance(second, Failed) and second.param == "messages"


def test_an_answer_does_not_wait_for_a_decode_and_a_flood_does_not_stop_one(engine: TextEngine) -> None:
    prompt = [7] * 400
    engine.submit(TextCall("talk", prompts=[prompt], sampling=Sampling(temperature=0), max_tokens=2))
    generated = 0
    for number in range(40):
        engine.submit(TokenizeCall(str(number), "hello"))
        steps = engine.gauges().steps
        events = engine.step()
        if number == 0:
            assert {event.id for event in events} == {"0"} and engine.gauges().steps == steps
        generated += any(isinstance(event, Done) and event.id == "talk" for event in events)
    assert generated == 1


def test_the_prompt_of_a_chat(engine: TextEngine) -> None:
    engine.submit(PromptCall("p", TextCall("p", messages=[Message("user", "hi " * 5000)])))
    events: list[Event] = []
    while engine.busy():
        events += engine.step()
    texts = [event.text for event in events if isinstance(event, Text)]
    assert len(texts) == 1 and texts[0].startswith("<|im_start|>user\nhi hi")


def test_the_tokens_of_a_chat_are_those_of_its_prompt(engine: TextEngine) -> None:
    for text in ("hi", "hi " * 2000):
        asked = TextCall("c", messages=[Message("user", text)])
        engine.submit(PromptCall("p", asked))
        engine.submit(CountCall("c", asked))
        events: list[Event] = []
        while engine.busy():
            events += engine.step()
        (prompt,) = [event.text for event in events if isinstance(event, Text)]
        engine.submit(TokenizeCall("t", prompt, add_special=True))
        while engine.busy():
            events += engine.step()
        done = {event.id: event.usage.prompt_tokens for event in events if isinstance(event, Done)}
        assert done["c"] == done["t"] > 0 and not [e for e in events if e.id == "c" and isinstance(e, Text)]


def test_no_more_is_counted_than_could_be_answered(engine: TextEngine) -> None:
    engine.submit(CountCall("c", TextCall("c", messages=[Message("user", "hi " * 500_000)])))
    events: list[Event] = []
    while engine.busy():
        events += engine.step()
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.code == "context_length_exceeded"


def test_a_text_model_makes_no_vectors(engine: TextEngine) -> None:
    engine.submit(EmbedCall("e", ["x"]))
    (failed,) = engine.step()
    assert isinstance(failed, Failed) and (failed.code, failed.param) == ("unsupported_value", "model")
