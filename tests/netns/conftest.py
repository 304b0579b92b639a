"""A hypervisor that runs metashim: one for a module's tests, or one for a test that breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.lab import Lab
from tests.netns.hypervisor import Hypervisor

if TYPE_CHECKING:
    from tests.netns.ovsdb_server import OvsdbServer

PLENTY = "[datapath]\nconnection_rate = 100000\nconnection_burst = 100000\n"
"""For tests that open more connections than a guest may: the limit itself has tests of its own."""


on_both = pytest.mark.parametrize("datapath", ["ebpf", "nft"], indirect=True, scope="module")
"""For tests of what either datapath must do on a whole hypervisor."""


@pytest.fixture(scope="module")
def datapath(request: pytest.FixtureRequest) -> str:
    """The one that a test names, or eBPF."""
    return str(getattr(request, "param", "ebpf"))


@pytest.fixture(scope="module")
def shared(datapath: str) -> Iterator[Hypervisor]:
    """One that runs, for all tests of a module: they use taps and instances of their own."""
    with Lab() as lab, Hypervisor(lab, PLENTY, datapath=datapath) as site:
        site.start()
        yield site


@pytest.fixture
def site(lab: Lab) -> Iterator[Hypervisor]:
    """One of the test's own, not started yet."""
    with Hypervisor(lab, PLENTY) as site:
        yield site


@pytest.fixture
def ovsdb() -> Iterator[OvsdbServer]:
    """A database of Open vSwitch's with one bridge."""
    from tests.netns.ovsdb_server import OvsdbServer  # the ovs library, for those who use it

    with OvsdbServer() as server:
        yield server
