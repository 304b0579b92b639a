"""Both datapaths on this machine's own kernel: guests in namespaces, and one that speaks by hand through a real tap."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shim.core.policy import Access, Family
from tests.bpf.frames import BOTH, SERVICE_MAC
from tests.lab import Wire, service_frames
from tests.netns.hypervisor import uuid_of
from tests.netns.say import get
from tests.netns.talk import ALL, LINK_LOCAL, V4, outcome
from tests.vagrant.installed import SECONDS, Installed, await_served
from tests.vagrant.raw import Speaker, mac_of_service

GUEST, NEIGHBOUR, SPEAKER = (uuid_of(number) for number in (31, 32, 33))
LARGE = "x" * 40_000


@pytest.fixture(scope="module", params=["ebpf", "nft"])
def datapath(request: pytest.FixtureRequest, site: Installed) -> str:
    """Configured by its name, and in force."""
    if site.api.status().datapath != request.param:
        site.configure(f'[datapath]\ndatapath = "{request.param}"\n')
    assert site.api.status().datapath == request.param
    return str(request.param)


@pytest.fixture
def behind(site: Installed) -> Iterator[Wire]:
    """What guests' frames become behind their taps; none of the service's may be seen there."""
    with Wire(site.host, "br0") as wire:
        yield wire
        assert service_frames(wire.frames()) == []


def test_two_guests_of_one_address_are_served_each_its_own(site: Installed, datapath: str, behind: Wire) -> None:
    """On every address, 40,000 bytes as well as 36; one is switched off, and the other does not notice."""
    guest = site.guest(f"a-{datapath}", GUEST, {"user_data": LARGE})
    neighbour = site.guest(f"b-{datapath}", NEIGHBOUR)
    assert [outcome(guest, address, SECONDS) for address in ALL] == [str(GUEST)] * 3
    assert [outcome(neighbour, address, SECONDS) for address in ALL] == [str(NEIGHBOUR)] * 3
    assert get(guest, "/latest/user-data", timeout=SECONDS).body == LARGE.encode()

    site.api.set_policy(GUEST, Access.RESET, list(Family))
    assert [outcome(guest, address, SECONDS) for address in ALL] == ["refused"] * 3
    site.api.set_policy(GUEST, Access.DROP, list(Family))
    assert outcome(guest, V4, 1) == "timeout"
    assert outcome(neighbour, LINK_LOCAL, SECONDS) == str(NEIGHBOUR)
    site.api.set_policy(GUEST, Access.OPEN, list(Family))
    await_served(guest, GUEST)
    for each in (guest, neighbour):
        each.close()


@pytest.mark.parametrize("vnet_hdr", [False, True], ids=["plain tap", "offloads"])
def test_a_real_tap(site: Installed, datapath: str, behind: Wire, vnet_hdr: bool) -> None:
    """Whole connections over both families; then a reset with a good checksum, as the next SYN's answer."""
    tap = site.tap(f"raw-{datapath}", SPEAKER, vnet_hdr=vnet_hdr)
    assert mac_of_service(tap) == SERVICE_MAC
    for family in BOTH:
        answer = Speaker(tap, family, 40000 + family).ask()
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(str(SPEAKER).encode())
    site.api.set_policy(SPEAKER, Access.RESET, list(Family))
    for family in BOTH:
        with pytest.raises(ConnectionRefusedError):
            Speaker(tap, family, 41000 + family).ask()
    site.api.set_policy(SPEAKER, Access.OPEN, list(Family))
    tap.close()
