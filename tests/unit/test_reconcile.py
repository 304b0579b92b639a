"""What follows from what is wanted and what is there, and in which order."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from uuid import UUID

import pytest

from shim.core.link import Place
from shim.core.policy import Access, Policy, Tokens
from shim.core.port import Port, Slots
from shim.core.reconcile import Cut, Ensure, Remove, Unplaced, Wanted, closing, reconcile

ONE, TWO = UUID(int=1), UUID(int=2)
SEVEN = Place("", 7)
OPEN, SHUT = Policy(), Policy(Access.RESET, Access.RESET)


def wanted(instance: UUID | None = ONE, policy: Policy = OPEN, tap: str = "tap1") -> Wanted:
    return Wanted(tap, instance, policy)


def held(instance: UUID | None = ONE, slot: int = 3, policy: Policy = OPEN) -> Port:
    return Port(slot, 5, 7, "tap1", "", instance, policy)


@pytest.fixture
def slots() -> Slots:
    slots = Slots(8)
    slots.adopt(3, 5)
    return slots


def test_a_new_tap_gets_a_free_slot(slots: Slots) -> None:
    assert list(reconcile({SEVEN: wanted()}, {}, slots, 0)) == [Ensure(Port(1, 1, 7, "tap1", "", ONE, OPEN))]


def test_nothing_to_do_is_nothing_done_unless_asked_to_do_it_again(slots: Slots) -> None:
    assert list(reconcile({SEVEN: wanted()}, {SEVEN: held()}, slots, 0)) == []
    assert list(reconcile({SEVEN: wanted()}, {SEVEN: held()}, slots, 0, again=True)) == [Ensure(held())]


@pytest.mark.parametrize("change", [{"policy": SHUT}, {"tap": "renamed"}])
def test_what_changes_about_a_port_keeps_its_slot(slots: Slots, change: dict[str, object]) -> None:
    want = replace(wanted(), **change)  # type: ignore[arg-type]
    assert list(reconcile({SEVEN: want}, {SEVEN: held()}, slots, 0)) == [Ensure(replace(held(), **change))]  # type: ignore[arg-type]


@pytest.mark.parametrize(("before", "after"), [(ONE, TWO), (ONE, None), (None, ONE)])
def test_another_owner_gets_another_slot_and_the_tap_is_never_unguarded(
    slots: Slots, before: UUID | None, after: UUID | None
) -> None:
    actions = list(reconcile({SEVEN: wanted(after)}, {SEVEN: held(before)}, slots, 0))
    end = [Cut(held(before))] if before else []
    assert actions == [*end, Ensure(Port(1, 1, 7, "tap1", "", after, OPEN)), Remove(held(None))]


def test_what_is_wanted_no_more_goes_first(slots: Slots) -> None:
    actions = list(reconcile({Place("", 8): wanted()}, {SEVEN: held()}, slots, 0))
    assert [type(action) for action in actions] == [Remove, Ensure]


def test_a_tap_without_a_slot_is_named_and_nothing_else_is_done() -> None:
    full = Slots(1)
    full.adopt(1, 1)
    actions = list(reconcile({SEVEN: wanted(TWO)}, {SEVEN: held(ONE, 1)}, full, 0))
    assert actions == [Cut(held(ONE, 1)), Unplaced(wanted(TWO))]


KERNEL_OPEN = (Access.OPEN, Access.FORBID)


@pytest.mark.parametrize(("old", "new"), list(product(Access, repeat=2)))
def test_before_a_change_is_kept_nothing_opens(old: Access, new: Access) -> None:
    between = closing(Policy(old, old), Policy(new, new)).v4
    assert between in (old, new)
    assert not (between is Access.OPEN and old is not Access.OPEN)
    assert not (between in KERNEL_OPEN and old not in KERNEL_OPEN)
    if new is not Access.OPEN and old is Access.OPEN:
        assert between is new  # what closes does so at once


def test_families_are_closed_each_by_itself() -> None:
    before, after = Policy(Access.OPEN, Access.DROP), Policy(Access.RESET, Access.OPEN)
    assert closing(before, after) == Policy(Access.RESET, Access.DROP)


def test_a_token_is_asked_for_at_once_and_let_go_only_when_that_is_kept() -> None:
    required, optional = Policy(tokens=Tokens.REQUIRED), Policy(tokens=Tokens.OPTIONAL)
    assert closing(optional, required) == required
    assert closing(required, optional) == required
    routed = Policy(routes=(("/", "nova"),))
    assert closing(Policy(), routed) == Policy()


def test_what_is_said_of_an_owner_follows_its_source() -> None:
    want = replace(wanted(ONE), project="p", address="10.0.0.5")
    (action,) = reconcile({SEVEN: want}, {SEVEN: held(ONE, 1)}, Slots(4), 0)
    assert isinstance(action, Ensure)
    assert (action.port.slot, action.port.project, action.port.address) == (1, "p", "10.0.0.5")
    assert list(reconcile({SEVEN: want}, {SEVEN: action.port}, Slots(4), 0)) == []
