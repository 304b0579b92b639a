"""Taps that appear and send at once, on a hypervisor that runs, and on one whose agent starts just then: nothing leaks,
and then they are served, before a guest's TCP has sent again what nobody took at first."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

from tests.bpf.frames import arp_request, segment, solicitation
from tests.lab import Lab, service_frames
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import START_SECONDS, Hypervisor, uuid_of
from tests.netns.restless import Restless
from tests.netns.talk import await_outcome

TAPS = 8
FIRST_RETRANSMISSION = 1.0
"""Seconds after which a TCP sends its SYN again (RFC 6298, 2.1), and a kernel asks again who has an address."""

SLACK = 1.0
SYN_ACK = 0x12
FACE = {"mac": "02:00:00:00:00:08", "v4": "10.0.0.8/24"}
FRAMES = [bytes(arp_request()), bytes(solicitation()), segment(4), segment(6)]


@pytest.fixture(scope="module", params=["ebpf", "nft"])
def site(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    with Lab() as lab, Hypervisor(lab, PLENTY, datapath=request.param) as made:
        made.start()
        yield made


@pytest.fixture
def running(site: Hypervisor) -> Hypervisor:
    """It, with an agent."""
    if site.agent is None or site.agent.poll() is not None:
        site.start()
    return site


def is_served(site: Hypervisor, tap: str) -> bool:
    return any(view.tap == tap and view.counters.get("delivered") for view in site.api.counters())


@pytest.mark.parametrize("running", [True, False], ids=["agent runs", "nothing runs"])
def test_nothing_leaks_of_taps_that_send_before_they_are_up(site, running):
    lab = site.lab
    if not running:
        site.kill()
    with lab.capture("br0") as bridge, lab.capture("uplink") as uplink, lab.capture("uplink", lab.wire) as wire:
        for number in range(TAPS):
            tap = f"tapr{number}"
            guest = Restless(lab, tap, FRAMES)
            try:
                if running:
                    site.api.attach(tap, uuid_of(number))
                lab.host.set_up(lab.host.index(tap), lab.host.index("br0"))
                lab.host.await_up(lab.host.index(tap))
                if running:
                    wait_until(partial(is_served, site, tap), f"{tap} to be served", 5)
                time.sleep(0.05)
            finally:
                guest.close()
            assert guest.sent > 10
        leaked = service_frames([*bridge.frames(), *uplink.frames(), *wire.frames()])
        assert leaked == []


def await_syn_ack(fd: int, seconds: float) -> None:
    """Reads what a guest is sent, until its connection is answered."""

    def is_there() -> bool:
        try:
            frame = os.read(fd, 2048)
        except BlockingIOError:
            return False
        return frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP and frame[47] == SYN_ACK

    wait_until(is_there, "a SYN-ACK", seconds)


@pytest.mark.parametrize("others", [0, 200])
def test_a_connection_is_answered_before_its_syn_is_sent_again(running, others):
    """From the tap's being asked for, however many others there are; the guest sends from before its tap is up."""
    site, lab, times = running, running.lab, []
    lab.host.run(
        ["ip", "-batch", "-"], input="".join(f"tuntap add dev tapo{number} mode tap\n" for number in range(others)),
        stdin=None, timeout=60,
    )  # fmt: skip
    wait_until(lambda: len(site.api.ports()) >= others, "the others", 60)
    for number in range(TAPS):
        tap = f"tapr{number}"
        site.api.attach(tap, uuid_of(number))
        began = time.monotonic()
        with closing(Restless(lab, tap, [segment(4)], pause=0.001)) as guest:
            lab.host.set_up(lab.host.index(tap))
            await_syn_ack(guest.fd, 10)
            times.append(time.monotonic() - began)
    lab.host.run(
        ["ip", "-batch", "-"], input="".join(f"link del dev tapo{number}\n" for number in range(others)),
        stdin=None, timeout=60,
    )  # fmt: skip
    print(f"ms until a SYN-ACK, among {others} others:", sorted(round(each * 1000) for each in times))
    assert sorted(times)[TAPS // 2] < FIRST_RETRANSMISSION


@pytest.mark.parametrize("workers", [False, True], ids=["the agent died", "all died"])
def test_a_guest_that_boots_while_the_agent_starts(running, workers):
    """It is served as soon as the agent is up: its kernel asks for the address again every second until then, and the
    client again when its kernel gives up after three."""
    site, lab = running, running.lab
    instance, tap = uuid_of(90 + workers), f"taps{workers:d}"
    site.api.attach(tap, instance)
    worker = site.worker
    site.kill()
    if workers:
        os.kill(worker, signal.SIGKILL)
    site.begin()
    began = time.monotonic()
    with ThreadPoolExecutor(1) as thread, closing(
        lab.veth_guest(f"s{workers:d}{site.datapath}", tap, **FACE)
    ) as guest:
        started = thread.submit(timed, site.await_ready)
        await_outcome(guest, str(instance), seconds=START_SECONDS)
        served, ready = time.monotonic(), started.result()
    print(f"the agent is ready after {ready - began:.2f} s, its guest is served {served - ready:.2f} s later")
    assert served - ready < FIRST_RETRANSMISSION + SLACK


def timed(wait: Callable[[], None]) -> float:
    """When that was over."""
    wait()
    return time.monotonic()
