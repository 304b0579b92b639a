"""The programs, loaded once for all tests here, on this kernel and on an older one; as at the start for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.loaded import RULES, Loaded, loaded, of_older_kernels


@pytest.fixture(scope="session", params=["as here", "before 6.13"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    rules = RULES if request.param == "as here" else of_older_kernels(tmp_path_factory.mktemp("older"))
    with loaded("bpf", rules) as made:
        yield made


@pytest.fixture
def kernel(programs: Loaded) -> Loaded:
    """Slot 0 is an open port of an instance's."""
    programs.reset()
    return programs
