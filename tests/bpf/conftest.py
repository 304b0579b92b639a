"""The programs, loaded once for all tests here, and as at the start for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.loaded import Loaded, loaded


@pytest.fixture(scope="session")
def programs() -> Iterator[Loaded]:
    with loaded("bpf") as made:
        yield made


@pytest.fixture
def kernel(programs: Loaded) -> Loaded:
    """Slot 0 is an open port of an instance's."""
    programs.reset()
    return programs
