"""Ids sort by their time, and then as they were made."""

from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.ids import SortableIds, first_id


@given(times=st.lists(st.integers(0, 2**44), min_size=2, max_size=20), each=st.integers(1, 50))
def test_ids_sort_by_their_time_and_then_as_they_were_made(times: list[int], each: int) -> None:
    ids = SortableIds("e")
    made = [(at, ids.next(at)) for at in sorted(set(times)) for _ in range(each)]
    assert [identity for _, identity in made] == sorted({identity for _, identity in made})
    assert all(first_id("e", at) <= identity < first_id("e", at + 1) for at, identity in made)
    assert {len(identity) for _, identity in made} == {22}
