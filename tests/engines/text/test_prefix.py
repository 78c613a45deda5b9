"""Which slot a sequence gets, and whose computed tokens it starts from."""

from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.engines.text.prefix import WORTH_COPYING, Follow, Place, Slot, common, place


def anything(slot: Slot, keep: int) -> bool:
    return True


def whole_only(slot: Slot, keep: int) -> bool:
    """A recurrent cache: it cannot be cut."""
    return keep == len(slot.tokens)


def slots(*caches: list[int]) -> list[Slot]:
    return [Slot(i, list(tokens), used=i + 1 if tokens else 0) for i, tokens in enumerate(caches)]


def test_a_fresh_sequence_takes_the_lowest_empty_slot() -> None:
    assert place([1, 2, 3], slots([], []), anything) == Place(0, 0, 0)


def test_a_conversation_goes_on_in_its_own_slot() -> None:
    assert place([1, 2, 3, 4, 5, 6], slots([9], [1, 2, 3, 4]), anything) == Place(1, 1, 4)


def test_one_token_is_always_left_to_compute() -> None:
    assert place([1, 2, 3], slots([1, 2, 3]), anything) == Place(0, 0, 2)


def test_a_long_cache_is_copied_rather_than_cut_short() -> None:
    cached = list(range(100))
    assert place([*range(20), 777], slots(cached, []), anything) == Place(1, 0, 20)


def test_the_only_idle_slot_is_cut_short() -> None:
    busy = Slot(0, [5], running=True, target=[5, 6])
    cached = Slot(1, list(range(100)), used=3)
    assert place([*range(20), 777], [busy, cached], anything) == Place(1, 1, 20)


def test_the_slot_used_longest_ago_is_given_up() -> None:
    caches = [Slot(0, [7, 7], used=9), Slot(1, [8, 8], used=2), Slot(2, [9, 9], used=5)]
    assert place([1, 2], caches, anything) == Place(1, 1, 0)


def test_a_running_prefix_is_copied() -> None:
    owner = Slot(0, list(range(50)), running=True, target=list(range(50)))
    assert place([*range(40), 777], [owner, Slot(1)], anything) == Place(1, 0, 40)


def test_a_prefix_still_being_computed_is_waited_for() -> None:
    owner = Slot(0, list(range(10)), running=True, target=list(range(50)))
    assert place([*range(40), 777], [owner, Slot(1)], anything) == Follow(0, 40)


def test_a_few_tokens_are_not_waited_for() -> None:
    owner = Slot(0, [], running=True, target=list(range(50)))
    assert place([*range(8), 777], [owner, Slot(1)], anything) == Place(1, 1, 0)


def test_a_running_sequence_is_never_evicted() -> None:
    owner = Slot(0, [1, 2], running=True, target=[1, 2, 3])
    assert place([1, 2, 3, 4], [owner], anything) is None


def test_a_cache_that_cannot_be_cut_is_used_whole_or_not_at_all() -> None:
    assert place([1, 2, 3, 4], slots([1, 2, 3]), whole_only) == Place(0, 0, 3)
    assert place([1, 2, 9, 4], slots([1, 2, 3], []), whole_only) == Place(1, 1, 0)
    assert place([1, 2, 3], slots([1, 2, 3]), whole_only) == Place(0, 0, 0)


def test_no_reuse_when_every_row_is_wanted() -> None:
    assert place([1, 2, 3], slots([1, 2], []), anything, reuse=False) == Place(1, 1, 0)


def test_packed_sequences_take_neighbouring_slots() -> None:
    table = [Slot(i) for i in range(8)]
    table[5].running, table[5].target, table[1].used = True, [1], 0
    assert place([1, 2], table, anything, packed=True) == Place(4, 4, 0)
    table[4].running, table[4].target = True, [1]
    where = place([1, 2], table, anything, packed=True)
    assert isinstance(where, Place) and where.slot in (3, 6)


def test_packed_a_cache_in_the_way_moves_to_the_oldest_slot() -> None:
    running = Slot(1, [8], running=True, target=[8, 9])
    table = [
        Slot(0, [7], used=8),
        running,
        Slot(2, [9, 9], used=5),
        Slot(3, [5], used=9),
        Slot(4, [6], used=1),
    ]
    assert place([1, 2], table, anything, packed=True) == Place(2, 2, 0, save=4)


def test_packed_a_few_tokens_are_computed_rather_than_copied() -> None:
    table = slots(list(range(50)), [7] * 50)
    tokens = [*range(WORTH_COPYING - 1), 777]
    assert place(tokens, table[:1], anything, packed=True) == Place(0, 0, WORTH_COPYING - 1), (
        "cut where it is"
    )
    assert place(tokens, table, anything, packed=True) == Place(1, 1, 0)
    assert place(tokens, table, anything) == Place(1, 0, WORTH_COPYING - 1), "where a copy costs nothing"
    assert place([*range(WORTH_COPYING), 777], table, anything, packed=True) == Place(1, 0, WORTH_COPYING)


def test_packed_a_few_tokens_stay_where_the_slot_holds_them_itself() -> None:
    table = slots(list(range(50)), [0, 1, 2, *[7] * 50])
    tokens = [*range(WORTH_COPYING - 1), 777]
    table[0].used = 9  # so that slot 1 is the one used longest ago
    assert place(tokens, table, anything, packed=True) == Place(1, 1, 3)
    assert place(tokens, table, lambda slot, keep: slot.index == 0, packed=True) == Place(1, 1, 0), (
        "a cache that cannot be cut there"
    )


def test_packed_a_conversation_moves_next_to_the_running_one() -> None:
    conversation = list(range(50))
    table = [Slot(0, [8], running=True, target=[8, 9]), Slot(1), Slot(2), Slot(3, conversation, used=4)]
    assert place([*conversation, 1], table, anything, packed=True) == Place(1, 3, 50, moved=True)


def test_packed_a_conversation_stays_rather_than_cost_another_its_cache() -> None:
    conversation = list(range(50))
    other, far = Slot(1, [9] * 40, used=2), Slot(2, [7] * 40, used=3)
    table = [Slot(0, [8], running=True, target=[8, 9]), other, far, Slot(3, conversation, used=4)]
    assert place([*conversation, 1], table, anything, packed=True) == Place(3, 3, 50)
    older = Slot(4, [6] * 40, used=1)  # where slot 1's cache would go, and whose own would be lost
    assert place([*conversation, 1], [*table, older], anything, packed=True) == Place(3, 3, 50)
    older.used = 0  # nothing worth having: a conversation that moved on
    assert place([*conversation, 1], [*table, older], anything, packed=True) == Place(1, 3, 50, 4, moved=True)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40))
def test_common_is_the_longest_common_prefix(a: list[int], b: list[int], limit: int) -> None:
    n = 0
    while n < min(limit, len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common(a, b, limit) == n


@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=60),
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), max_size=60), st.booleans(), st.integers(0, 9)),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_a_place_is_always_an_idle_slot_and_a_true_prefix(
    tokens: list[int], shapes: list[tuple[list[int], bool, int]], packed: bool
) -> None:
    table = [
        Slot(i, cached, running=running, used=used, target=[*cached, 0] if running else ())
        for i, (cached, running, used) in enumerate(shapes)
    ]
    where = place(tokens, table, anything, packed=packed)
    if isinstance(where, Place):
        assert where.save is None or not table[where.save].running
        assert where.save not in (where.slot, where.source)
        assert not table[where.slot].running
        assert where.keep < len(tokens)
        assert table[where.source].tokens[: where.keep] == tokens[: where.keep]
    elif where is None:
        assert all(slot.running for slot in table)
    else:
        assert table[where.leader].running
