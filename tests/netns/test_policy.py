"""Disabling: each way of it, over each family, for open and for new connections; and when it returns."""

from __future__ import annotations

import itertools
import os
import threading
import time

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from shim.core.policy import Access, Family
from tests.lab import VethGuest
from tests.netns.conftest import on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import ALL, V4, V6, Talk, ask, outcome, unanswered

pytestmark = on_both
LOOPS = int(os.environ.get("METASHIM_LOOPS", "200"))
_number = itertools.count(1)
OUTCOMES = {Access.RESET: "refused", Access.DROP: "timeout", Access.FORBID: "403"}


@pytest.fixture
def guest(shared: Hypervisor) -> VethGuest:
    """One more guest, served; `guest.instance` says as whom."""
    number = next(_number)
    made = shared.lab.veth_guest(f"p{number}", f"tapp{number}", mac="02:00:00:00:00:07", v4="10.0.0.7/24")
    made.instance = uuid_of(100 + number)
    shared.api.attach(made.tap, made.instance)
    shared.await_port(made.tap, made.instance)
    return made


class TestHow:
    @pytest.mark.parametrize("how", OUTCOMES)
    def test_new_connections_on_every_address(self, shared, guest, how):
        shared.disable(guest.instance, how)
        assert [outcome(guest, address, 0.2) for address in ALL] == [OUTCOMES[how]] * 3
        shared.enable(guest.instance)
        assert [outcome(guest, address) for address in ALL] == [str(guest.instance)] * 3

    @pytest.mark.parametrize("how", OUTCOMES)
    @pytest.mark.parametrize(("family", "closed", "open_"), [(Family.V4, V4, V6), (Family.V6, V6, V4)])
    def test_one_family_only(self, shared, guest, how, family, closed, open_):
        with Talk(guest, open_) as talk:
            assert talk.ask().status == 200
            shared.disable(guest.instance, how, frozenset({family}))
            assert outcome(guest, closed, 0.2) == OUTCOMES[how]
            assert outcome(guest, open_) == str(guest.instance)
            assert talk.ask().status == 200

    @pytest.mark.parametrize("address", [V4, V6])
    def test_an_idle_connection_is_reset_at_once(self, shared, guest, address):
        with Talk(guest, address) as talk:
            assert talk.ask().status == 200
            shared.disable(guest.instance)
            assert talk.end_within(0.5) == "reset"

    def test_a_connection_in_the_middle_of_a_request_is_reset(self, shared, guest):
        with Talk(guest) as talk:
            talk.sock.sendall(b"GET /latest/meta-data/ HTTP/1.1\r\nhost: x\r\n")
            shared.disable(guest.instance)
            assert talk.end_within(0.5) == "reset"

    def test_drop_is_silent_on_an_open_connection_and_ends_it(self, shared, guest):
        with Talk(guest, timeout=0.5) as talk:
            assert talk.ask().status == 200
            shared.disable(guest.instance, Access.DROP)
            talk.sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert unanswered(talk.sock, 0.5)
            shared.enable(guest.instance)
            with pytest.raises((TimeoutError, ConnectionResetError)):  # it was not kept for later
                talk.sock.settimeout(2)
                if not talk.sock.recv(1):
                    raise ConnectionResetError

    def test_403_answers_on_the_open_connection_and_ends_it(self, shared, guest):
        with Talk(guest) as talk:
            assert talk.ask().status == 200
            shared.disable(guest.instance, Access.FORBID)
            answer = talk.ask()
            assert (answer.status, answer.body) == (403, "")
            assert talk.end_within(0.5) == "eof"

    @pytest.mark.parametrize(("first", "then"), list(itertools.permutations(OUTCOMES, 2)))
    def test_from_one_way_to_another(self, shared, guest, first, then):
        shared.disable(guest.instance, first)
        shared.disable(guest.instance, then)
        assert outcome(guest, V4, 0.2) == OUTCOMES[then]

    def test_an_instance_that_is_not_there_yet(self, shared):
        number = next(_number)
        instance, tap = uuid_of(100 + number), f"tapp{number}"
        shared.disable(instance)
        guest = shared.lab.veth_guest(f"p{number}", tap, mac="02:00:00:00:00:07", v4="10.0.0.7/24")
        guest.host.ip.link("set", index=guest.tap_ifindex, ifalias=f"metashim:{instance}")
        shared.await_port(tap, instance)
        assert outcome(guest) == "refused"


class TestWhenItReturns:
    def test_no_connection_succeeds_after_it_returned(self, shared, guest):
        """And after `enable` returned, none fails."""
        for _ in range(LOOPS):
            shared.disable(guest.instance)
            assert outcome(guest) == "refused"
            shared.enable(guest.instance)
            assert outcome(guest) == str(guest.instance)

    def test_no_answer_comes_after_403_returned(self, shared, guest):
        with Talk(guest) as talk:
            for _ in range(LOOPS // 4):
                shared.disable(guest.instance, Access.FORBID)
                assert outcome(guest) == "403"
                shared.enable(guest.instance)
                assert outcome(guest) == str(guest.instance)
            assert talk.ask().status == 200

    def test_it_takes_milliseconds(self, shared, guest):
        times = []
        for _ in range(20):
            began = time.monotonic()
            shared.disable(guest.instance)
            times.append(time.monotonic() - began)
            shared.enable(guest.instance)
        assert sorted(times)[10] < 0.05

    def test_while_the_tap_is_being_enrolled(self, shared):
        """A disable that meets a tap half enrolled must not return before that one is refused too."""
        for _ in range(10):
            number = next(_number)
            instance, tap = uuid_of(100 + number), f"tapp{number}"
            shared.api.attach(tap, instance)
            made: list[VethGuest] = []

            def make(tap: str = tap, number: int = number, made: list[VethGuest] = made) -> None:
                made.append(
                    shared.lab.veth_guest(f"p{number}", tap, mac="02:00:00:00:00:07", v4="10.0.0.7/24")
                )

            thread = threading.Thread(target=make)
            thread.start()
            time.sleep(0.002 * (number % 10))
            shared.disable(instance)
            thread.join()
            shared.await_port(tap, instance)
            assert outcome(made[0]) == "refused"
            made[0].close()


class TestHopLimit:
    @pytest.mark.parametrize(("address", "layer", "field"), [(V4, IP, "ttl"), (V6, IPv6, "hlim")])
    def test_all_replies_leave_with_it(self, shared, guest, address, layer, field):
        """The reset of a disabled instance too."""
        shared.api.set_policy(guest.instance, None, None, 3)
        with guest.raw() as wire:
            assert ask(guest, address).status == 200
            shared.disable(guest.instance)
            assert outcome(guest, address) == "refused"
            packets = [Ether(frame) for frame in wire.frames()]
        replies = [p for p in packets if TCP in p and layer in p and p[TCP].sport == 80]
        resets = {getattr(p[layer], field) for p in replies if p[TCP].flags & 4}
        assert {getattr(p[layer], field) for p in replies if not p[TCP].flags & 4} == {3}
        assert resets == {3}


class TestFlood:
    def test_one_floods_and_the_other_connects_as_ever(self, lab, datapath):
        """20,000 SYNs with random ports, at the default limit; the neighbour's connects take no longer."""
        with Hypervisor(lab, datapath=datapath) as site:
            bad, good = (
                lab.veth_guest(f"g{n}", f"tap{n}", mac="02:00:00:00:00:05", v4="10.0.0.5/24") for n in (1, 2)
            )
            site.start()
            site.api.attach("tap1", uuid_of(1))
            site.api.attach("tap2", uuid_of(2))
            base = Ether(src="02:00:00:00:00:05", dst="02:00:a9:fe:a9:fe") / IP(src="10.0.0.5", dst=V4)
            frames = [bytes(base / TCP(sport=1024 + n, dport=80, flags="S")) for n in range(2000)]
            with bad.raw() as wire:
                flood = threading.Thread(target=lambda: [wire.send(f) for _ in range(10) for f in frames])
                flood.start()
                worst = 0.0
                while flood.is_alive():
                    began = time.monotonic()
                    assert outcome(good) == str(uuid_of(2))
                    worst = max(worst, time.monotonic() - began)
                    time.sleep(0.02)  # 50 a second is what a guest may
                flood.join()
            counters = {p.tap: p.counters for p in site.api.counters()}
            assert worst < 0.25
            assert counters["tap1"]["rate_limited"] + counters["tap1"]["opened"] == 20000
            assert counters["tap1"]["opened"] < 1000
            assert "rate_limited" not in counters["tap2"]
            time.sleep(0.1)
            assert outcome(bad) == str(uuid_of(1))
