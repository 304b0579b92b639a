"""Two guests with one IP and one MAC: each gets its own, whatever both do at once."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.lab import VethGuest, service_frames
from tests.netns.conftest import on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import ALL, ID, V4, V6, Talk, ask, outcome

pytestmark = on_both
MAC = "02:00:00:00:00:05"
SAME = {"mac": MAC, "v4": "10.0.0.5/24", "v6": "fd00:1::5/64"}
REQUESTS = int(os.environ.get("METASHIM_LOAD", "20000"))
A, B = uuid_of(1), uuid_of(2)


@pytest.fixture(scope="module")
def pair(shared: Hypervisor) -> tuple[VethGuest, VethGuest]:
    guests = tuple(shared.lab.veth_guest(f"g{n}", f"tap{n}", **SAME) for n in (1, 2))
    for tap, instance in (("tap1", A), ("tap2", B)):
        shared.api.attach(tap, instance)
        shared.await_port(tap, instance)
        document = f'{{"user_data": "secret of {instance}"}}'
        shared.api.put_document(instance, document.encode())
    return guests  # type: ignore[return-value]


def kept(guest: VethGuest, address: str, count: int, want: dict[str, str], wrong: list[str]) -> None:
    """`count` requests on one connection, each answer compared."""
    with Talk(guest, address, timeout=10) as talk:
        for number in range(count):
            path = list(want)[number % len(want)]
            answer = talk.ask(path)
            if answer.body != want[path]:
                wrong.append(f"{path} on a kept connection: {answer}")


def each(guest: VethGuest, address: str, count: int, want: dict[str, str], wrong: list[str]) -> None:
    """`count` requests, each on a connection of its own."""
    for number in range(count):
        path = list(want)[number % len(want)]
        answer = ask(guest, address, path, timeout=10)
        if answer.body != want[path]:
            wrong.append(f"{path} on a new connection: {answer}")


class TestLoad:
    def test_neither_ever_sees_the_others_data(self, shared, pair):
        """Half the requests over IPv4, half over IPv6; three in four on kept connections."""
        share = REQUESTS // 2 // 8
        wrong: list[str] = []
        threads = []
        with shared.lab.capture("uplink", shared.lab.wire) as wire:
            for guest, instance in zip(pair, (A, B), strict=True):
                want = {ID: str(instance), "/latest/user-data": f"secret of {instance}"}
                for address in (V4, V6):
                    plans = [(kept, share), (kept, share), (kept, share), (each, share)]
                    for run, count in plans:
                        threads.append(threading.Thread(target=run, args=(guest, address, count, want, wrong)))
            before = {p.tap: p.counters for p in shared.api.counters()}
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(100)
            assert not any(thread.is_alive() for thread in threads)
            leaked = service_frames(wire.frames())
        assert wrong == []
        assert leaked == []
        opened = sum(p.counters["opened"] - before[p.tap].get("opened", 0) for p in shared.api.counters())
        assert opened == 2 * 2 * (share + 3)  # nothing was retried, nothing lost

    def test_on_every_address(self, pair):
        for guest, instance in zip(pair, (A, B), strict=True):
            assert [outcome(guest, address) for address in ALL] == [str(instance)] * 3

    def test_with_the_same_source_port_at_the_same_time(self, pair):
        """The whole of both connections is equal, as the guests see them."""
        talks = [Talk(guest, source=("10.0.0.5", 20202)) for guest in pair]
        for _ in range(100):
            for talk in talks:
                talk.sock.sendall(f"GET {ID} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert [talk.answer().body for talk in talks] == [str(A), str(B)]
        for talk in talks:
            talk.sock.close()

    def test_disabling_one_under_load_touches_the_other_not_at_all(self, shared, pair):
        done, wrong = threading.Event(), []

        def neighbour() -> None:
            asked = 0
            try:
                with Talk(pair[1], V4) as talk:
                    while not done.is_set():
                        if (body := talk.ask().body) != str(B):
                            wrong.append(body)
                        asked += 1
            except OSError as error:
                wrong.append(f"after {asked}: {error!r}, {shared.api.counters(B)}")

        thread = threading.Thread(target=neighbour)
        thread.start()
        for _ in range(50):
            shared.disable(A)
            assert outcome(pair[0], V4) == "refused"
            shared.enable(A)
            assert outcome(pair[0], V4) == str(A)
        done.set()
        thread.join(5)
        assert not thread.is_alive()
        assert wrong == []


class TestHostileNeighbour:
    def test_slow_connections_up_to_the_limit_leave_the_other_served(self, shared, pair):
        """64 is the default limit of an instance; the 65th is told so, and the other instance never waits."""
        slow = [Talk(pair[0]) for _ in range(64)]
        try:
            for talk in slow:
                talk.sock.sendall(b"GET / HTTP/1.1\r\nhost: ")
            time.sleep(0.1)
            assert outcome(pair[0]) == "429"
            worst = 0.0
            for _ in range(100):
                began = time.monotonic()
                assert outcome(pair[1]) == str(B)
                worst = max(worst, time.monotonic() - began)
            assert worst < 0.5
        finally:
            for talk in slow:
                talk.sock.close()
        with Talk(pair[0]) as talk:
            assert talk.ask().body == str(A)
