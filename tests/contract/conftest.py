"""The contract suite runs against each of RIGS; after every test on a real one, nothing may have leaked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.loaded import pins
from tests.contract.kernel import Hypervisor, KernelRig, hypervisor
from tests.contract.rig import Bench, FakeRig

KERNEL = [pytest.param("ebpf", marks=pytest.mark.root), pytest.param("nft", marks=pytest.mark.root)]
ABROAD = [pytest.param(f"{kind}_abroad", marks=pytest.mark.root) for kind in ("ebpf", "nft")]
RIGS = [*KERNEL, *ABROAD, "fake"]


@pytest.fixture(scope="session")
def ebpf_host() -> Iterator[Hypervisor]:
    with pins("contract") as folder, hypervisor("ebpf", folder) as made:
        yield made


@pytest.fixture(scope="session")
def nft_host() -> Iterator[Hypervisor]:
    with hypervisor("nft", Path("/nowhere")) as made:
        yield made


@pytest.fixture(scope="session")
def ebpf_abroad_host() -> Iterator[Hypervisor]:
    with pins("abroad") as folder, hypervisor("ebpf", folder, abroad=True) as made:
        yield made


@pytest.fixture(scope="session")
def nft_abroad_host() -> Iterator[Hypervisor]:
    with hypervisor("nft", Path("/nowhere"), abroad=True) as made:
        yield made


@pytest.fixture
def ebpf_rig(ebpf_host: Hypervisor) -> Iterator[KernelRig]:
    """A rig of this test's own: what it put on its taps goes with them."""
    yield from checked(KernelRig(ebpf_host))


@pytest.fixture
def nft_rig(nft_host: Hypervisor) -> Iterator[KernelRig]:
    """The same, on nftables."""
    yield from checked(KernelRig(nft_host))


@pytest.fixture
def ebpf_abroad_rig(ebpf_abroad_host: Hypervisor) -> Iterator[KernelRig]:
    """Taps in another network namespace than the agent's."""
    yield from checked(KernelRig(ebpf_abroad_host))


@pytest.fixture
def nft_abroad_rig(nft_abroad_host: Hypervisor) -> Iterator[KernelRig]:
    """The same, on nftables."""
    yield from checked(KernelRig(nft_abroad_host))


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
