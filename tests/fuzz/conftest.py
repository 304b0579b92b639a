"""The fuzzers use the contract suite's hypervisors."""

from tests.contract.conftest import nft_host

__all__ = ["nft_host"]
