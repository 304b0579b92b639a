"""What a packet pays on its whole way: nanoseconds from a guest's send to the end of what the kernel does with it.

A guest's raw socket hands frames to its end of a veth pair, in batches. The kernel walks a frame's whole way within
that call: tap ingress, bridge, uplink, and whoever is there; or the answer of a refusal, back to the guest. So the
sender's time is the path's. Four hosts alike differ in their rules alone and take turns, so that noise hits all of
them; what counts is by how much two of a round differ. This holds for nftables as well as for eBPF, and for what
BPF_PROG_TEST_RUN (packets.py) leaves out: the hooks themselves, and the leak guard in the bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from statistics import median

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

from bench.batch import Batch, packet_socket
from bench.figures import Figure
from bench.site import DATAPATHS, MAC, instance_of
from shim import config as configs
from shim import settings
from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.datapath.base import Datapath
from shim.host import Kind, datapath_of, guard_of, mount_bpffs
from tests.lab import Lab, Namespace, VethGuest

ROUNDS = 41
BATCH, BATCHES = 64, 60
SINK = "02:be:00:00:00:09"

ETHER = Ether(src=MAC, dst=SINK)
SYN = TCP(sport=40000, dport=80, flags="S")
BYSTANDERS = {
    "IPv4 TCP": ETHER / IP(src="10.0.0.5", dst="10.0.0.9") / TCP(dport=443) / (b"x" * 1000),
    "IPv6 TCP": ETHER / IPv6(src="fd00::5", dst="fd00::9") / TCP(dport=443) / (b"x" * 1000),
    "ARP": ETHER / ARP(psrc="10.0.0.5", pdst="10.0.0.9"),
}
REFUSED = {
    "IPv4": ETHER / IP(src="10.0.0.5", dst="169.254.169.254") / SYN,
    "IPv6": ETHER / IPv6(src="fd00::5", dst="fd00:ec2::254") / SYN,
}
BARE, GUARD = "no rules", "leak guard alone"
HOSTS = (BARE, GUARD, *DATAPATHS)


class Sender:
    """A guest's raw socket, which sends one frame many times."""

    def __init__(self, guest: VethGuest) -> None:
        self._socket = guest.call(packet_socket, "eth0")

    def once(self, frame: bytes) -> None:
        """One frame."""
        self._socket.send(frame)

    def time(self, frame: bytes) -> float:
        """Nanoseconds that one of many takes. RuntimeError when the kernel took fewer."""
        batch, sock, sent = Batch([frame] * BATCH), self._socket, 0
        began = time.perf_counter_ns()
        for _ in range(BATCHES):
            sent += batch.send(sock)
        took = time.perf_counter_ns() - began
        if sent != BATCH * BATCHES:
            raise RuntimeError(f"the kernel took {sent} frames of {BATCH * BATCHES}")
        return took / sent


class Host:
    """A hypervisor with a bridge, a guest on a tap, somebody at its uplink, and some rules. Whoever calls is in its
    network namespace: see `entered`."""

    def __init__(self, lab: Lab, number: int, rules: str) -> None:
        self.rules = rules
        self.space = lab.namespace(f"h{number}")
        _bridge(self.space)
        self._guest = lab.veth_guest(f"g{number}", tap="tap0", host=self.space, mac=MAC, link_local=False)
        self._sink = lab.veth_guest(f"s{number}", tap="up0", host=self.space, mac=SINK, link_local=False)
        self.space.ip.link("add", ifname="gw0", kind="veth", peer={"ifname": "gw1"})
        self.sender = Sender(self._guest)
        self._config = configs.Config(host=settings.Host(name=f"b{os.getpid()}x{number}"))
        self._runner = asyncio.Runner()
        self._datapath: Datapath | None = None

    def rule(self) -> None:
        """Put the rules in force."""
        if self.rules != BARE:
            guard_of(self._config).ensure()
        if self.rules in DATAPATHS:
            mount_bpffs(Path(self._config.host.bpffs))
            self._datapath = self._runner.run(self._opened())

    async def _opened(self) -> Datapath:
        kind: Kind = "ebpf" if self.rules == "ebpf" else "nft"
        datapath = datapath_of(self._config, kind)
        await datapath.open(self.space.index("gw0"))
        return datapath

    def allow(self, access: Access) -> None:
        """What the guest's instance may do, where there is a datapath to say that to."""
        if self._datapath is not None:
            policy = Policy(access, access)
            port = Port(1, 1, self._guest.tap_ifindex, "tap0", "", instance_of(0), policy)
            self._runner.run(self._datapath.ensure(port))

    def free(self) -> None:
        """Take the rules away; what is in the namespace goes with it."""
        if self._datapath is not None:
            self._runner.run(self._datapath.teardown())
            self._datapath.close()
        self._runner.close()

    def gets_through(self, frame: bytes) -> bool:
        """Whether a frame of the guest reaches the uplink."""
        with self._sink.raw() as wire:
            self.sender.once(frame)
            return frame in wire.recv(0.2, lambda got: got == frame)


def _bridge(space: Namespace) -> None:
    space.ip.link("add", ifname="br0", kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
    space.sysctl("net.ipv6.conf.br0.addr_gen_mode", 1)
    space.set_up(space.index("br0"))


def measure() -> list[Figure]:
    """All figures of whole paths."""
    with contextlib.ExitStack() as made:
        lab = made.enter_context(Lab(f"path{os.getpid()}"))
        hosts = []
        for number, rules in enumerate(HOSTS):
            host = Host(lab, number, rules)
            with host.space.enter():
                made.callback(host.space.call, host.free)
                host.rule()
            hosts.append(host)
        return [*_bystanders(hosts), *_refused(hosts, Access.DROP), *_refused(hosts, Access.RESET)]


def _bystanders(hosts: list[Host]) -> list[Figure]:
    _allow(hosts, Access.OPEN)
    return [
        figure
        for kind, packet in BYSTANDERS.items()
        for figure in _compare(f"path of a bystander, {kind}", bytes(packet), hosts, {h.rules for h in hosts})
    ]


def _refused(hosts: list[Host], access: Access) -> list[Figure]:
    """Beside the way of the same frame to the uplink, where nobody refuses it."""
    _allow(hosts, access)
    asked = [host for host in hosts if host.rules != GUARD]
    return [
        figure
        for kind, packet in REFUSED.items()
        for figure in _compare(f"path of a SYN refused by {access.value}, {kind}", bytes(packet), asked, {BARE})
    ]


def _allow(hosts: list[Host], access: Access) -> None:
    for host in hosts:
        host.space.call(host.allow, access)


def _compare(name: str, frame: bytes, hosts: list[Host], through: set[str]) -> list[Figure]:
    """Rounds of all hosts in turn. The first of them is the baseline. RuntimeError unless the frame gets `through` in
    these and in no other."""
    found = {host.rules for host in hosts if host.gets_through(frame)}
    if found != through:
        raise RuntimeError(f"{name}: it got through with {sorted(found)}, not with {sorted(through)}")
    rounds = [[host.sender.time(frame) for host in hosts] for _ in range(ROUNDS)]
    bare = median(times[0] for times in rounds)
    figures = []
    for at, host in enumerate(hosts[1:], 1):
        more = median(times[at] - times[0] for times in rounds)
        words = f"{host.rules} and leak guard" if host.rules in DATAPATHS else host.rules
        figures.append(Figure(f"{name}, {words}", bare + more, "ns", bare, BARE))
    return figures
