"""From the stamped address to who speaks."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.exchange import Caller
from shim.core.policy import Access, Family, Policy
from shim.forward.identify import SLOTS, Entry, Table, address_of, slot_of

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
B = UUID("c0ffee00-1111-4222-8333-444455556666")


@pytest.mark.parametrize(
    ("address", "slot"),
    [
        ("100.64.0.1", 1),
        ("100.64.1.0", 256),
        ("100.127.255.255", SLOTS - 1),
        ("fd6d:7368:696d::1", 1),
        ("fd6d:7368:696d::3f:ffff", SLOTS - 1),
        ("FD6D:7368:696D:0:0:0:0:2", 2),
        ("fd6d:7368:696d::0.0.1.0", 256),
    ],
)
def test_slots(address: str, slot: int) -> None:
    assert slot_of(address) == slot


@pytest.mark.parametrize(
    "address",
    [
        "100.64.0.0", "100.63.255.255", "100.128.0.0", "127.0.0.1", "::ffff:100.64.0.1", "::100.64.0.1",
        "fd6d:7368:696d::", "fd6d:7368:696d::40:0", "fd6d:7368:696d:0:0:1:0:1", "fd6d:7368:696c::1",
        "fd6d:7368:696d::1%eth0", "fe80::1%2", "", "tap1", "100.64.0.01", "100.64.0.1/32", " 100.64.0.1",
    ],
)  # fmt: skip
def test_addresses_that_nobody_stamped(address: str) -> None:
    assert slot_of(address) is None


@given(slot=st.integers(1, SLOTS - 1), family=st.sampled_from(Family))
def test_there_and_back(slot: int, family: Family) -> None:
    assert slot_of(address_of(slot, family)) == slot


@pytest.mark.parametrize("slot", [-1, 0, SLOTS])
def test_no_address_beyond_the_slots(slot: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        address_of(slot, Family.V4)


class TestTable:
    def test_tells_callers_apart_by_slot_and_family(self) -> None:
        table = Table([Entry(1, 5, A, Policy()), Entry(2, 6, B, Policy())])
        assert table.caller("100.64.0.1") == Caller(1, 5, A, Family.V4)
        assert table.caller("fd6d:7368:696d::2") == Caller(2, 6, B, Family.V6)
        assert table.caller("100.64.0.3") is None
        assert table.caller("192.0.2.1") is None
        assert len(table) == 2

    def test_a_former_owner_has_no_entry(self) -> None:
        table = Table([Entry(1, 5, A, Policy())])
        caller = table.caller("100.64.0.1")
        assert caller
        table.put(Entry(1, 6, B, Policy()))
        assert table.entry(caller) is None
        assert table.caller("100.64.0.1") == Caller(1, 6, B, Family.V4)

    def test_policy_is_as_of_now(self) -> None:
        table = Table([Entry(1, 5, A, Policy())])
        caller = table.caller("100.64.0.1")
        assert caller
        table.put(Entry(1, 5, A, Policy(v4=Access.FORBID)))
        entry = table.entry(caller)
        assert entry
        assert entry.policy.access(caller.family) is Access.FORBID

    def test_removing_spares_the_next_owner(self) -> None:
        table = Table([Entry(1, 6, B, Policy())])
        assert table.remove(1, 5) is False
        assert table.remove(9, 1) is False
        assert len(table) == 1
        assert table.remove(1, 6) is True
        assert len(table) == 0

    def test_replacing_says_who_is_gone(self) -> None:
        table = Table([Entry(1, 5, A, Policy()), Entry(2, 6, B, Policy()), Entry(3, 7, B, Policy())])
        gone = table.replace([Entry(1, 5, A, Policy(v4=Access.DROP)), Entry(2, 8, A, Policy())])
        assert gone == {(2, 6), (3, 7)}
        assert len(table) == 2
