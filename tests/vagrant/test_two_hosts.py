"""Two hypervisors, whose guests' bridges are one network: each serves its own guests, and nothing of it crosses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.hypervisor import uuid_of
from tests.vagrant.hands import Far, Hands
from tests.vagrant.installed import Host, Installed

NEAR, FAR, SPEAKER, MOVER = (str(uuid_of(number)) for number in (41, 42, 43, 44))


@pytest.fixture(scope="module")
def far() -> Iterator[Far]:
    """The other host."""
    made = Far(os.environ["METASHIM_OTHER"])
    yield made
    made.close()
    made.hang_up()


@pytest.fixture(scope="module")
def near(host: Host, site: Installed, far: Far) -> Iterator[Hands]:
    """This one."""
    made = Hands(host, site, far.own_address)
    yield made
    made.close()


@pytest.fixture(scope="module")
def macs(near: Hands, far: Far) -> tuple[str, str]:
    """The two bridges' MACs, once they are one network."""
    return near.join(), far.join()


@pytest.fixture(autouse=True)
def quiet(near: Hands, far: Far, macs: tuple[str, str]) -> Iterator[None]:
    """In no test does any frame about the service cross, as both ends see it."""
    yield
    assert [hands.crossed()["service"] for hands in (near, far)] == [0, 0]


def test_the_guests_networks_are_one(near: Hands, far: Far) -> None:
    """Guests with MACs of their own reach each other: what follows would prove nothing else."""
    near.visitor(1)
    far.visitor(2)
    assert near.visitor_reaches(2)
    assert min(near.crossed()["guests"], far.crossed()["guests"]) > 0


def test_each_guest_is_served_by_its_own_host(near: Hands, far: Far) -> None:
    """The two have one IP and one MAC."""
    assert near.guest("near", NEAR, {"name": "near", "user_data": "of the near one"}) == NEAR
    assert far.guest("far", FAR, {"name": "far", "user_data": "of the far one"}) == FAR
    for _ in range(2):
        assert near.outcomes("near") == [NEAR] * 3
        assert far.outcomes("far") == [FAR] * 3
    assert (near.user_data("near"), far.user_data("far")) == ("of the near one", "of the far one")


def test_frames_to_the_other_hosts_mac_are_served_here(near: Hands, far: Far, macs: tuple[str, str]) -> None:
    before = far.opened()
    assert near.speak("speaker", SPEAKER, macs[1]) == [SPEAKER] * 2
    assert far.opened() == before


def test_an_instance_moves(near: Hands, far: Far) -> None:
    """As a live migration moves it: known there before its guest runs there, and no more here once it does."""
    near.guest("mover", MOVER, {"name": "mover", "user_data": "moves along"})
    near.close_path(MOVER, "/latest/meta-data/hostname")
    far.empty("moved")
    assert far.met("moved", 2) != MOVER
    exported = near.export(MOVER)
    far.adopt("moved", MOVER, exported)
    assert far.outcomes("moved") == [MOVER] * 3
    assert far.user_data("moved") == "moves along"
    assert far.export(MOVER) == exported
    near.let_go("mover")
    assert near.met("mover", 2) in ("timeout", "reset", "refused", "No route to host")
    assert far.outcomes("moved") == [MOVER] * 3
