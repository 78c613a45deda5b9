"""Which markers a model's thoughts stand between, and what its template lets a client say about thinking.

Templates know different variables: a switch (`enable_thinking`, `thinking`), an effort, a budget. A wish is turned into
what this template reads. What it cannot be turned into is refused: a client that asks for less thinking and gets the
same would not know. A budget holds for every model that thinks, since the engine ends a thought that has spent it.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from oxlo_local.calls import Thinking
from oxlo_local.errors import UnsupportedValue

SWITCHES = ("enable_thinking", "thinking")
OFF = "none"
OFFS = (OFF, "no_think")  # what templates call it
EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
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


def efforts_of(source: str, *, interpolates: bool) -> tuple[str, ...]:
    """The efforts that a template takes, "none" in its own word among them, where it has one.

    A template that checks them lists them; `interpolates`: it is gpt-oss's, which repeats what it is given, and the
    model knows three. All others take any word, and heed those that they know.
    """
    listed = re.search(r"reasoning_effort not in \[([^\]]*)\]", source)
    if listed:
        return tuple(re.findall(r"[\"']([^\"']+)[\"']", listed[1]))
    if interpolates:
        return EFFORTS[1:4]
    switched = re.search(rf"reasoning_effort[^%}}]*==\s*[\"']{OFF}[\"']", source)
    return (OFF, *EFFORTS) if switched else EFFORTS


def in_words(effort: str, known: Sequence[str]) -> str | None:
    """An effort as a template says it: the nearest that it knows, the greater of two; None where it has no "none"."""
    if effort == OFF:
        return next((each for each in known if each in OFFS), None)
    place = EFFORTS.index(effort)
    return min(
        (each for each in known if each in EFFORTS),
        key=lambda each: (abs(EFFORTS.index(each) - place), -EFFORTS.index(each)),
        default=effort,
    )


def opened(text: str, markers: Markers) -> bool:
    """Whether a prompt ends within a thought, so that the answer begins there and not with the marker."""
    return text.rstrip().endswith(markers.opens)


def may_think(text: str, markers: Markers | None) -> Markers | None:
    """The markers of a thought that may come first behind this prompt: none where one is open, or was closed."""
    if markers is None or opened(text, markers) or text.rstrip().endswith(markers.closes):
        return None
    return markers


def enabled_by(wish: Thinking) -> bool | None:
    """Whether thinking is wished for; None = not said. Raises UnsupportedValue where effort and switch differ."""
    if wish.effort is None:
        return wish.enabled
    by_effort = wish.effort != OFF
    if wish.enabled not in (None, by_effort):
        raise UnsupportedValue(
            "enable_thinking and reasoning_effort contradict each other: send one of them",
            param="reasoning_effort",
        )
    return by_effort


def switches(
    wish: Thinking, knows: Set[str], *, thinks: bool, efforts: Sequence[str] = EFFORTS
) -> dict[str, object]:
    """Template variables for a wish. `knows`: those that the template reads; `thinks`: the model thinks at all;
    `efforts`: those that the template takes.

    Raises UnsupportedValue (param "reasoning_effort", "enable_thinking" or "thinking_budget").
    """
    variables: dict[str, object] = {}
    enabled = enabled_by(wish)
    said = in_words(wish.effort, efforts) if wish.effort and "reasoning_effort" in knows else None
    if said is not None:
        variables["reasoning_effort"] = said
    param = "enable_thinking" if wish.effort is None else "reasoning_effort"
    switch = next((name for name in SWITCHES if name in knows), None)
    if enabled is not None and switch is not None:
        variables[switch] = enabled
    elif enabled is False and thinks and not variables:
        raise UnsupportedValue(
            "this model cannot leave thinking out: its template has no switch", param=param
        )
    elif enabled and not variables and (not thinks or wish.effort is not None):
        what = "does not think" if not thinks else "thinks as long as it likes: its template knows no effort"
        raise UnsupportedValue(f"this model {what}; leave {param} out", param=param)
    if wish.budget is not None:
        if not thinks:
            raise UnsupportedValue("this model does not think; leave it out", param="thinking_budget")
        if "thinking_budget" in knows:
            variables["thinking_budget"] = wish.budget
    return variables
