"""Whose a tap is: every source, every change of it, and every trick with names, indexes and namespaces."""

from __future__ import annotations

import itertools
import time

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.lab import VethGuest, service_frames
from tests.lab.namespace import wait_until
from tests.netns.conftest import on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import V4, V6, Ended, Talk, ask, await_outcome, connect, outcome

_number = itertools.count(1)
FACE = {"mac": "02:00:00:00:00:08", "v4": "10.0.0.8/24", "v6": "fd00:1::8/64"}


@pytest.fixture
def tap() -> str:
    return f"tapi{next(_number)}"


def plug(site: Hypervisor, tap: str, **kwargs: object) -> VethGuest:
    return site.lab.veth_guest(f"n{next(_number)}", tap, **(FACE | kwargs))  # type: ignore[arg-type]


def name(site: Hypervisor, guest: VethGuest, alias: str) -> None:
    site.lab.host.ip.link("set", index=guest.tap_ifindex, ifalias=alias)


def cut(talk: Talk) -> bool:
    """Whether a connection serves nothing any more; what it does serve is an error."""
    try:
        answer = talk.ask()
    except (OSError, Ended):
        return True
    raise AssertionError(f"still answered: {answer}")


@on_both
class TestAlias:
    def test_set_changed_and_removed_under_a_live_tap(self, shared, tap):
        guest = plug(shared, tap)
        shared.await_port(tap, None)
        assert outcome(guest, timeout=0.2) == "timeout"
        name(shared, guest, f"metashim:{uuid_of(1)}")
        shared.await_port(tap, uuid_of(1))
        with Talk(guest) as four, Talk(guest, V6) as six:
            assert four.ask().body == six.ask().body == str(uuid_of(1))
            name(shared, guest, f"metashim:{uuid_of(2)}")
            shared.await_port(tap, uuid_of(2))
            assert cut(four)
            assert cut(six)
        with Talk(guest) as talk:
            assert talk.ask().body == str(uuid_of(2))
            name(shared, guest, "somebody's own")
            shared.await_port(tap, None)
            talk.sock.settimeout(0.3)
            assert cut(talk)
        assert outcome(guest, timeout=0.2) == "timeout"

    def test_a_hundred_changes_and_never_a_mix(self, shared, tap):
        """Every answer on one connection is one instance's, and a new connection is the present one's."""
        guest = plug(shared, tap)
        for number in range(100):
            want = uuid_of(number % 2 + 1)
            name(shared, guest, f"metashim:{want}")
            shared.await_port(tap, want)
            assert ask(guest, (V4, V6)[number % 2]).body == str(want)


class TestOperator:
    def test_before_the_tap_is_there_and_back(self, shared, tap):
        shared.api.attach(tap, uuid_of(3))
        guest = plug(shared, tap)
        shared.await_port(tap, uuid_of(3))
        with Talk(guest) as talk:
            assert talk.ask().body == str(uuid_of(3))
            shared.api.detach(tap)
            talk.sock.settimeout(0.3)
            assert cut(talk)
        assert shared.port(tap).instance is None
        assert outcome(guest, timeout=0.2) == "timeout"

    def test_who_says_otherwise_is_reported(self, shared, tap):
        guest = plug(shared, tap)
        name(shared, guest, f"metashim:{uuid_of(4)}")
        shared.api.attach(tap, uuid_of(5))
        port = shared.await_port(tap, uuid_of(5))
        assert port.source == "operator"
        assert f"alias says {uuid_of(4)}" in port.conflict
        assert outcome(guest) == str(uuid_of(5))
        shared.api.detach(tap)
        port = shared.await_port(tap, uuid_of(4))
        assert (port.source, port.conflict) == ("alias", "")

    def test_a_tap_that_matches_no_pattern(self, shared):
        tap = f"eth-{next(_number)}"
        guest = plug(shared, tap)
        shared.api.attach(tap, uuid_of(6))
        shared.await_port(tap, uuid_of(6))
        assert outcome(guest) == str(uuid_of(6))
        shared.api.detach(tap)
        assert shared.port(tap) is None
        assert "bpf" not in shared.lab.host.run(["tc", "filter", "show", "dev", tap, "ingress"]).stdout


class TestFile:
    def test_changed_broken_gone_and_back(self, shared, tap):
        def write(text: str) -> None:
            fresh = shared.mapping.with_suffix(".new")
            fresh.write_text(text)
            fresh.rename(shared.mapping)

        def ailments() -> list[str]:
            return [a.what for a in shared.api.status().ailments]

        guest = plug(shared, tap)
        write(f'[[port]]\ninterface = "{tap}"\ninstance = "{uuid_of(7)}"\n')
        shared.await_port(tap, uuid_of(7))
        write(f'[[port]]\ninterface = "{tap}"\ninstance = "{uuid_of(8)}"\n')
        shared.await_port(tap, uuid_of(8))
        assert outcome(guest) == str(uuid_of(8))
        write('[[port]]\ninterface = "tap')
        wait_until(lambda: any("last good mapping holds" in a for a in ailments()), "the complaint", 5)
        assert outcome(guest) == str(uuid_of(8))
        shared.mapping.unlink()
        time.sleep(2.2)
        assert outcome(guest) == str(uuid_of(8))
        write("")
        shared.await_port(tap, None)
        assert ailments() == []


@on_both
class TestReuse:
    def test_the_same_name_is_another_guest(self, shared, tap):
        first = plug(shared, tap)
        name(shared, first, f"metashim:{uuid_of(1)}")
        shared.await_port(tap, uuid_of(1))
        with Talk(first) as talk:
            assert talk.ask().body == str(uuid_of(1))
            first.close()
        second = plug(shared, tap)
        name(shared, second, f"metashim:{uuid_of(2)}")
        shared.await_port(tap, uuid_of(2))
        assert outcome(second) == str(uuid_of(2))

    def test_the_same_ifindex_gets_nothing_of_the_former_connection(self, shared, tap):
        """A large answer of the former's is under way, and unread, when another gets the interface's number."""
        secret = f"of the former {uuid_of(11)} " * 400
        shared.api.put_document(uuid_of(11), f'{{"user_data": "{secret}"}}'.encode())
        for number in range(5):
            first = plug(shared, tap)
            name(shared, first, f"metashim:{uuid_of(11)}")
            shared.await_port(tap, uuid_of(11))
            sock = connect(first, source=("10.0.0.8", 47000 + number))
            sock.sendall(b"GET /latest/user-data HTTP/1.1\r\nhost: x\r\n\r\n" * 20)
            index = first.tap_ifindex
            first.host.ip.link("del", index=index)
            guest = shared.lab.namespace(f"r{next(_number)}")
            peer = {"ifname": "eth0", "net_ns_fd": str(guest.path), "address": FACE["mac"]}
            shared.lab.host.ip.link(
                "add", ifname=tap, kind="veth", index=index, peer=peer
            )
            shared.lab.host.ip.link("set", index=index, ifalias=f"metashim:{uuid_of(12)}")
            guest.ip.link("set", index=guest.index("eth0"), state="up")
            guest.ip.addr("add", index=guest.index("eth0"), address="10.0.0.8", prefixlen=24)
            guest.ip.route("add", dst="169.254.0.0/16", oif=guest.index("eth0"))
            with shared.lab.capture("eth0", guest) as wire:
                shared.lab.host.ip.link("set", index=index, state="up")
                shared.await_port(tap, uuid_of(12))
                for _ in range(10):
                    assert outcome(guest) == str(uuid_of(12))  # type: ignore[arg-type]
                assert not [f for f in wire.frames(0.3) if b"of the former" in f]
            sock.close()
            first.close()  # and the second with it, by its index

    def test_the_same_ifindex_name_and_owner_is_guarded_again(self, shared, tap):
        """All that is compared is equal, yet nothing is on the new device: it must not pass for the old one."""
        shared.api.attach(tap, uuid_of(13))
        first = plug(shared, tap)
        shared.await_port(tap, uuid_of(13))
        script = (
            f"link del {tap}\nlink add {tap} index {first.tap_ifindex} type veth peer name peer{tap}\n"
            f"link set {tap} up\nlink set peer{tap} up\n"
        )
        shared.lab.host.run(["ip", "-batch", "-"], input=script, stdin=None)

        question = ARP(op="who-has", hwsrc=FACE["mac"], psrc="10.0.0.8", pdst=V4)
        with shared.lab.capture(f"peer{tap}") as peer:

            def answered() -> bool:
                peer.send(bytes(Ether(src=FACE["mac"], dst="ff:ff:ff:ff:ff:ff") / question))
                return bool(peer.recv(0.05, lambda frame: ARP in Ether(frame) and Ether(frame)[ARP].psrc == V4))

            wait_until(answered, "an answer by the new device", 3)
        shared.lab.host.run(["ip", "link", "del", tap])

    def test_a_renamed_tap(self, shared, tap):
        guest = plug(shared, tap)
        shared.api.attach(tap, uuid_of(14))
        shared.await_port(tap, uuid_of(14))
        other = f"{tap}n"
        shared.lab.host.run(["ip", "link", "set", tap, "down"])
        shared.lab.host.run(["ip", "link", "set", tap, "name", other, "up"])
        shared.await_port(other, None)
        assert outcome(guest, timeout=0.2) == "timeout"
        shared.lab.host.run(["ip", "link", "set", other, "down"])
        shared.lab.host.run(["ip", "link", "set", other, "name", tap, "up"])
        guest.host.await_up(guest.tap_ifindex)
        await_outcome(guest, str(uuid_of(14)))

    def test_a_tap_in_another_namespace_and_back(self, shared, tap):
        guest = plug(shared, tap)
        shared.api.attach(tap, uuid_of(15))
        shared.await_port(tap, uuid_of(15))
        away = shared.lab.namespace(f"away{next(_number)}")
        shared.lab.host.run(["ip", "link", "set", tap, "netns", away.name])
        wait_until(lambda: shared.port(tap) is None, "the port to go")
        away.run(["ip", "link", "set", tap, "netns", shared.lab.host.name])
        shared.lab.host.run(["ip", "link", "set", tap, "master", "br0", "up"])
        guest.tap_ifindex = shared.lab.host.index(tap)
        shared.await_port(tap, uuid_of(15))
        await_outcome(guest, str(uuid_of(15)))


@on_both
class TestNoSlotLeft:
    def test_refused_and_said_and_guarded(self, lab, datapath):
        """Slots rest for a minute, so a second identity on the only one's tap finds none: it gets nothing."""
        with Hypervisor(lab, "[datapath]\nmax_ports = 1\n", datapath=datapath) as site:
            guest = lab.veth_guest("one", "tap1", **FACE)
            name(site, guest, f"metashim:{uuid_of(1)}")
            site.start()
            assert outcome(guest) == str(uuid_of(1))
            with Talk(guest) as talk, lab.capture("uplink", lab.wire) as wire:
                assert talk.ask().body == str(uuid_of(1))
                name(site, guest, f"metashim:{uuid_of(2)}")
                wait_until(lambda: site.api.status().ailments, "the complaint")
                talk.sock.settimeout(0.3)
                assert cut(talk)
                assert outcome(guest, timeout=0.2) == "timeout"
                second = lab.veth_guest("two", "tap2", **FACE)
                wait_until(lambda: len(site.api.status().ailments) == 2, "the second complaint")
                assert [outcome(second, a, timeout=0.2) for a in (V4, V6)] == ["timeout"] * 2
                assert service_frames(wire.frames()) == []
            assert "no slot is left for tap1" in site.verb("status").stdout
            second.close()
            wait_until(lambda: len(site.api.status().ailments) == 1, "the complaint to go with the tap")
