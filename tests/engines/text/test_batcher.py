"""The plan of a step: who gets how many tokens."""

from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.engines.text.batcher import SCORED, Piece, Work, graphs, plan


def prompt(slot: int, length: int, *, computed: int = 0, stop: int | None = None) -> Work:
    return Work(slot, computed, length, length if stop is None else stop, generating=False)


def generating(slot: int, length: int = 10) -> Work:
    return Work(slot, length - 1, length, length, generating=True)


def counts(pieces: list[Piece]) -> dict[int, int]:
    return {piece.slot: piece.count for piece in pieces}


def test_a_generating_sequence_gets_its_token_before_any_prompt() -> None:
    pieces = plan([prompt(0, 1000), generating(1), generating(2)], batch=512, chunk=64)
    assert counts(pieces) == {0: 64, 1: 1, 2: 1}


def test_a_prompt_alone_gets_the_whole_batch() -> None:
    assert counts(plan([prompt(3, 1000)], batch=512, chunk=64)) == {3: 512}


def test_only_the_last_piece_of_a_prompt_has_logits() -> None:
    assert plan([prompt(0, 600)], batch=512, chunk=64)[0].outputs == "none"
    assert plan([prompt(0, 600, computed=512)], batch=512, chunk=64) == [Piece(0, 512, 88, "last")]


def test_short_prompts_go_first_in_order_of_arrival() -> None:
    works = [prompt(5, 200), prompt(1, 200), prompt(2, 200)]
    assert counts(plan(works, batch=512, chunk=64)) == {5: 200, 1: 200, 2: 112}


def test_a_long_prompt_keeps_a_quarter_beside_short_ones() -> None:
    works = [prompt(0, 8000), *(prompt(slot, 100) for slot in range(1, 9))]
    shares = counts(plan(works, batch=400, chunk=64))
    assert shares[0] >= 100
    assert shares[1] == shares[2] == 100


def test_long_prompts_share_evenly() -> None:
    assert counts(plan([prompt(0, 8000), prompt(1, 9000)], batch=400, chunk=64)) == {0: 200, 1: 200}


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
)
def test_a_plan_keeps_its_budget_and_moves_everybody_forward(
    shapes: list[tuple[bool, int, int]], batch: int, chunk: int
) -> None:
    works = [
        generating(slot, length + 1) if running else prompt(slot, length, computed=min(computed, length - 1))
        for slot, (running, length, computed) in enumerate(shapes)
    ]
    pieces = plan(works, batch=batch, chunk=chunk)
    by_slot = {work.slot: work for work in works}
    prefill = sum(piece.count for piece in pieces if not by_slot[piece.slot].generating)
    decoding = [work for work in works if work.generating]
    assert [piece.slot for piece in pieces] == sorted({piece.slot for piece in pieces})
    assert sum(piece.count for piece in pieces) <= batch
    assert all(counts(pieces)[work.slot] == 1 for work in decoding)
    assert not decoding or prefill <= chunk
    assert all(piece.count >= 1 for piece in pieces)
    assert all(piece.start + piece.count <= by_slot[piece.slot].length for piece in pieces)
    if len(decoding) < len(works):
        assert prefill > 0, "some prompt moves forward in every step"
    computed: dict[int, list[int]] = {piece.slot: [] for piece in pieces}
    for graph in graphs(pieces, 3):
        assert [piece.slot for piece in graph] == sorted({piece.slot for piece in graph})
        assert len({piece.count for piece in graph}) == 1
        for piece in graph:
            computed[piece.slot] += range(piece.start, piece.start + piece.count)
    assert all(computed[piece.slot] == [*range(piece.start, piece.start + piece.count)] for piece in pieces)


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
