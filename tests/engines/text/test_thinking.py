"""What becomes of a wish about thinking, by what the template knows."""

from pathlib import Path

import pytest

from oxlo_local import random_model
from oxlo_local.calls import Constraint, Finished, Message, Reasoning, Sampling, Text, TextCall, Thinking
from oxlo_local.engines.text.thinking import MARKERS, efforts_of, markers_of, opened, switches
from oxlo_local.errors import UnsupportedValue
from tests.engines.text.conftest import MakeEngine, drive

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
        (Thinking(budget=9), SWITCH, True, "thinking_budget"),
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
