"""One instance on several taps: whose word counts, and whom a change of it concerns."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from shim.core.claims import Claims
from shim.core.link import Place

ONE, TWO = UUID(int=1), UUID(int=2)
A, B, C = Place("", 1), Place("", 2), Place("rack1", 1)


def test_one_source_may_name_an_instance_on_many_taps() -> None:
    claims = Claims()
    assert [claims.put(place, ONE, 1) for place in (A, B, C)] == [set(), set(), set()]
    assert [claims.better(place) for place in (A, B, C)] == [None, None, None]


def test_a_better_source_outdoes_what_others_say_of_other_taps() -> None:
    claims = Claims()
    claims.put(A, ONE, 2)
    claims.put(B, ONE, 2)
    assert claims.put(C, ONE, 0) == {A, B}
    assert (claims.better(A), claims.better(B), claims.better(C)) == (C, C, None)
    assert claims.put(C, None, 0) == {A, B}
    assert (claims.better(A), claims.better(C)) == (None, None)


def test_a_worse_one_disturbs_nobody() -> None:
    claims = Claims()
    claims.put(A, ONE, 0)
    assert claims.put(B, ONE, 1) == set()
    assert claims.better(B) == A
    assert claims.put(B, TWO, 1) == set()
    assert claims.better(B) is None


def test_a_tap_that_changes_hands_concerns_both_instances() -> None:
    claims = Claims()
    claims.put(A, ONE, 0)
    claims.put(B, ONE, 1)
    claims.put(C, TWO, 1)
    assert claims.put(A, TWO, 0) == {B, C}
    assert (claims.better(B), claims.better(C)) == (None, A)


def test_the_same_source_s_other_rank_is_seen() -> None:
    claims = Claims()
    claims.put(A, ONE, 0)
    claims.put(B, ONE, 1)
    assert claims.put(A, ONE, 2) == {B}
    assert (claims.better(A), claims.better(B)) == (B, None)


places = st.sampled_from([Place("", 1), Place("", 2), Place("r", 1), Place("r", 2)])
steps = st.lists(st.tuples(places, st.sampled_from([ONE, TWO, None]), st.integers(0, 2)), max_size=30)


@given(steps)
def test_whoever_s_standing_changes_is_told(steps: list[tuple[Place, UUID | None, int]]) -> None:
    """Against the plain rule, looked up anew each time."""
    claims, said = Claims(), dict[Place, tuple[UUID, int]]()

    def outdone(place: Place) -> bool:
        instance, rank = said[place]
        return any(other == instance and best < rank for other, best in said.values())

    for place, instance, rank in steps:
        before = {other: outdone(other) for other in said}
        told = claims.put(place, instance, rank)
        said.pop(place, None)
        if instance is not None:
            said[place] = (instance, rank)
        after = {other: outdone(other) for other in said}
        assert {other: claims.better(other) is not None for other in said} == after
        assert {other for other in after if other != place and before.get(other) != after[other]} <= told
