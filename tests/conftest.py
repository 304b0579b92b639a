"""What the tests of every tier share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab import Lab

KERNEL_TIERS = {"bpf", "netns", "clients"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever uses a lab or is in a kernel tier needs root; without it, it is skipped and says so."""
    tests = config.rootpath / "tests"
    for item in items:
        tier = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        if tier in KERNEL_TIERS or "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A hypervisor's network of the test's own, removed with all that is in it."""
    with Lab() as lab:
        yield lab
