"""Wishes about thinking by what a model's template knows, and signatures that carry a thought."""

import base64

import pytest

from oxlo_local.calls import ModelFacts, Thinking
from oxlo_local.errors import BadRequest
from oxlo_local.protocol.messages.blocks import ThinkingBlock
from oxlo_local.protocol.messages.thinking import SEALED, signature_of, thought_of
from tests.protocol.messages.asking import BUDGET, EFFORT, PLAIN, SWITCH, call, warnings

ENABLED = {"type": "enabled", "budget_tokens": 2048}
NO_THOUGHT = "thinking has no effect: this model does not think"
NO_EFFORT = "output_config.effort has no effect: this model's template knows no effort"


@pytest.mark.parametrize(
    ("facts", "thinking", "effort", "wish", "said"),
    [
        (SWITCH, None, None, Thinking(), []),
        (SWITCH, ENABLED, None, Thinking(enabled=True, budget=2048), []),
        (SWITCH, {"type": "adaptive"}, None, Thinking(enabled=True), []),
        (SWITCH, {"type": "disabled"}, None, Thinking(enabled=False), []),
        (SWITCH, None, "low", Thinking(), [NO_EFFORT]),
        (EFFORT, ENABLED, "low", Thinking(effort="low", budget=2048), []),
        (EFFORT, None, "max", Thinking(effort="max"), []),
        (EFFORT, {"type": "disabled"}, "low", Thinking(enabled=False),
         ["output_config.effort has no effect: thinking is disabled"]),
        (BUDGET, ENABLED, None, Thinking(budget=2048), []),
        (BUDGET, {"type": "adaptive"}, None, Thinking(), []),
        (PLAIN, ENABLED, None, Thinking(), [NO_THOUGHT]),
        (PLAIN, {"type": "adaptive"}, None, Thinking(), []),
        (PLAIN, {"type": "disabled"}, None, Thinking(enabled=False), []),
        (PLAIN, None, "high", Thinking(), [NO_EFFORT]),
    ],
)  # fmt: skip
def test_a_wish_is_put_as_the_model_understands_it(
    facts: ModelFacts, thinking: object, effort: str | None, wish: Thinking, said: list[str]
) -> None:
    fields = {"thinking": thinking, "output_config": {"effort": effort}}
    assert call(facts, **fields).thinking == wish
    assert warnings(facts, **fields) == said


def test_a_thought_that_is_not_shown_comes_back_in_its_signature() -> None:
    thought = "Straße 🦙\n" * 100
    block = ThinkingBlock(thinking="", signature=signature_of(thought, shown=False))
    assert thought_of(block, "x") == thought
    turn = {"type": "thinking", "thinking": "", "signature": block.signature}
    said = {"role": "assistant", "content": [turn, {"type": "text", "text": "so"}]}
    made = call(messages=[{"role": "user", "content": "?"}, said, {"role": "user", "content": "!"}])
    assert made.messages is not None and made.messages[1].reasoning == thought


@pytest.mark.parametrize("signature", ["", "sig", "EqQBCkYIBRgC", signature_of("hm", shown=True)])
def test_any_other_signature_is_taken(signature: str) -> None:
    assert thought_of(ThinkingBlock(thinking="hm", signature=signature), "x") == "hm"
    assert thought_of(ThinkingBlock(thinking="", signature=signature), "x") == ""


@pytest.mark.parametrize("sealed", ["!", "abc", base64.b64encode(b"\xff\xfe").decode()])
def test_one_that_was_tampered_with_is_refused(sealed: str) -> None:
    with pytest.raises(BadRequest) as refused:
        thought_of(ThinkingBlock(thinking="", signature=SEALED + sealed), "messages[1].content[0]")
    assert refused.value.param == "messages[1].content[0].signature"


def test_signatures_differ_as_thoughts_do() -> None:
    assert signature_of("a", shown=True) != signature_of("b", shown=True) and signature_of("", shown=True)
