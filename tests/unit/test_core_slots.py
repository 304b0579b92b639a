"""Slots: nobody gets one while anything of its former owner may still arrive, nor ever an old generation."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shim.core.port import SLOT_QUARANTINE, Slots


def test_slots_are_given_from_1_on():
    slots = Slots(3)
    assert [slots.take(0) for _ in range(4)] == [(1, 1), (2, 1), (3, 1), None]
    assert slots.taken == 3


def test_a_slot_given_back_rests_and_comes_back_with_another_generation():
    slots = Slots(1)
    slots.take(0)
    slots.give_back(1, 10.0)
    assert slots.taken == 0
    assert slots.take(10.0 + SLOT_QUARANTINE - 0.001) is None
    assert slots.take(10.0 + SLOT_QUARANTINE) == (1, 2)


def test_the_quarantine_outlasts_what_the_gateways_kernel_lingers_over():
    """TCP_TIMEWAIT_LEN and the default of tcp_fin_timeout: 60 s."""
    assert SLOT_QUARANTINE > 60


def test_slots_rest_each_from_its_own_time():
    slots = Slots(2)
    slots.take(0)
    slots.take(0)
    slots.give_back(2, 0.0)
    slots.give_back(1, 50.0)
    assert slots.take(SLOT_QUARANTINE) == (2, 2)
    assert slots.take(SLOT_QUARANTINE) is None
    assert slots.take(50.0 + SLOT_QUARANTINE) == (1, 2)


@pytest.mark.parametrize("times", [1, 2])
def test_giving_back_twice_or_what_nobody_had_gives_it_once(times):
    slots = Slots(2)
    slots.take(0)
    for _ in range(times):
        slots.give_back(1, 0.0)
    slots.give_back(2, 0.0)
    late = 2 * SLOT_QUARANTINE
    assert [slots.take(late), slots.take(late), slots.take(late)] == [(1, 2), (2, 1), None]


def test_what_the_kernel_has_is_never_given_to_another():
    slots = Slots(3)
    slots.adopt(2, 7)
    assert [slots.take(0), slots.take(0), slots.take(0)] == [(1, 1), (3, 1), None]
    slots.give_back(2, 0.0)
    assert slots.take(SLOT_QUARANTINE) == (2, 8)


def test_what_the_kernel_had_rests_and_keeps_its_generation():
    slots = Slots(1)
    slots.remember(1, 4, 100.0)
    assert slots.taken == 0
    assert slots.take(100.0) is None
    assert slots.take(100.0 + SLOT_QUARANTINE) == (1, 5)


class SlotsMachine(RuleBasedStateMachine):
    """Against a ledger: who has what since when, and every (slot, generation) that was ever given."""

    SIZE = 4

    @initialize(adopted=st.dictionaries(st.integers(1, SIZE), st.integers(1, 5)))
    def start(self, adopted):
        self.slots = Slots(self.SIZE)
        self.now = 0.0
        self.owned = dict(adopted)
        self.free_since: dict[int, float] = {}
        self.given = set(adopted.items())
        for slot, generation in adopted.items():
            self.slots.adopt(slot, generation)

    @rule(seconds=st.floats(0, SLOT_QUARANTINE))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def take(self):
        rested = [s for s, since in self.free_since.items() if self.now >= since + SLOT_QUARANTINE]
        never_used = self.SIZE - len(self.owned) - len(self.free_since)
        got = self.slots.take(self.now)
        assert (got is None) == (not rested and not never_used)
        if got is None:
            return
        slot, generation = got
        assert 1 <= slot <= self.SIZE
        assert slot not in self.owned
        assert slot in rested or slot not in self.free_since
        assert got not in self.given
        self.free_since.pop(slot, None)
        self.owned[slot] = generation
        self.given.add(got)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def give_back(self, data):
        slot = data.draw(st.sampled_from(sorted(self.owned)))
        self.slots.give_back(slot, self.now)
        del self.owned[slot]
        self.free_since[slot] = self.now

    @invariant()
    def counts_its_owners(self):
        assert self.slots.taken == len(self.owned)


SlotsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSlotsMachine = SlotsMachine.TestCase
