"""What only a real guest's device shows: partial checksums, segments larger than the MTU, several queues, tags.

Bodies of 1 MiB go both ways, through metashim, between a guest and a backend that are both told what the other got.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from typing import Any

import pytest

from tests.backends.raw import Connection, Heard, Raw, message, says
from tests.lab import Frame, Lab, Wire, service_frames
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.vm import accel
from tests.vm.plug import STATIC, plugged, tiny
from tests.vm.tiny import Guest, Output

A = uuid_of(1)
MIB = 1 << 20
DOWN = random.Random(7).randbytes(MIB)
ETHERNET = 14
STEP_SECONDS = 150.0
TRANSFERS = r"""
head -c 1048576 /dev/urandom >/tmp/up
echo "sent=$(md5sum </tmp/up | cut -c1-32)"
transfer() { # WORD NAME...: 1 MiB down and one up, by each of these addresses
    word=$1; shift
    for name; do
        eval "address=\$$name"
        echo "$word $name down $(get $address /big/down 60 | md5sum | cut -c1-32)"
        echo "$word $name up $(ask $address POST /big/up /tmp/up | tr '\n' ' ')"
    done
    echo "$word done"
}
"""
NO_OFFLOADS = dict.fromkeys(
    ("csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "guest_ufo", "host_tso4", "host_tso6", "host_ufo"), "off"
)


@dataclass(frozen=True)
class Place:
    site: Hypervisor
    backend: Raw

    @contextmanager
    def guest(self, tap: str, script: str, *, queues: int = 1, mtu: int = 1500, **device: Any) -> Iterator[Guest]:
        with (
            plugged(self.site, tap, A, queues=queues, mtu=mtu) as plug,
            tiny(self.site, plug, **device).start(TRANSFERS + script) as guest,
        ):
            yield guest


@pytest.fixture(scope="module")
def place(datapath: str) -> Iterator[Place]:
    """What begins with /big is a backend's."""
    with Lab() as lab:
        backend = Raw(lab.host)
        settings = (
            f'{PLENTY}[forward]\nroutes = {{"/" = "embedded", "/big" = "http"}}\nrequests_per_instance = 64\n'
            f'[http]\naddresses = ["{backend.url}"]\nsecret_file = "{backend.secret_file}"\n'
        )
        backend.play("/big/down", says(message(DOWN)))
        backend.play("/big/up", tells_what_it_got)
        with Hypervisor(lab, settings, proxy="body_bytes = 4194304\n", datapath=datapath) as site, backend:
            site.start()
            yield Place(site, backend)


def tells_what_it_got(connection: Connection, heard: Heard) -> None:
    connection.send(message(md5(heard.body).hexdigest().encode()))


def assert_whole(said: str, word: str, names: tuple[str, ...]) -> None:
    """Of each address's two bodies every byte arrived."""
    sent = re.search(r"^sent=(\w{32})$", said, re.MULTILINE)
    assert sent, said
    down = md5(DOWN).hexdigest()
    for name in names:
        assert f"\n{word} {name} down {down}\n" in said, said
        assert f"\n{word} {name} up 200 {sent[1]}\n" in said, said


def split(wire: Wire) -> tuple[list[Frame], list[Frame]]:
    """TCP of the service's that a tap saw since last asked: from the guest, and to it."""
    frames = [frame for frame in service_frames(wire.frames(0.05)) if tcp(frame)]
    return [frame for frame in frames if not frame.outgoing], [frame for frame in frames if frame.outgoing]


def tcp(frame: Frame) -> bool:
    at = {b"\x08\x00": 23, b"\x86\xdd": 20}.get(frame[12:14], 0)
    return bool(at) and frame[at] == 6


def longest(frames: list[Frame]) -> int:
    """As an MTU counts."""
    return max(len(frame) for frame in frames) - ETHERNET


def test_offloads_of_any_mtu_on_either_side(place: Place) -> None:
    """Of the tap and of the guest; neither is told the other's. IPv6 needs 1280."""
    both, v4 = ("V4", "V6", "LL"), ("V4",)
    steps = [(1500, 1500, both), (9000, 9000, both), (9000, 1500, both[:2]), (1500, 9000, both[:2])]
    steps += [(1280, 1280, both), (1500, 1280, both[:2]), (1280, 1500, both[:2]), (1500, 576, v4), (576, 576, v4)]
    lines = [f"await m{tap}-{guest}; ip link set eth0 mtu {guest}; transfer m{tap}-{guest} {' '.join(names)}\n"
             for tap, guest, names in steps]  # fmt: skip
    with place.guest("tapmtu", STATIC + "".join(lines)) as guest, place.site.lab.capture("tapmtu") as wire:
        for tap, own, names in steps:
            word = f"m{tap}-{own}"
            place.site.lab.host.ip.link("set", index=place.site.lab.host.index("tapmtu"), mtu=tap)
            guest.tell(word)
            guest.await_line(rf"^{word} done$", STEP_SECONDS)
            assert_whole(guest.text(), word, names)
            sent, got = split(wire)
            assert all(frame.partial for frame in sent), f"{word}: a guest leaves checksums to its device"
            assert longest(sent) > own and longest(got) > own, f"{word}: segments are larger than the MTU, both ways"
        assert guest.output().status == 0


def test_no_offloads_and_a_jumbo_mtu_that_the_device_tells(place: Place) -> None:
    script = STATIC + """
    cat /sys/class/net/eth0/mtu
    transfer jumbo V4 V6 LL
    ip link set eth0 mtu 1500
    transfer plain V4 V6
    """
    options = {**NO_OFFLOADS, "host_mtu": "9000"}
    with (
        place.guest("tapplain", script, mtu=9000, options=options) as guest,
        place.site.lab.capture("tapplain") as wire,
    ):
        said = guest.output()
        sent, got = split(wire)
    assert "\n9000\n" in said.text, said.text
    assert_whole(said.text, "jumbo", ("V4", "V6", "LL"))
    assert_whole(said.text, "plain", ("V4", "V6"))
    assert not any(frame.partial for frame in sent), "the guest's own checksums"
    assert longest(sent) <= 9000 and longest(got) <= 9000


def test_flows_side_by_side_on_two_queues(place: Place) -> None:
    """By the host's kernel (vhost) where it has that; and by a guest that asks for ECN in its SYNs."""
    script = r"""
    echo 1 >/proc/sys/net/ipv4/tcp_ecn
    fetch() { get $1 /big/down 60 | md5sum | cut -c1-32; }
    push() { ask $1 POST /big/up /tmp/up | tr '\n' ' '; echo; }
    for name in $V4 $V6; do same 4 fetch $name; same 4 push $name; done
    for number in 1 2 3; do same 12 get $V4 $ID; done
    grep -E 'virtio0-(in|out)put' /proc/interrupts | sed 's/^/irq /'
    """
    with place.guest("tapqueues", STATIC + script, queues=2, cpus=2, vhost=accel.has_vhost()) as guest:
        said = guest.output()
    assert said.text.count(f"4 {md5(DOWN).hexdigest()}\n") == 2, said.text
    assert said.text.count(f"4 200 {said.value('sent')}\n") == 2, said.text
    assert said.text.count(f"12 {A}\n") == 3, said.text
    assert used_queues(said) == {"input.0", "input.1", "output.0", "output.1"}, said.text


def used_queues(said: Output) -> set[str]:
    """Those that interrupted either of two CPUs."""
    found = re.findall(r"^irq +\S+: +(\d+) +(\d+) .*virtio0-(\S+)$", said.text, re.MULTILINE)
    return {name for one, two, name in found if int(one) + int(two)}


def test_a_guest_behind_tags_of_its_own(place: Place, datapath: str) -> None:
    """eBPF serves it, nftables refuses it; and neither lets any of it out."""
    served = datapath == "ebpf"
    fetch = "transfer $device V4 V6 LL" if served else 'echo "$device $(outcome $V4 $ID 4) $(outcome $LL $ID 4)"'
    script = rf"""
    up eth0; settled eth0
    ip link add link eth0 name tagged type vlan id 7
    ip link add link eth0 name outer type vlan proto 802.1ad id 8
    ip link add link outer name twice type vlan id 9
    up outer
    for device in tagged twice; do
        configure $device 10.0.0.5/24 fd00:1::5/64
        LL=fe80::a9fe:a9fe%$device
        {fetch}
        ip link del $device
    done
    """
    lab = place.site.lab
    with place.guest("taptag", script) as guest, lab.capture("uplink") as uplink, lab.capture("br0") as bridge:
        said = guest.output()
        (counted,) = [view.counters for view in place.site.api.counters(tap="taptag")]
        assert not service_frames([*uplink.frames(), *bridge.frames()])
    for device in ("tagged", "twice"):
        if served:
            assert_whole(said.text, device, ("V4", "V6", "LL"))
        else:
            assert f"\n{device} " in said.text and str(A) not in said.text, said.text
    assert served or counted["vlan_depth"], counted
