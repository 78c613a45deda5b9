"""Frames survive whatever pieces a pipe delivers, and noise is told from frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.calls import Events, Ping, Submit, Text, TextCall, decode_down, decode_up
from oxlo_local.workers.pipe import HEADER, MAX_FRAME, Frames, Garbled, pack


@given(st.lists(st.integers(0, 2**40), max_size=30), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_any_cut_gives_the_same_messages(numbers: list[int], cuts: list[int]) -> None:
    wire = b"".join(pack(Ping(number)) for number in numbers)
    frames, got, at, turn = Frames(), [], 0, 0
    while at < len(wire):
        size = cuts[turn % len(cuts)]
        got += [decode_down.decode(body) for body in frames.feed(wire[at : at + size])]
        at, turn = at + size, turn + 1
    assert got == [Ping(number) for number in numbers]


def test_a_message_keeps_its_type_and_fields() -> None:
    call = TextCall("a", prompts=["x", [1, 2]], stop=["\n"], n=2)
    (body,) = Frames().feed(pack(Submit(call)))
    assert decode_down.decode(body) == Submit(call)
    (body,) = Frames().feed(pack(Events([Text("a", 1, "é", 1)])))
    assert decode_up.decode(body) == Events([Text("a", 1, "é", 1)])


def test_an_impossible_length_is_noise() -> None:
    with pytest.raises(Garbled, match="announced"):
        Frames().feed(HEADER.pack(MAX_FRAME + 1))


def test_a_message_of_many_pieces_is_put_together_in_linear_time() -> None:
    wire = pack(Submit(TextCall("a", prompts=["x" * 20_000_000])))
    frames, bodies = Frames(), []
    for at in range(0, len(wire), 4096):
        bodies += frames.feed(wire[at : at + 4096])
    assert len(bodies) == 1 and len(bodies[0]) == len(wire) - HEADER.size
