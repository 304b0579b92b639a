"""Contract, section 2, as far as it is about devices: queues, large segments, checksums left to others.

Only a kernel has these, so the fake has no say. The service is a real listener in the gateway's namespace, whose
stack would drop what had a wrong checksum; the guest speaks TCP by hand through a tap.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from shim.core.policy import Access, Policy
from shim.netlink import listening
from tests.bpf.frames import BOTH, GUEST_MAC, GUEST_OF, SERVICE_MAC, SERVICE_OF, ethernet, segment
from tests.bpf.loaded import ADDRESSES, pins
from tests.contract.conftest import checked
from tests.contract.kernel import Hypervisor, KernelRig
from tests.contract.rig import Bench
from tests.lab import Lab, TapGuest, offloaded

pytestmark = pytest.mark.root

TAGGINGS = {"plain": [], "vlan": [Dot1Q(vlan=7)], "qinq": [Dot1AD(vlan=8), Dot1Q(vlan=9)]}
UPLOAD = bytes(range(256)) * 24
DOWNLOAD = bytes(reversed(UPLOAD)) * 2
MSS = 1400


@pytest.fixture(scope="module", params=["ebpf", "nft"])
def host(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    with pins("devices") as folder, Lab() as lab:
        made = Hypervisor(lab, request.param, folder, tuple(ADDRESSES))
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def listeners(host: Hypervisor) -> Iterator[dict[int, socket.socket]]:
    made = [listening.listen(host.gateway, place) for place in listening.places((80,))]
    for each in made:
        each.settimeout(2)
    yield {4 if each.family == socket.AF_INET else 6: each for each in made}
    for each in made:
        each.close()


class Guest:
    """One connection of a guest's, by hand. `tap` may have offloads: then large segments and partial checksums."""

    def __init__(self, bench: Bench, family: int, tags: list[Packet], port: int, queue: int = 0) -> None:
        rig = bench.rig
        assert isinstance(rig, KernelRig)
        self.tap: TapGuest = rig.taps["a"]
        self.family, self.tags, self.port, self.queue = family, tags, port, queue
        self.sequence, self.expected = 1000, 0

    def send(self, flags: str, payload: bytes = b"", gso_size: int = 0) -> None:
        ip = IP if self.family == 4 else IPv6
        header = TCP(sport=self.port, dport=80, flags=flags, seq=self.sequence, ack=self.expected, window=65535)
        header.options = [("MSS", MSS)] if "S" in flags else []
        network = ip(src=GUEST_OF[self.family], dst=SERVICE_OF[self.family])
        frame = bytes(ethernet(dst=SERVICE_MAC, tags=self.tags) / network / header / payload)
        if self.tap.vnet_hdr:
            frame, vnet = offloaded(frame, gso_size)
            self.tap.send(frame, self.queue, vnet)
        else:
            self.tap.send(frame, self.queue)
        self.sequence += len(payload) + ("S" in flags)

    def receive(self) -> Packet:
        """The next frame, its addresses, tags and checksum right."""
        frame = self.tap.recv(2, want=lambda _: True)[-1]
        packet = Ether(frame)
        assert (packet.src, packet.dst) == (SERVICE_MAC, GUEST_MAC)
        assert bytes(packet)[12 : 12 + 4 * len(self.tags)] == bytes(ethernet(tags=self.tags))[12:][: 4 * len(self.tags)]
        ip = packet[IP if self.family == 4 else IPv6]
        assert (ip.src, ip.dst) == (SERVICE_OF[self.family], GUEST_OF[self.family])
        assert_checksum(frame, partial=frame.partial)
        return ip[TCP]

    def connect(self, listener: socket.socket) -> socket.socket:
        self.send("S")
        answer = self.receive()
        assert answer.flags == "SA"
        self.expected = answer.seq + 1
        self.send("A")
        return listener.accept()[0]

    def read(self, size: int) -> tuple[bytes, int]:
        """So many bytes, acknowledged, and the longest segment that brought some."""
        got, longest = b"", 0
        while len(got) < size:
            part = self.receive()
            assert part.seq == self.expected
            payload = bytes(part.payload)[: len(part.payload)]
            got, longest = got + payload, max(longest, len(payload))
            self.expected += len(payload)
            if payload:
                self.send("A")
        return got, longest


def assert_checksum(frame: bytes, *, partial: bool) -> None:
    """Scapy's, or what a device completes to it: the pseudo header's sum."""
    fresh = Ether(frame)
    del fresh[TCP].chksum
    whole = bytes(fresh)
    expected = offloaded(whole)[0] if partial else whole
    assert frame == expected


@pytest.fixture(params=[False, True], ids=["plain tap", "offloads"])
def bench(request: pytest.FixtureRequest, host: Hypervisor) -> Iterator[Bench]:
    for rig in checked(KernelRig(host, vnet_hdr=request.param)):
        yield Bench(rig)


@pytest.mark.parametrize("tags", TAGGINGS.values(), ids=TAGGINGS)
@pytest.mark.parametrize("family", BOTH)
def test_data_arrives_whole_both_ways(bench, listeners, family, tags):
    bench.enrol("a")
    if bench.refuses_tags("a", segment(family, tags=tags), tags):
        return
    guest = Guest(bench, family, tags, 41000)
    with guest.connect(listeners[family]) as service:
        large = MSS if guest.tap.vnet_hdr else 0
        size = len(UPLOAD) if large else MSS
        for at in range(0, len(UPLOAD), size):
            guest.send("PA", UPLOAD[at : at + size], gso_size=large)
        service.settimeout(2)
        assert service.recv(len(UPLOAD), socket.MSG_WAITALL) == UPLOAD
        service.sendall(DOWNLOAD)
        got, longest = guest.read(len(DOWNLOAD))
        assert got == DOWNLOAD
        if large and not tags:
            assert longest > MSS, "segments were cut although the guest takes large ones"
        if not large:
            assert longest <= MSS
        guest.send("R")


@pytest.mark.parametrize("tags", TAGGINGS.values(), ids=TAGGINGS)
@pytest.mark.parametrize("family", BOTH)
def test_a_reset_has_a_right_checksum_whoever_was_to_write_it(bench, family, tags):
    bench.enrol("a", Policy(Access.RESET, Access.RESET))
    if bench.refuses_tags("a", segment(family, tags=tags), tags):
        return
    guest = Guest(bench, family, tags, 42000)
    guest.send("S")
    assert guest.receive().flags == "RA"
    guest.send("PA", b"x" * 100)
    assert guest.receive().flags == "R"
    if guest.tap.vnet_hdr:
        guest.send("PA", UPLOAD, gso_size=MSS)
        assert guest.receive().flags == "R"


def test_every_queue_of_a_tap_is_guarded_and_served(host, listeners):
    for rig in checked(KernelRig(host, queues=3)):
        bench = Bench(rig)
        bench.enrol("a")
        for queue in range(3):
            guest = Guest(bench, 4, [], 43000 + queue, queue)
            with guest.connect(listeners[4]) as service:
                service.sendall(b"hello")
                assert guest.read(5)[0] == b"hello"
                assert service.getpeername()[0] == "100.64.0.1"
                guest.send("R")
        bench.enrol("a", Policy(v4=Access.DROP))
        for queue in range(3):
            Guest(bench, 4, [], 44000, queue).send("S")
            assert rig.guest("a") == []
