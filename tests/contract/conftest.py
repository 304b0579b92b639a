"""The contract suite runs against each of RIGS; after every test on a real one, nothing may have leaked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.loaded import pins
from tests.contract.kernel import Hypervisor, KernelRig, hypervisor
from tests.contract.rig import Bench, FakeRig

KERNEL = [pytest.param("ebpf", marks=pytest.mark.root), pytest.param("nft", marks=pytest.mark.root)]
RIGS = [*KERNEL, "fake"]


@pytest.fixture(scope="session")
def ebpf_host() -> Iterator[Hypervisor]:
    with pins("contract") as folder, hypervisor("ebpf", folder) as made:
        yield made


@pytest.fixture(scope="session")
def nft_host() -> Iterator[Hypervisor]:
    with hypervisor("nft", Path("/nowhere")) as made:
        yield made


@pytest.fixture
def ebpf_rig(ebpf_host: Hypervisor) -> Iterator[KernelRig]:
    """A rig of this test's own: what it put on its taps goes with them."""
    yield from checked(KernelRig(ebpf_host))


@pytest.fixture
def nft_rig(nft_host: Hypervisor) -> Iterator[KernelRig]:
    """The same, on nftables."""
    yield from checked(KernelRig(nft_host))


def checked(rig: KernelRig) -> Iterator[KernelRig]:
    try:
        yield rig
        assert rig.leaks() == []
    finally:
        rig.close()


@pytest.fixture(params=RIGS)
def bench(request: pytest.FixtureRequest) -> Bench:
    """Three taps without any port yet."""
    if request.param == "fake":
        return Bench(FakeRig())
    return Bench(request.getfixturevalue(f"{request.param}_rig"))
