"""Taps that appear on a hypervisor that runs, and send at once: nothing leaks, and then they are served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.bpf.frames import arp_request, segment, solicitation
from tests.lab import Lab, service_frames
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.restless import Restless

TAPS = 8
FRAMES = [bytes(arp_request()), bytes(solicitation()), segment(4), segment(6)]


@pytest.fixture(scope="module", params=["ebpf", "nft"])
def site(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    with Lab() as lab, Hypervisor(lab, PLENTY, datapath=request.param) as made:
        made.start()
        yield made


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
