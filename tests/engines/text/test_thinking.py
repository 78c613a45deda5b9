"""What becomes of a wish about thinking, by what the template knows."""

import pytest

from oxlo_local.calls import Thinking
from oxlo_local.engines.text.thinking import MARKERS, markers_of, opened, switches
from oxlo_local.errors import UnsupportedValue

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
        (Thinking(effort="high"), SWITCH | EFFORT, True, {"reasoning_effort": "high", "enable_thinking": True}),
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


def test_markers_are_known_by_the_templates_words() -> None:
    assert markers_of("{% if '</think>' in content %}") == MARKERS[0]
    assert markers_of("{{ content }}") is None


def test_a_prompt_that_ends_with_the_opening_is_within_a_thought() -> None:
    assert opened("<|assistant|><think>\n", MARKERS[0])
    assert not opened("<|assistant|><think>\n\n</think>\n\n", MARKERS[0])
