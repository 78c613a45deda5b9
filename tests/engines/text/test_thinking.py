"""What becomes of a wish about thinking, by what the template knows."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from oxlo_local import random_model
from oxlo_local.calls import (
    Constraint,
    Event,
    Finished,
    Message,
    Reasoning,
    Sampling,
    Text,
    TextCall,
    Thinking,
    TokenizeCall,
    Tokens,
)
from oxlo_local.engines.text.channels import Channels
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.engines.text.output import TextOutput
from oxlo_local.engines.text.sequence import Request, Sequence
from oxlo_local.engines.text.thinking import MARKERS, efforts_of, markers_of, opened, switches
from oxlo_local.engines.text.toolcalls.harmony import HARMONY
from oxlo_local.errors import UnsupportedValue
from tests.engines.text.conftest import Answers, MakeEngine, drive

SWITCH, EFFORT = {"enable_thinking"}, {"reasoning_effort"}


@pytest.mark.parametrize(
    ("wish", "knows", "thinks", "variables"),
    [
        (Thinking(), SWITCH, True, {}),
        (Thinking(enabled=False), SWITCH, True, {"enable_thinking": False}),
        (Thinking(enabled=True), {"thinking"}, True, {"thinking": True}),
        (Thinking(enabled=True), set(), True, {}),
        (Thinking(enabled=False), set(), False, {}),
        (Thinking(effort="none"), SWITCH, True, {"enable_thinking": False}),
        (Thinking(effort="none"), set(), False, {}),
        (Thinking(effort="low"), EFFORT, True, {"reasoning_effort": "low"}),
        (Thinking(effort="low"), SWITCH, True, {"enable_thinking": True}),
        (
            Thinking(effort="high"),
            SWITCH | EFFORT,
            True,
            {"reasoning_effort": "high", "enable_thinking": True},
        ),
        (Thinking(budget=9), {"thinking_budget"}, True, {"thinking_budget": 9}),
        (Thinking(budget=9), SWITCH, True, {}),
    ],
)
def test_a_wish_becomes_what_the_template_reads(
    wish: Thinking, knows: set[str], thinks: bool, variables: dict[str, object]
) -> None:
    assert switches(wish, knows, thinks=thinks) == variables


@pytest.mark.parametrize(
    ("wish", "knows", "thinks", "param"),
    [
        (Thinking(enabled=False), set(), True, "enable_thinking"),
        (Thinking(enabled=True), set(), False, "enable_thinking"),
        (Thinking(effort="none"), EFFORT, True, "reasoning_effort"),
        (Thinking(effort="low"), set(), True, "reasoning_effort"),
        (Thinking(effort="low"), set(), False, "reasoning_effort"),
        (Thinking(effort="low", enabled=False), SWITCH, True, "reasoning_effort"),
        (Thinking(budget=9), SWITCH, False, "thinking_budget"),
    ],
)
def test_what_the_template_does_not_know_is_refused(
    wish: Thinking, knows: set[str], thinks: bool, param: str
) -> None:
    with pytest.raises(UnsupportedValue) as caught:
        switches(wish, knows, thinks=thinks)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("source", "interpolates", "wish", "word"),
    [
        ("{{ reasoning_effort }}", True, "xhigh", "high"),
        ("{{ reasoning_effort }}", True, "minimal", "low"),
        ("{{ reasoning_effort }}", False, "xhigh", "xhigh"),
        ("{% if reasoning_effort not in ['high', 'low', 'no_think'] %}", False, "medium", "high"),
        ("{% if reasoning_effort not in ['high', 'low', 'no_think'] %}", False, "minimal", "low"),
        ("{% if reasoning_effort not in ['high', 'low', 'no_think'] %}", False, "none", "no_think"),
        ('{% if reasoning_effort | lower == "none" %}', False, "none", "none"),
    ],
)
def test_an_effort_is_said_in_the_templates_own_words(
    source: str, interpolates: bool, wish: str, word: str
) -> None:
    efforts = efforts_of(source, interpolates=interpolates)
    said = switches(Thinking(effort=wish), EFFORT, thinks=True, efforts=efforts)
    assert said == {"reasoning_effort": word}


def test_markers_are_known_by_the_templates_words() -> None:
    assert markers_of("{% if '</think>' in content %}") == MARKERS[0]
    assert markers_of("{{ content }}") is None


def test_a_prompt_that_ends_with_the_opening_is_within_a_thought() -> None:
    assert opened("<|assistant|><think>\n", MARKERS[0])
    assert not opened("<|assistant|><think>\n\n</think>\n\n", MARKERS[0])


OPENS = "{% for m in messages %}{{ m.content }}{% endfor %}<think>{# closed by </think> #}"


@pytest.fixture
def thinker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random model whose vocabulary has the markers as control tokens, which have no text of their own."""
    monkeypatch.setattr(random_model, "SPECIALS", (*random_model.SPECIALS, "<think>", "</think>"))
    path = tmp_path / "thinker.gguf"
    random_model.write(path)
    return path


def test_markers_that_are_control_tokens_divide_the_answer(make_engine: MakeEngine, thinker: Path) -> None:
    engine = make_engine(thinker, chat_template=OPENS)
    closes = len(random_model.SPECIALS) - 1
    talk = [Message("user", "go")]
    biased = Sampling(seed=1, logit_bias={closes: 4.0})
    call = TextCall("c", talk, sampling=biased, max_tokens=200)
    events = [event for step in drive(engine, [call]).steps for event in step]
    kinds = [type(event) for event in events if isinstance(event, Reasoning | Text)]
    assert Reasoning in kinds and Text in kinds
    assert kinds == sorted(kinds, key=lambda kind: kind is Text)
    usage = drive(engine, [call]).done("c").usage
    assert 0 < usage.reasoning_tokens < usage.completion_tokens
    assert "think>" not in "".join(e.text for e in events if isinstance(e, Reasoning | Text))


def test_a_constraint_holds_from_the_end_of_the_thought(make_engine: MakeEngine, thinker: Path) -> None:
    closes = len(random_model.SPECIALS) - 1
    call = TextCall(
        "c",
        [Message("user", "go")],
        sampling=Sampling(seed=1, logit_bias={closes: 4.0}),
        max_tokens=400,
        constraint=Constraint("regex", "(yes|no)!", "guided_regex"),
    )
    events = [
        event for step in drive(make_engine(thinker, chat_template=OPENS), [call]).steps for event in step
    ]
    assert any(isinstance(event, Reasoning) for event in events)
    assert "".join(e.text for e in events if isinstance(e, Text)) in ("yes!", "no!")
    assert [e.reason for e in events if isinstance(e, Finished)] == ["stop"]


# -- a budget ---------------------------------------------------------------------------------------------------------

MAY_THINK = "{% for m in messages %}{{ m.content }}{% endfor %}{# <think> ... </think> #}"
CHOSEN = Constraint("regex", "(yes|no)!", "guided_regex")


def thought_through(answers: Answers) -> dict[int, list[type[Event]]]:
    """Which kinds of output each choice had, in order."""
    kinds: dict[int, list[type[Event]]] = {}
    for event in (event for step in answers.steps for event in step):
        if isinstance(event, Reasoning | Text):
            kinds.setdefault(event.choice, []).append(type(event))
    return kinds


@pytest.mark.parametrize("tokens", [True, False], ids=["control token", "text"])
@pytest.mark.parametrize("budget", [0, 7])
def test_a_thought_that_has_spent_its_budget_is_ended(
    make_engine: MakeEngine, thinker: Path, budget: int, tokens: bool
) -> None:
    engine = make_engine(thinker if tokens else "llama", chat_template=OPENS)
    closes = len(random_model.SPECIALS) - 1
    never = {closes: -100.0} if tokens else {}
    call = TextCall(
        "c",
        [Message("user", "go")],
        sampling=Sampling(seed=1, logit_bias=never),
        max_tokens=40,
        n=3,
        thinking=Thinking(budget=budget),
    )
    answers = drive(engine, [call])
    for kinds in thought_through(answers).values():
        assert Text in kinds and (Reasoning in kinds) is (budget > 0)
        assert kinds == sorted(kinds, key=lambda kind: kind is Text)
    usage = answers.done("c").usage
    marker = 1 if tokens else len(engine_tokens(engine, "</think>"))
    assert usage.reasoning_tokens == 3 * (budget + marker)
    assert usage.completion_tokens > usage.reasoning_tokens
    endless = drive(engine, [replace(call, id="d", thinking=Thinking())]).done("d").usage
    assert endless.reasoning_tokens == endless.completion_tokens > usage.reasoning_tokens


def engine_tokens(engine: TextEngine, text: str) -> list[int]:
    events = [event for step in drive(engine, [TokenizeCall("t", text)]).steps for event in step]
    return next(event.tokens for event in events if isinstance(event, Tokens))


def test_behind_a_spent_budget_a_constraint_holds(make_engine: MakeEngine, thinker: Path) -> None:
    opens, closes = len(random_model.SPECIALS) - 2, len(random_model.SPECIALS) - 1
    for template, bias in ((OPENS, {closes: -100.0}), (MAY_THINK, {opens: 30.0, closes: -100.0})):
        engine = make_engine(thinker, chat_template=template)
        call = TextCall(
            "c",
            [Message("user", "go")],
            sampling=Sampling(seed=1, logit_bias=bias),
            max_tokens=60,
            n=2,
            logprobs=1,
            constraint=CHOSEN,
            thinking=Thinking(budget=5),
        )
        answers = drive(engine, [call])
        assert {answers.texts["c", choice] for choice in range(2)} <= {"yes!", "no!"}
        assert all(Reasoning in kinds for kinds in thought_through(answers).values())
        reasons = [e.reason for step in answers.steps for e in step if isinstance(e, Finished)]
        assert reasons == ["stop"] * 2
        # Five of thought and its end; where the model itself opens the thought, its grammar holds already, and has a
        # character of several tokens ended first.
        least, most = (12, 12) if template is OPENS else (14, 20)
        assert least <= answers.done("c").usage.reasoning_tokens <= most


def test_a_budget_ends_a_thought_that_is_guessed_ahead(make_engine: MakeEngine, thinker: Path) -> None:
    closes = len(random_model.SPECIALS) - 1
    call = TextCall(
        "c",
        [Message("user", "go go go go go go")],
        sampling=Sampling(temperature=0, logit_bias={closes: -100.0}),
        max_tokens=40,
        thinking=Thinking(budget=9),
    )
    plain = drive(make_engine(thinker, chat_template=OPENS, speculation="none"), [call])
    ahead = drive(make_engine(thinker, chat_template=OPENS, speculation="lookup", guesses=4), [call])
    assert plain.texts == ahead.texts and plain.done("c").usage.reasoning_tokens == 10
    assert ahead.done("c").usage.reasoning_tokens == 10
    assert ahead.done("c").usage.completion_tokens == 40


def test_gpt_oss_is_led_out_of_its_analysis() -> None:
    call = TextCall("c", [Message("user", "go")], thinking=Thinking(budget=1))
    channels = Channels(HARMONY, None, tools={}, new_id=lambda: "call_1")
    sequence = Sequence(
        Request(call, 1, 1), 0, 0, [1], 1, 99, TextOutput(), channels=channels, closing=[7, 8]
    )
    said: list[Event] = []
    heads = (b"<|channel|>analysis<|message|>", b"Hm", b"<|end|>", b"<|start|>assistant")
    for token, due, piece in zip((2, 3, 7, 8), (None, None, 7, None), heads, strict=True):
        assert sequence.due == due
        sequence.take(token)
        said += sequence.feed(piece, None)
    sequence.feed(b"<|channel|>analysis<|message|>", None)
    assert sequence.due == 7
    assert [type(event) for event in said] == [Reasoning]
