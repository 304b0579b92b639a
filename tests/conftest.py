"""What the tests of every tier share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab import Lab

KERNEL_TIERS = {"bpf", "contract", "netns", "clients"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is under a kernel tier's folder needs root; without it those tests are skipped and say so."""
    for item in items:
        if KERNEL_TIERS & set(item.path.parts) or "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A hypervisor's network of the test's own, removed with all that is in it."""
    with Lab() as lab:
        yield lab
