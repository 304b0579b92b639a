"""Real guests on a hypervisor that runs metashim, for each of the two datapaths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab
from tests.netns.conftest import PLENTY, shared
from tests.netns.hypervisor import Hypervisor
from tests.vm import accel

HERE = Path(__file__).parent
LONGEST_TEST = 400.0  # seconds

__all__ = ["shared"]  # a fixture, of the datapath that this tier's own `datapath` says


def pytest_report_header() -> str:
    """Which of the two runs the guests, and why: figures differ by ten."""
    if os.geteuid() != 0:
        return "guests: none, as this is not root"
    try:
        name, why = accel.choice()
    except RuntimeError as error:  # the tests that need it fail with that
        return f"guests: {error}"
    return f"guests run under {name.upper()}: {why}; vhost-net: {'yes' if accel.has_vhost() else 'no'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Emulated guests may take ten times as long where others want the CPUs, so that what hangs is for them to tell."""
    for item in items:
        if item.path.is_relative_to(HERE) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONGEST_TEST))


@pytest.fixture(scope="module", params=["ebpf", "nft"])
def datapath(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def site(lab: Lab, datapath: str) -> Iterator[Hypervisor]:
    """One of the test's own, not started yet."""
    with Hypervisor(lab, PLENTY, datapath=datapath) as site:
        yield site
