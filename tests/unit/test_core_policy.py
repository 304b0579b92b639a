"""The policy that operators set, and how instances and ports may be spelt."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest

from shim.core.instance import parse_instance
from shim.core.names import parse_netns, parse_tap
from shim.core.policy import Access, Family, Policy

PLAIN = "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60"


class TestPolicy:
    def test_is_open_with_the_usual_hop_limit(self):
        assert Policy() == Policy(Access.OPEN, Access.OPEN, 64)

    @pytest.mark.parametrize("hop_limit", [1, 2, 64])
    def test_takes_hop_limits_of_1_to_64(self, hop_limit):
        assert Policy(hop_limit=hop_limit).hop_limit == hop_limit

    @pytest.mark.parametrize("hop_limit", [-1, 0, 65, 255])
    def test_takes_no_other(self, hop_limit):
        with pytest.raises(ValueError, match=f"hop limit {hop_limit} is not within 1 to 64"):
            Policy(hop_limit=hop_limit)

    @pytest.mark.parametrize(
        ("families", "v4", "v6"),
        [
            ({Family.V4}, Access.DROP, Access.RESET),
            ({Family.V6}, Access.RESET, Access.DROP),
            ({Family.V4, Family.V6}, Access.DROP, Access.DROP),
            (set(), Access.RESET, Access.RESET),
        ],
    )
    def test_changes_the_families_named_and_nothing_else(self, families, v4, v6):
        before = Policy(Access.RESET, Access.RESET, hop_limit=3)
        assert before.with_access(Access.DROP, frozenset(families)) == Policy(v4, v6, 3)
        assert before == Policy(Access.RESET, Access.RESET, 3)

    def test_tells_the_access_of_a_family(self):
        policy = Policy(Access.RESET, Access.FORBID)
        assert (policy.access(Family.V4), policy.access(Family.V6)) == (Access.RESET, Access.FORBID)

    def test_cannot_be_changed_in_place(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Policy().hop_limit = 0


class TestInstance:
    @pytest.mark.parametrize("text", [PLAIN, PLAIN.upper(), PLAIN.replace("-", ""), f"  {PLAIN}\n"])
    def test_is_read_with_or_without_dashes_in_any_case(self, text):
        assert parse_instance(text) == UUID(PLAIN)

    @pytest.mark.parametrize(
        "text", ["", "web1", PLAIN[:-1], PLAIN + "0", f"urn:uuid:{PLAIN}", f"{{{PLAIN}}}", PLAIN.replace("6", "g", 1)]
    )
    def test_nothing_else_is(self, text):
        with pytest.raises(ValueError, match="is not an instance id"):
            parse_instance(text)


class TestNames:
    @pytest.mark.parametrize("name", ["tap0", "a", "tap-1.2_3@x", "x" * 15, "é" * 7])
    def test_of_interfaces_as_the_kernel_takes_them(self, name):
        assert parse_tap(name) == name

    @pytest.mark.parametrize("name", ["", ".", "..", "x" * 16, "a b", "a/b", "a:b", "a\tb", "a\0b", "é" * 8])
    def test_of_interfaces_as_it_does_not(self, name):
        with pytest.raises(ValueError, match="is not the name of an interface"):
            parse_tap(name)

    @pytest.mark.parametrize("name", ["", "blue", "qrouter-1:2 3", "x" * 255])
    def test_of_namespaces_as_iproute2_takes_them(self, name):
        assert parse_netns(name) == name

    @pytest.mark.parametrize("name", [".", "..", "a/b", "../x", "a\nb", "a\0b", "x" * 256])
    def test_of_namespaces_as_it_does_not(self, name):
        with pytest.raises(ValueError, match="is not the name of a network namespace"):
            parse_netns(name)
