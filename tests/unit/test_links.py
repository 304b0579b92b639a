"""What the table of links makes of the kernel's messages, written here as linux/rtnetlink.h has them."""

from __future__ import annotations

import struct

import pytest

from shim.core.link import Link, Place
from shim.netlink import rtnl
from shim.netlink.links import Links

IFLA_IFNAME, IFLA_IFALIAS = 3, 20
AF_BRIDGE, IFF_UP = 7, 1


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def link(ifindex: int, name: str, *, alias: str = "", up: bool = True, here: bool = True, family: int = 0) -> bytes:
    body = struct.pack("=BxHiII", family, 1, ifindex, IFF_UP * up, 0)
    body += rtnl.attribute(IFLA_IFNAME, name.encode() + b"\0")
    body += rtnl.attribute(IFLA_IFALIAS, alias.encode() + b"\0") if alias else b""
    return message(rtnl.NEWLINK if here else rtnl.DELLINK, body)


def of_tc(kind: int, ifindex: int) -> bytes:
    return message(kind, struct.pack("=BxxxiIII", 0, ifindex, 0, 0, 0))


@pytest.fixture
def heard():
    return []


@pytest.fixture
def links(heard):
    return Links({}, lambda place, undone: heard.append((place.ifindex, undone)))


def test_each_change_is_told_with_its_link(links, heard):
    links.take(link(4, "tap4") + link(5, "tap5", alias="metashim:x", up=False))
    assert links._table == {Place("", 4): Link(4, "tap4", None), Place("", 5): Link(5, "tap5", "metashim:x", up=False)}
    links.take(link(5, "tap5", alias="metashim:y", up=False))
    assert links._table[Place("", 5)].alias == "metashim:y"
    assert heard == [(4, False), (5, False), (5, False)]


def test_what_says_nothing_new_wakes_nobody(links, heard):
    links.take(link(4, "tap4"))
    links.take(link(4, "tap4"))
    assert heard == [(4, False)]


def test_a_link_that_goes_is_undone(links, heard):
    links.take(link(4, "tap4") + link(4, "tap4", here=False) + link(4, "tap4", here=False))
    assert links._table == {}
    assert heard == [(4, False), (4, True)]


@pytest.mark.parametrize("kind", [rtnl.DELTFILTER, rtnl.DELQDISC])
def test_what_is_taken_off_a_link_undoes_it(links, heard, kind):
    links.take(of_tc(kind, 4))
    assert heard == [(4, True)]


def test_leaving_a_bridge_is_not_going(links, heard):
    links.take(link(4, "tap4") + link(4, "tap4", here=False, family=AF_BRIDGE))
    assert list(links._table) == [Place("", 4)]
    assert heard == [(4, False)]
