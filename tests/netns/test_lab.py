"""The lab is what the other kernel tests stand on, so each of its pieces is shown to do what they rely on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

from tests.lab import FramesLostError, Lab, offloaded, service_frames

MAC = "02:00:00:00:00:05"
OTHER_MAC = "02:00:00:00:00:06"
BROADCAST = "ff:ff:ff:ff:ff:ff"
MARK = b"a frame made by hand"


def host_state() -> tuple[set[str], set[str]]:
    """This process's namespaces, by name, and the links outside of them that a lab might have made."""
    names = {path.name for path in Path("/run/netns").glob(f"lab{os.getpid()}x*")}
    return names, links() & {"br0", "uplink", "eth0", "tap1", "tap2", "tap3"}


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def marked(frames: list, mark: bytes = MARK) -> list:
    return [frame for frame in frames if mark in frame]


def hand_made(payload: bytes = MARK, **ether: str) -> bytes:
    return bytes(Ether(**{"src": MAC, "dst": BROADCAST, "type": 0x88B5} | ether) / payload)


class TestLab:
    def test_leaves_nothing_behind(self):
        before = host_state()
        with Lab() as lab:
            lab.veth_guest("one", "tap1", mac=MAC, v4="10.0.0.5/24")
            gone = lab.veth_guest("two", "tap3", mac=MAC)
            lab.host.ip.link("del", index=gone.tap_ifindex)
            lab.tap_guest("tap2", persistent=True)
            server = lab.run_in_host(["sleep", "60"])
            during = host_state()
            names = ("host", "wire", "one", "two")
            assert during[0] - before[0] == {f"{lab.prefix}-{name}" for name in names}
            assert during[1] == before[1]
        assert server.returncode == -signal.SIGTERM
        assert host_state() == before

    def test_leaves_nothing_behind_after_a_failure(self):
        before = host_state()
        with pytest.raises(RuntimeError, match="no such thing"), Lab() as lab:
            lab.veth_guest("one", "tap1", mac=MAC)
            lab.host.run(["sh", "-c", "echo no such thing >&2; exit 3"])
        assert host_state() == before

    def test_leaves_nothing_behind_when_a_guest_cannot_be_made(self, lab):
        lab.veth_guest("one", "tap1", mac=MAC)
        before = host_state(), lab.host.links()
        with pytest.raises(Exception, match="File exists"):
            lab.veth_guest("two", "tap1", mac=MAC)
        assert (host_state(), lab.host.links()) == before
        with pytest.raises(Exception, match="Invalid"):
            lab.veth_guest("two", "tap2", mac=MAC, v4="10.0.0.5/99")
        assert (host_state(), lab.host.links()) == before

    def test_ends_daemons_and_the_stubborn(self, lab, monkeypatch):
        monkeypatch.setattr("tests.lab.namespace.STOP_SECONDS", 0.2)
        lab.host.run(["sh", "-c", "setsid sleep 61 >/dev/null 2>&1 &"])
        lab.run_in_host(["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"])
        deadline = time.monotonic() + 5
        while len(lab.host.pids()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(lab.host.pids()) >= 2
        lab.host.stop()
        assert lab.host.pids() == []

    def test_works_in_a_running_event_loop_and_from_threads(self):
        async def use() -> set[str]:
            with Lab() as lab:
                return await asyncio.to_thread(lab.host.links)

        assert asyncio.run(use()) == {"lo", "br0", "uplink"}

    def test_only_the_calling_thread_moves(self, lab):
        outside, seen = links(), []
        with lab.host.enter():
            inside = links()
            thread = threading.Thread(target=lambda: seen.append(Path("/proc/self/ns/net").stat().st_ino))
            thread.start()
            thread.join()
        assert inside == {"lo", "br0", "uplink"}
        assert links() == outside

    def test_processes_keep_the_mounts_they_would_have(self, lab):
        script = "readlink /proc/self/ns/mnt; readlink /proc/self/ns/net"
        mounts, net = lab.host.run(["sh", "-c", script]).stdout.split()
        assert mounts == str(Path("/proc/self/ns/mnt").readlink())
        assert net == f"net:[{lab.host.path.stat().st_ino}]"


class TestVethGuest:
    def test_two_of_the_same_address_and_mac_are_two(self, lab):
        """Without a bridge each of them reaches its own port and nothing of the other's."""
        guests = [
            lab.veth_guest(name, tap, mac=MAC, v4="10.0.0.5/24", v6="fd00:1::5/64", bridge=None)
            for name, tap in (("one", "tap1"), ("two", "tap2"))
        ]
        captures = [lab.capture("tap1"), lab.capture("tap2")]
        for guest, text in zip(guests, (b"from one", b"from two"), strict=True):
            with guest.enter(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
                sender.sendto(text, ("ff02::1", 9, 0, guest.ifindex))
        one, two = (capture.frames() for capture in captures)
        assert (len(marked(one, b"from one")), len(marked(one, b"from two"))) == (1, 0)
        assert (len(marked(two, b"from one")), len(marked(two, b"from two"))) == (0, 1)
        assert Ether(marked(one, b"from one")[0]).src == Ether(marked(two, b"from two")[0]).src == MAC

    def test_has_no_default_route_but_on_link_service_addresses(self, lab):
        guest = lab.veth_guest("one", "tap1", mac=MAC, v4="10.0.0.5/24", v6="fd00:1::5/64")
        assert "default" not in guest.run(["sh", "-c", "ip route; ip -6 route"]).stdout
        for address in ("169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe"):
            route = guest.run(["ip", "route", "get", address, "oif", "eth0"]).stdout
            assert "dev eth0" in route
            assert " via " not in route

    def test_link_local_alone_reaches_the_ipv6_service_address(self, lab):
        guest = lab.veth_guest("one", "tap1", mac=MAC)
        route = guest.run(["ip", "route", "get", "fd00:ec2::254"]).stdout
        assert "src fe80::ff:fe00:5" in route

    def test_one_without_addresses_is_silent(self, lab):
        guest = lab.veth_guest("quiet", "tap1", mac=MAC, link_local=False)
        assert guest.run(["cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"]).stdout == "1\n"
        capture = lab.capture("tap1")
        guest.ip.link("set", index=guest.ifindex, state="down")
        guest.ip.link("set", index=guest.ifindex, state="up")
        assert [frame for frame in capture.frames(settle=0.3) if Ether(frame).src == MAC] == []

    def test_reaches_the_wire_through_the_bridge(self, lab):
        guest = lab.veth_guest("one", "tap1", mac=MAC, v4="10.0.0.5/24")
        lab.wire.ip.addr("add", index=lab.wire.index("uplink"), address="10.0.0.1", prefixlen=24)
        with lab.wire.enter():
            server = socket.create_server(("10.0.0.1", 80))
        with server, guest.enter(), socket.create_connection(("10.0.0.1", 80), timeout=2) as client:
            assert server.accept()[1] == client.getsockname()
            assert client.getsockname()[0] == "10.0.0.5"


class TestWire:
    def test_sees_the_service_leak_it_is_there_to_see(self, lab):
        """An unguarded guest's ARP request for the service address is on every other port and on the wire."""
        guest = lab.veth_guest("one", "tap1", mac=MAC, v4="10.0.0.5/24")
        lab.veth_guest("two", "tap2", mac=OTHER_MAC)
        captures = [lab.capture("br0"), lab.capture("tap2"), lab.capture("uplink", lab.wire)]
        with guest.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("169.254.169.254", 80))
        for capture in captures:
            leaks = service_frames(capture.frames())
            assert any(ARP in Ether(frame) and Ether(frame).pdst == "169.254.169.254" for frame in leaks)

    def test_sees_unicast_to_others_on_the_bridge_itself(self, lab):
        guest = lab.veth_guest("one", "tap1", mac=MAC, link_local=False)
        capture = lab.capture("br0")
        guest.raw().send(hand_made(dst="02:00:00:00:00:99"))
        assert len(marked(capture.frames())) == 1

    @pytest.mark.parametrize(
        "tags",
        [Dot1Q(vlan=7, prio=3), Dot1AD(vlan=8) / Dot1Q(vlan=9), Dot1Q(vlan=5) / Dot1Q(vlan=6)],
        ids=["vlan", "qinq", "stacked"],
    )
    def test_tags_arrive_as_they_were_sent(self, lab, tags):
        guest = lab.veth_guest("one", "tap1", mac=MAC, link_local=False)
        packet = IP(src="10.0.0.5", dst="10.0.0.1") / UDP() / MARK
        frame = bytes(Ether(src=MAC, dst=BROADCAST) / tags / packet)
        captures = [lab.capture("tap1"), lab.capture("uplink", lab.wire)]
        with guest.raw() as raw:
            raw.send(frame)
        for capture in captures:
            assert marked(capture.frames()) == [frame]

    def test_a_guests_side_receives_only(self, lab):
        guest = lab.veth_guest("one", "tap1", mac=MAC)
        raw, back, other = guest.raw(), lab.capture("tap1"), lab.capture("tap1")
        with guest.enter(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"from the kernel", ("ff02::1", 9, 0, guest.ifindex))
        raw.send(hand_made(MARK))
        back.send(hand_made(b"an answer to it", src=OTHER_MAC))
        got = raw.recv(2, want=lambda frame: b"an answer" in frame)
        assert marked(got) == marked(got, b"from the kernel") == []
        assert not got[-1].outgoing
        seen = [(frame.outgoing, MARK in frame) for frame in other.frames() if Ether(frame).type == 0x88B5]
        assert seen == [(False, True), (True, False)]

    def test_misses_nothing_of_a_burst(self, lab):
        guest = lab.veth_guest("one", "tap1", mac=MAC, link_local=False)
        capture, arrived = lab.capture("uplink", lab.wire), lab.capture("uplink", lab.wire)
        frames = [hand_made(MARK + str(number).encode()) for number in range(5000)]
        with guest.raw() as raw:
            for batch in range(0, 5000, 500):  # veth pairs lose frames beyond a backlog of 1000
                for frame in frames[batch : batch + 500]:
                    raw.send(frame)
                arrived.recv(5, want=frames[batch + 499].__eq__)
        assert marked(capture.frames()) == frames

    def test_says_when_it_lost_some(self, lab, monkeypatch):
        monkeypatch.setattr("tests.lab.wire.RECEIVE_BUFFER", 8192)
        guest = lab.veth_guest("one", "tap1", mac=MAC, link_local=False)
        capture = lab.capture("uplink", lab.wire)
        with guest.raw() as raw:
            for _ in range(200):
                raw.send(hand_made(b"x" * 1000))
        with pytest.raises(FramesLostError):
            capture.frames()


class TestTapGuest:
    def test_sends_and_receives_frames(self, lab):
        tap = lab.tap_guest("tap1")
        wire = lab.capture("uplink", lab.wire)
        tap.send(hand_made())
        assert marked(wire.frames()) == [hand_made()]
        wire.send(hand_made(src=OTHER_MAC))
        assert tap.recv(2, want=lambda frame: MARK in frame)[-1] == hand_made(src=OTHER_MAC)

    def test_two_of_the_same_mac_without_a_bridge_are_two(self, lab):
        taps = [lab.tap_guest(name, bridge=None) for name in ("tap1", "tap2")]
        captures = [lab.capture("tap1"), lab.capture("tap2")]
        taps[0].send(hand_made())
        assert [len(marked(capture.frames())) for capture in captures] == [1, 0]

    def test_goes_with_its_descriptor_unless_persistent(self, lab):
        lab.tap_guest("tap1").close()
        assert "tap1" not in lab.host.links()
        lasting = lab.tap_guest("tap2", persistent=True)
        lasting.close()
        assert "tap2" in lab.host.links()
        again = lab.tap_guest("tap2", persistent=False)
        assert again.ifindex == lasting.ifindex
        again.close()
        assert "tap2" not in lab.host.links()

    def test_every_queue_sends_and_answers_come_by_the_flows_own(self, lab):
        tap = lab.tap_guest("tap1", queues=3)
        wire = lab.capture("uplink", lab.wire)
        for queue in (2, 0, 1):
            there = IP(src="10.0.0.5", dst="10.0.0.1") / UDP(sport=4000 + queue, dport=9) / MARK
            back = IP(src="10.0.0.1", dst="10.0.0.5") / UDP(sport=9, dport=4000 + queue) / MARK
            tap.send(bytes(Ether(src=MAC, dst=OTHER_MAC) / there), queue=queue)
            assert len(marked(wire.frames())) == 1
            wire.send(bytes(Ether(src=OTHER_MAC, dst=MAC) / back))
            assert tap.recv(2, want=lambda frame: MARK in frame)[-1].queue == queue

    @pytest.mark.parametrize("network", [IP(src="10.0.0.5"), IPv6(src="fd00::5", dst="fd00::1")])
    def test_large_segments_and_partial_checksums(self, lab, network):
        """One large segment without a checksum arrives as correct ones of the size asked for."""
        tap = lab.tap_guest("tap1", vnet_hdr=True)
        plain = lab.tap_guest("tap2", vnet_hdr=False)
        payload = bytes(range(256)) * 16
        segment = TCP(sport=4000, dport=80, flags="A") / payload
        frame = bytes(Ether(src=MAC, dst=BROADCAST) / network / segment)
        tap.send(*_with_vnet(offloaded(frame, gso_size=1000)))
        got = [Ether(f) for f in plain.recv(0.5) if Ether(f).src == MAC and TCP in Ether(f)]
        assert [len(segment[TCP].payload) for segment in got] == [1000, 1000, 1000, 1000, 96]
        assert b"".join(bytes(segment[TCP].payload) for segment in got) == payload
        for segment in got:
            assert segment[TCP].chksum == _right_checksum(segment)

    def test_gets_large_segments_and_partial_checksums(self, lab):
        """A tap with offloads is given what another such tap sent, uncut, and the header says so."""
        one, two = (lab.tap_guest(name, vnet_hdr=True) for name in ("tap1", "tap2"))
        packet = IP(src="10.0.0.5", dst="10.0.0.1") / TCP(flags="A") / (b"y" * 3000)
        frame, vnet = offloaded(bytes(Ether(src=MAC, dst=BROADCAST) / packet), gso_size=1000)
        one.send(frame, vnet=vnet)
        got = two.recv(2, want=lambda f: b"yyyy" in f)[-1]
        assert got == frame
        assert got.partial
        assert (got.vnet.gso_type, got.vnet.gso_size) == (vnet.gso_type, 1000)

    def test_partial_checksums_behind_tags_are_completed(self, lab):
        tap, plain = lab.tap_guest("tap1", vnet_hdr=True), lab.tap_guest("tap2")
        packet = Ether(src=MAC, dst=BROADCAST) / Dot1Q(vlan=3) / IP(src="10.0.0.5") / UDP(dport=9) / MARK
        tap.send(*_with_vnet(offloaded(bytes(packet))))
        got = Ether(plain.recv(2, want=lambda frame: MARK in frame)[-1])
        assert got[UDP].chksum == _right_checksum(got)

    def test_refuses_a_header_it_has_no_room_for(self, lab):
        frame, vnet = offloaded(bytes(Ether() / IP(src="10.0.0.5") / UDP() / MARK))
        with pytest.raises(ValueError, match="vnet_hdr"):
            lab.tap_guest("tap1").send(frame, vnet=vnet)
        with pytest.raises(ValueError, match="protocol 1"):
            offloaded(bytes(Ether() / IP(src="10.0.0.5", proto=1) / MARK))


def _with_vnet(pair: tuple) -> tuple:
    frame, vnet = pair
    return frame, 0, vnet


def _right_checksum(packet: Ether) -> int:
    """The checksum that scapy computes for the packet's transport header."""
    fresh = packet.copy()
    layer = TCP if TCP in fresh else UDP
    del fresh[layer].chksum
    return Ether(bytes(fresh))[layer].chksum


def test_ip_netns_knows_the_namespaces(lab):
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert {f"{lab.prefix}-host", f"{lab.prefix}-wire"} <= {line.split()[0] for line in listed.splitlines()}
