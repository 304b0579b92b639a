"""Who reads what can be read once: one at a time, in order, whoever leaves or dies."""

from __future__ import annotations

from itertools import count
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from shim.core.ask import Outcome
from shim.errors import StoreError
from shim.leases import Leases

A, B = UUID(int=1), UUID(int=2)


class Shelf:
    """Leases over a set of items that are left, and what each reader was told."""

    def __init__(self, *left: str) -> None:
        self.left = set(left)
        self.told: list[tuple[str, Outcome]] = []
        numbers = count(1)
        self.broken = False
        self.leases = Leases(self.those_left, lambda error: Outcome("unavailable"), lambda: next(numbers))

    def those_left(self, instance: UUID, items: tuple[str, ...]) -> tuple[str, ...]:
        if self.broken:
            raise StoreError("gone")
        return tuple(one for one in items if one in self.left)

    def claim(self, name: str, *items: str, instance: UUID = A, reader: str = "w1") -> None:
        self.leases.claim(reader, instance, items, lambda outcome: self.told.append((name, outcome)))

    def lease(self, name: str) -> int:
        return next(outcome.lease for who, outcome in self.told if who == name)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.told]


def test_one_reads_and_the_others_wait_in_order() -> None:
    shelf = Shelf("x")
    for name in ("first", "second", "third"):
        shelf.claim(name, "x")
    assert shelf.told == [("first", Outcome("done", lease=1, items=("x",)))]
    shelf.leases.end(1)  # it broke off: the item is still there
    assert shelf.told[1:] == [("second", Outcome("done", lease=2, items=("x",)))]
    shelf.left.clear()  # it was read
    shelf.leases.end(2)
    assert shelf.told[2:] == [("third", Outcome("done"))]
    assert len(shelf.leases) == 0


def test_instances_do_not_stand_in_each_others_way() -> None:
    shelf = Shelf("x")
    shelf.claim("a", "x")
    shelf.claim("b", "x", instance=B)
    assert shelf.names == ["a", "b"]


def test_items_are_leased_together_or_not_at_all() -> None:
    shelf = Shelf("x", "y", "z")
    shelf.claim("both", "x", "y")
    shelf.claim("more", "y", "z")
    shelf.claim("z", "z")
    assert shelf.names == ["both"], "who came first goes first, though z is free"
    shelf.leases.end(shelf.lease("both"))
    assert shelf.names == ["both", "more"]
    shelf.leases.end(shelf.lease("more"))
    assert shelf.names == ["both", "more", "z"]


def test_a_worker_that_dies_frees_what_it_read_and_waits_for_nothing() -> None:
    shelf = Shelf("x")
    shelf.claim("dead", "x", reader="w1")
    shelf.claim("dead too", "x", reader="w1")
    shelf.claim("alive", "x", reader="w2")
    shelf.leases.gone("w1")
    assert shelf.names == ["dead", "alive"]


def test_who_stood_behind_one_that_died_has_its_turn() -> None:
    shelf = Shelf("x", "y")
    shelf.claim("reads y", "y", reader="w2")
    shelf.claim("waits for y", "y", reader="w1")
    shelf.claim("wants x", "x", reader="w3")
    shelf.leases.gone("w1")
    assert shelf.names == ["reads y", "wants x"]


def test_what_cannot_be_looked_up_is_told_and_holds_nothing() -> None:
    shelf = Shelf("x")
    shelf.broken = True
    shelf.claim("first", "x")
    shelf.broken = False
    shelf.claim("second", "x")
    assert [outcome.fate for _, outcome in shelf.told] == ["unavailable", "done"]


def test_a_lease_of_a_former_agent_may_be_spent_unless_another_has_it() -> None:
    shelf = Shelf("x")
    assert shelf.leases.may_spend(77, A, ("x",))
    shelf.claim("another", "x")
    assert not shelf.leases.may_spend(77, A, ("x",))
    assert shelf.leases.may_spend(shelf.lease("another"), A, ("x",))


def test_whose_a_lease_is() -> None:
    shelf = Shelf("x")
    shelf.claim("first", "x", instance=B)
    number = shelf.lease("first")
    assert shelf.leases.owner("w1", number) == B
    assert shelf.leases.owner("w2", number) is None, "no reader speaks of another's"
    assert shelf.leases.owner("w1", number + 1) is None
    shelf.leases.end(number)
    assert shelf.leases.owner("w1", number) is None


def test_who_claims_again_as_it_is_told_waits_behind_the_others() -> None:
    shelf = Shelf("x")
    told: list[str] = []

    def again(outcome: Outcome) -> None:
        told.append("first")
        if len(told) == 1:
            shelf.claim("again", "x")

    shelf.claim("holds", "x")
    shelf.leases.claim("w1", A, ("x",), again)
    shelf.leases.end(shelf.lease("holds"))
    assert told == ["first"] and shelf.names == ["holds"]
    shelf.leases.end(2)
    assert shelf.names == ["holds", "again"]


def test_nothing_is_remembered_of_those_who_went() -> None:
    shelf = Shelf("x")
    for reader in ("w1", "w1", "w2"):
        shelf.claim("reads", "x", reader=reader)
    shelf.leases.gone("w2")
    shelf.leases.gone("w1")
    assert (len(shelf.leases), shelf.leases._waiting, shelf.leases._items) == (0, {}, {})


def test_a_lease_that_is_over_ends_once() -> None:
    shelf = Shelf("x")
    shelf.claim("first", "x")
    shelf.leases.end(1)
    shelf.claim("second", "x")
    shelf.leases.end(1)
    shelf.claim("third", "x")
    assert shelf.names == ["first", "second"]


@given(st.lists(st.tuples(st.sampled_from("cegr"), st.integers(0, 3), st.sets(st.sampled_from("xyz"), min_size=1))))
def test_nothing_is_ever_leased_twice_and_nobody_waits_for_nothing(steps: list[tuple[str, int, set[str]]]) -> None:
    """Claims, ends, deaths of workers and reads, in any order."""
    shelf = Shelf("x", "y", "z")
    held: dict[int, tuple[int, frozenset[str]]] = {}
    asked: dict[int, int] = {}
    names = count()

    def claim(worker: int, items: set[str]) -> None:
        name = next(names)
        asked[name] = worker

        def tell(outcome: Outcome) -> None:
            del asked[name]
            if outcome.lease:
                assert not {item for _, items in held.values() for item in items} & set(outcome.items)
                held[outcome.lease] = (worker, frozenset(outcome.items))

        shelf.leases.claim(worker, A, tuple(sorted(items)), tell)

    def end(number: int) -> None:
        held.pop(number)
        shelf.leases.end(number)

    for step, worker, items in steps:
        if step == "c":
            claim(worker, items)
        elif step == "g":
            for number in [n for n, (who, _) in held.items() if who == worker]:
                del held[number]
            for name in [n for n, who in asked.items() if who == worker]:
                del asked[name]
            shelf.leases.gone(worker)
        elif held:
            number = next(iter(held))
            if step == "r":
                shelf.left -= held[number][1]
            end(number)
    while held:
        end(next(iter(held)))
    assert not asked and len(shelf.leases) == 0
