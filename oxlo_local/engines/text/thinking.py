"""Which markers a model's thoughts stand between, and what its template lets a client say about thinking.

Templates know different variables: a switch (`enable_thinking`, `thinking`), an effort, a budget. A wish is turned into
what this template reads. What it cannot be turned into is refused: a client that asks for less thinking and gets the
same would not know.
"""

from collections.abc import Set
from dataclasses import dataclass

from oxlo_local.calls import Thinking
from oxlo_local.errors import UnsupportedValue

SWITCHES = ("enable_thinking", "thinking")
OFF = "none"
WISHES = frozenset({*SWITCHES, "reasoning_effort", "thinking_budget"})  # template variables


@dataclass(frozen=True)
class Markers:
    """What a model writes before and after its thoughts."""

    opens: str
    closes: str


MARKERS = (
    Markers("<think>", "</think>"),
    Markers("[THINK]", "[/THINK]"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("<|channel>thought", "<channel|>"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("<mm:think>", "</mm:think>"),
    Markers("<thinking>", "</thinking>"),
)


def markers_of(source: str) -> Markers | None:
    """The markers that a template's text knows of, None where it knows of none."""
    return next((each for each in MARKERS if each.closes in source), None)


def opened(text: str, markers: Markers) -> bool:
    """Whether a prompt ends within a thought, so that the answer begins there and not with the marker."""
    return text.rstrip().endswith(markers.opens)


def switches(wish: Thinking, knows: Set[str], *, thinks: bool) -> dict[str, object]:
    """Template variables for a wish. `knows`: those that the template reads; `thinks`: the model thinks at all.

    Raises UnsupportedValue (param "reasoning_effort", "enable_thinking" or "thinking_budget").
    """
    variables: dict[str, object] = {}
    enabled = wish.enabled
    if wish.effort is not None:
        if enabled is None:
            enabled = wish.effort != OFF
        elif enabled != (wish.effort != OFF):
            raise UnsupportedValue(
                "enable_thinking and reasoning_effort contradict each other: send one of them",
                param="reasoning_effort",
            )
    if wish.effort not in (None, OFF) and "reasoning_effort" in knows:
        variables["reasoning_effort"] = wish.effort
    param = "enable_thinking" if wish.effort is None else "reasoning_effort"
    switch = next((name for name in SWITCHES if name in knows), None)
    if enabled is not None and switch is not None:
        variables[switch] = enabled
    elif enabled is False and thinks:
        raise UnsupportedValue(
            "this model cannot leave thinking out: its template has no switch", param=param
        )
    elif enabled and not variables and (not thinks or wish.effort is not None):
        what = "does not think" if not thinks else "thinks as long as it likes: its template knows no effort"
        raise UnsupportedValue(f"this model {what}; leave {param} out", param=param)
    if wish.budget is not None:
        if "thinking_budget" not in knows:
            raise UnsupportedValue("this model's template knows no thinking budget", param="thinking_budget")
        variables["thinking_budget"] = wish.budget
    return variables
