"""The hinge: every frame comes out as it went in, with all its fields set and with only those that must be."""

import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import pytest

from oxlo_local import calls
from oxlo_local.calls import Down, Up


def example(annotation: Any, *, full: bool) -> Any:
    """A value of the type; `full` sets what has a default too, to something else than its default where it can."""
    origin, arms = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return arms[-1]
    if origin in (Union, types.UnionType):
        return example(next(arm for arm in arms if arm is not type(None)), full=full)
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        fields = msgspec.structs.fields(annotation)
        return annotation(
            **{each.name: example(each.type, full=full) for each in fields if full or each.required}
        )
    if origin is dict:
        return {example(arms[0], full=full): example(arms[1], full=full)}
    if origin is tuple:
        return tuple(example(arm, full=full) for arm in arms if arm is not Ellipsis)
    if origin is not None:  # a list, or a Sequence of events
        return [example(arms[0], full=full)]
    return {str: "schön\n", bytes: b"\x00\xff", int: 7, float: 0.25, bool: True}[annotation]


@pytest.mark.parametrize("full", [False, True], ids=["required", "full"])
@pytest.mark.parametrize("frame", get_args(Down), ids=lambda frame: frame.__name__)
def test_down(frame: type[msgspec.Struct], full: bool) -> None:
    sent = example(frame, full=full)
    assert calls.decode_down.decode(calls.encoder.encode(sent)) == sent


@pytest.mark.parametrize("full", [False, True], ids=["required", "full"])
@pytest.mark.parametrize("frame", get_args(Up), ids=lambda frame: frame.__name__)
def test_up(frame: type[msgspec.Struct], full: bool) -> None:
    sent = example(frame, full=full)
    assert calls.decode_up.decode(calls.encoder.encode(sent)) == sent


@pytest.mark.parametrize("full", [False, True], ids=["required", "full"])
@pytest.mark.parametrize("event", get_args(calls.Event), ids=lambda event: event.__name__)
def test_every_event_crosses(event: type[msgspec.Struct], full: bool) -> None:
    sent = calls.Events([example(event, full=full)])
    assert calls.decode_up.decode(calls.encoder.encode(sent)) == sent


def test_a_frame_of_the_other_direction_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        calls.decode_down.decode(calls.encoder.encode(calls.Loading(0.5)))
