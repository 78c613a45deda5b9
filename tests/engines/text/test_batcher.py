"""The plan of a step: who gets how many tokens."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.engines.text.batcher import BURST, SCORED, TILE, Piece, Work, graphs, plan


def prompt(slot: int, length: int, *, computed: int = 0, stop: int | None = None) -> Work:
    return Work(slot, computed, length, length if stop is None else stop, generating=False)


def generating(slot: int, length: int = 10, *, fresh: bool = False, passed: int = 0) -> Work:
    return Work(slot, length - 1, length, length, generating=True, fresh=fresh, passed=passed)


def counts(pieces: list[Piece]) -> dict[int, int]:
    return {piece.slot: piece.count for piece in pieces}


def test_a_generating_sequence_gets_its_token_before_any_prompt() -> None:
    pieces = plan([prompt(0, 1000), generating(1), generating(2)], batch=512, chunk=64)
    assert counts(pieces) == {0: 64, 1: 1, 2: 1}


def test_a_prompt_alone_gets_the_whole_batch() -> None:
    assert counts(plan([prompt(3, 1000)], batch=512, chunk=64)) == {3: 512}


def test_second_tokens_wait_for_the_prompts_that_came_with_theirs() -> None:
    assert counts(plan([generating(0, fresh=True), prompt(1, 300)], batch=512, chunk=64)) == {1: 300}


def test_no_later_token_waits_for_more_than_a_chunk() -> None:
    works = [generating(0, fresh=True), generating(2), prompt(1, 300)]
    assert counts(plan(works, batch=512, chunk=64)) == {0: 1, 1: 64, 2: 1}


def test_no_second_token_waits_for_a_long_prompt() -> None:
    works = [generating(0, fresh=True), prompt(1, 600, computed=500)]
    assert counts(plan(works, batch=512, chunk=64)) == {0: 1, 1: 64}


def test_newcomers_end_a_burst_in_time() -> None:
    steps = BURST // 512
    newcomers = [prompt(slot, 100) for slot in range(1, 7)]

    def waited(passed: int) -> dict[int, int]:
        return counts(plan([generating(0, fresh=True, passed=passed), *newcomers], batch=512, chunk=64))

    assert [sum(waited(passed).values()) for passed in range(steps)] == [500] * steps, (
        "five whole ones each time"
    )
    assert waited(steps) == {0: 1, 1: 64}


def test_a_stream_of_prompts_with_answers_of_one_token_keeps_no_second_one_waiting() -> None:
    passed, waits = 0, []
    for number in range(40):
        pieces = counts(
            plan([generating(0, fresh=True, passed=passed), prompt(1 + number, 300)], batch=512, chunk=64)
        )
        passed = 0 if 0 in pieces else passed + 1
        waits.append(passed)
    assert max(waits) <= BURST // 300 and waits.count(0) > 4


def test_second_tokens_wait_for_no_prompt_that_cannot_go_on() -> None:
    works = [generating(0, fresh=True), prompt(1, 300, computed=120, stop=120)]
    assert counts(plan(works, batch=512, chunk=64)) == {0: 1}


def test_only_the_last_piece_of_a_prompt_has_logits() -> None:
    assert plan([prompt(0, 600)], batch=512, chunk=64)[0].outputs == "none"
    assert plan([prompt(0, 600, computed=512)], batch=512, chunk=64) == [Piece(0, 512, 88, "last")]


def test_short_prompts_go_first_in_order_of_arrival() -> None:
    works = [prompt(5, 200), prompt(1, 200), prompt(2, 200)]
    assert counts(plan(works, batch=512, chunk=64)) == {5: 200, 1: 200, 2: 112}


def test_a_long_prompt_keeps_a_quarter_beside_short_ones() -> None:
    works = [prompt(0, 8000), *(prompt(slot, 100) for slot in range(1, 9))]
    shares = counts(plan(works, batch=512, chunk=64))
    assert shares[0] >= 128
    assert shares[1] == shares[2] == 100


def test_long_prompts_share_evenly() -> None:
    assert counts(plan([prompt(0, 8000), prompt(1, 9000)], batch=512, chunk=64)) == {0: 256, 1: 256}
    assert counts(plan([prompt(0, 8000), prompt(1, 9000)], batch=80, chunk=64)) == {0: 64}, (
        "half tiles are dear"
    )


def test_a_chunk_takes_as_long_at_the_end_of_a_prompt_as_at_its_beginning() -> None:
    def read(computed: int) -> int:
        works = [prompt(0, 9000, computed=computed), generating(1)]
        return counts(plan(works, batch=512, chunk=256, halfway=1000.0))[0]

    assert [read(computed) for computed in (0, 300, 1000, 3000)] == [256, 192, 128, 64]
    assert read(8000) == TILE, "fewer take no less time"
    assert counts(plan([prompt(0, 9000, computed=1000)], batch=512, chunk=256, halfway=1000.0)) == {0: 256}


def test_a_short_rest_far_into_a_prompt_counts_as_what_it_costs() -> None:
    rest, new, other = prompt(0, 3100, computed=3000), prompt(1, 110), generating(2)
    pieces = counts(plan([rest, new, other], batch=512, chunk=256, halfway=1000.0))
    assert pieces == {1: 110, 2: 1}, "100 tokens at a depth of 3,000 are dearer than what is left"
    assert counts(plan([rest, other], batch=512, chunk=256, halfway=1000.0)) == {0: TILE, 2: 1}


def test_short_prompts_pass_a_deep_one_by_until_its_tile_is_a_quarter_of_the_time() -> None:
    def read(passed: int) -> dict[int, int]:
        deep = Work(0, 5000, 9000, 9000, generating=False, passed=passed)
        works = [deep, *(prompt(slot, 110) for slot in range(1, 5)), generating(9)]
        return counts(plan(works, batch=512, chunk=256, halfway=1000.0))

    assert read(0) == read(4) == {1: 110, 2: 110, 9: 1}
    assert read(5) == {0: TILE, 1: 110, 2: 82, 9: 1}, "6 x 64 tokens' time since, and a tile costs as much"


def test_a_deep_prompt_takes_what_short_ones_leave_where_a_tile_fits() -> None:
    works = [prompt(0, 9000, computed=1000), prompt(1, 60), generating(2)]
    assert counts(plan(works, batch=512, chunk=256, halfway=1000.0)) == {0: TILE, 1: 60, 2: 1}


@pytest.mark.parametrize(
    ("room", "lengths"),
    [(256, [9000, 400]), (256, [9000, 9000, 700]), (64, [9000, 110, 110, 110]), (80, [700, 700])],
)
def test_long_prompts_have_equal_time_however_deep(room: int, lengths: list[int]) -> None:
    computed = [6000 if length == 9000 else 0 for length in lengths]
    passed, spent, ended = [0] * len(lengths), [0.0] * len(lengths), [0.0] * len(lengths)
    while not ended[-1]:
        works = [
            Work(slot, computed[slot], length, length, generating=False, passed=passed[slot])
            for slot, length in enumerate(lengths)
            if computed[slot] < length
        ]
        pieces = counts(plan([*works, generating(9)], batch=512, chunk=room, halfway=1500.0))
        for work in works:
            count = pieces.get(work.slot, 0)
            spent[work.slot] += count * (1 + computed[work.slot] / 1500)
            computed[work.slot] += count
            passed[work.slot] = 0 if count else passed[work.slot] + 1
            if computed[work.slot] == work.length:
                ended[work.slot] = sum(spent)
    assert ended[-1] <= spent[-1] * len(lengths) + 2 * TILE * 5, (
        "nobody waits for more than his share and a deep tile or two"
    )


def test_a_stream_of_short_prompts_leaves_a_deep_one_a_quarter_of_the_time() -> None:
    computed, passed, spent, steps = 4000, 0, 0.0, 400
    for _ in range(steps):
        deep = Work(0, computed, 99_000, 99_000, generating=False, passed=passed)
        stream = [prompt(slot, 110) for slot in range(1, 5)]
        count = counts(plan([deep, *stream, generating(9)], batch=512, chunk=256, halfway=1000.0)).get(0, 0)
        passed = 0 if count else passed + 1
        spent += count * (1 + computed / 1000)
        computed += count
    assert 0.9 <= spent / (steps * 256 / 4) <= 1.1


def test_chunks_smaller_than_a_tile_stay_as_small_as_they_were_asked_for() -> None:
    works = [prompt(0, 9000, computed=8000), generating(1)]
    assert counts(plan(works, batch=512, chunk=10, halfway=1000.0)) == {0: 10, 1: 1}


def test_a_prefill_pauses_where_a_follower_wants_to_copy() -> None:
    pieces = plan([prompt(0, 300, stop=120)], batch=512, chunk=64)
    assert pieces == [Piece(0, 0, 120, "none")]


def test_every_row_is_wanted_for_a_scored_prompt() -> None:
    work = Work(0, 0, 20, 20, generating=False, every_logit=True)
    assert plan([work], batch=512, chunk=64) == [Piece(0, 0, 20, "all")]


def test_a_scored_prompt_comes_in_small_pieces() -> None:
    work = Work(0, 40, 400, 400, generating=False, every_logit=True)
    assert plan([work], batch=512, chunk=64) == [Piece(0, 40, SCORED, "all")]


def test_half_a_prompt_is_worth_its_graph_only_where_much_would_stay_empty() -> None:
    works = [prompt(slot, 90) for slot in range(3)]
    assert counts(plan(works, batch=200, chunk=64)) == {0: 90, 1: 90}
    assert counts(plan(works, batch=240, chunk=64)) == {0: 90, 1: 90, 2: 60}
    assert counts(plan([*works[:2], prompt(2, 15)], batch=200, chunk=64)) == {0: 90, 1: 90, 2: 15}


def test_a_few_next_tokens_get_a_graph_each_and_many_share_one() -> None:
    rows = [Piece(slot, 9, 1, "last") for slot in range(3)]
    prompt_piece = Piece(7, 0, 64, "none")
    assert graphs([*rows, prompt_piece], 8) == [[prompt_piece], [rows[0]], [rows[1]], [rows[2]]]
    assert graphs([*rows, prompt_piece], 3) == [[prompt_piece], rows]
    assert graphs([rows[0], prompt_piece], 8) == [[prompt_piece], [rows[0]]]
    assert graphs([*rows, prompt_piece], 3, mixed=True) == [[*rows, prompt_piece]]
    assert graphs(rows, 8, mixed=True) == [[row] for row in rows]
    assert graphs([], 8) == graphs([], 8, mixed=True) == []


def test_prompts_share_a_graph_with_those_of_their_length() -> None:
    pieces = [Piece(0, 0, 90, "none"), Piece(1, 0, 64, "none"), Piece(2, 5, 90, "none")]
    assert graphs(pieces, 8) == [[pieces[0], pieces[2]], [pieces[1]]]


def test_a_prompts_last_token_is_computed_with_many_next_ones() -> None:
    rows = [Piece(slot, 9, 1, "last") for slot in (0, 1, 3)]
    end, short = Piece(2, 40, 60, "last", lag=3), Piece(4, 0, 5, "last")
    body, last = Piece(2, 40, 59, "none", lag=3), Piece(2, 99, 1, "last", lag=3)
    assert graphs([*rows[:2], end, rows[2], short], 4) == [[body], [short], [*rows[:2], last, rows[2]]]
    assert graphs([*rows[:2], end, rows[2]], 5)[0] == [end], "too few to share a graph"
    assert graphs([end], 1) == [[end]]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3000), st.integers(0, 3000)), min_size=1, max_size=12),
    st.integers(24, 600),
    st.integers(1, 200),
    st.sampled_from([math.inf, 3000.0, 50.0]),
)
def test_a_plan_keeps_its_budget_and_moves_everybody_forward(
    shapes: list[tuple[bool, int, int]], batch: int, chunk: int, halfway: float
) -> None:
    works = [
        generating(slot, length + 1) if running else prompt(slot, length, computed=min(computed, length - 1))
        for slot, (running, length, computed) in enumerate(shapes)
    ]
    pieces = plan(works, batch=batch, chunk=chunk, halfway=halfway)
    by_slot = {work.slot: work for work in works}
    prompts = [piece for piece in pieces if not by_slot[piece.slot].generating]
    costs = [piece.count * (1 + piece.start / halfway) for piece in prompts]
    tiles = [cost for piece, cost in zip(prompts, costs, strict=True) if piece.count <= TILE]
    decoding = [work for work in works if work.generating]
    assert [piece.slot for piece in pieces] == sorted({piece.slot for piece in pieces})
    assert sum(piece.count for piece in pieces) <= batch
    assert all(counts(pieces)[work.slot] == 1 for work in decoding)
    room = chunk if decoding else batch
    assert sum(piece.count for piece in prompts) <= room
    assert sum(costs) - max(tiles, default=0) <= room, "one deep tile may cost more than is left"
    assert all(piece.count >= 1 for piece in pieces)
    assert all(piece.start + piece.count <= by_slot[piece.slot].length for piece in pieces)
    if len(decoding) < len(works):
        assert prompts, "some prompt moves forward in every step"
    computed: dict[int, list[int]] = {piece.slot: [] for piece in pieces}
    for graph in graphs(pieces, 3):
        assert [piece.slot for piece in graph] == sorted({piece.slot for piece in graph})
        assert len({piece.count for piece in graph}) == 1
        for piece in graph:
            computed[piece.slot] += range(piece.start, piece.start + piece.count)
    assert all(computed[piece.slot] == [*range(piece.start, piece.start + piece.count)] for piece in pieces)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 400), st.integers(1, 6)), min_size=1, max_size=12),
    st.sampled_from([64, 256, 512]),
)
def test_a_burst_ends_and_later_tokens_wait_for_a_chunk_only(
    arrivals: list[tuple[int, int, int]], batch: int
) -> None:
    chunk, step = 32, 0
    computed = [0] * len(arrivals)
    drawn = [0] * len(arrivals)
    waited = [0] * len(arrivals)  # tokens of prompts since its last token
    passed = [0] * len(arrivals)
    while any(count < answer for count, (_, _, answer) in zip(drawn, arrivals, strict=True)):
        works = [
            Work(
                slot,
                computed[slot],
                length + drawn[slot],
                length + drawn[slot],
                generating=drawn[slot] > 0,
                fresh=drawn[slot] == 1,
                passed=passed[slot],
            )
            for slot, (arrival, length, answer) in enumerate(arrivals)
            if arrival <= step and drawn[slot] < answer
        ]
        pieces = plan(works, batch=batch, chunk=chunk)
        assert pieces or not works
        read = sum(piece.count for piece in pieces if drawn[piece.slot] == 0)
        for piece in pieces:
            computed[piece.slot] += piece.count
        for work in works:
            passed[work.slot] = 0 if work.slot in counts(pieces) else passed[work.slot] + 1
            waited[work.slot] += read if work.generating else 0
            assert waited[work.slot] <= (BURST if work.fresh else chunk)
            if computed[work.slot] == work.length:
                drawn[work.slot] += 1
                waited[work.slot] = 0
        step += 1


# -- guesses ----------------------------------------------------------------------------------------------------------


def test_a_guess_is_checked_with_its_token_and_every_row() -> None:
    guessing = Work(0, 30, 31, 31, generating=True, guess=4)
    plain = Work(1, 50, 51, 51, generating=True)
    pieces = plan([guessing, plain], batch=64, chunk=16)
    assert pieces == [Piece(0, 30, 5, "all"), Piece(1, 50, 1, "last")]


def test_guesses_leave_less_room_for_prompts() -> None:
    guessing = Work(0, 30, 31, 31, generating=True, guess=9)
    prompt = Work(1, 0, 100, 100, generating=False)
    assert sum(piece.count for piece in plan([guessing, prompt], batch=16, chunk=16)) == 16


def test_guesses_of_one_length_share_a_graph() -> None:
    pieces = [Piece(0, 9, 5, "all"), Piece(1, 9, 1, "last"), Piece(2, 9, 3, "all"), Piece(3, 9, 5, "all")]
    prompt = Piece(4, 0, 7, "last")
    cut = graphs([*pieces, prompt], together=8)
    assert cut == [[prompt], [pieces[0], pieces[3]], [pieces[2]], [pieces[1]]]
