"""The real rig sees what it is there to see: a leak, and what each side gets."""

from __future__ import annotations

import pytest

from tests.bpf.frames import arp_request, segment, solicitation
from tests.contract.kernel import KernelRig

pytestmark = pytest.mark.root


@pytest.mark.parametrize("frame", [bytes(arp_request()), bytes(solicitation()), segment(4), segment(6)])
@pytest.mark.parametrize("tap", ["a", "c"])
def test_a_service_frame_from_an_unguarded_tap_is_a_leak(ebpf_host, tap, frame):
    rig = KernelRig(ebpf_host)
    try:
        rig.send(tap, frame)
        assert rig.bridge(expect=1) == [frame]
        assert frame in rig.leaks()
        assert rig.gateway() == []
    finally:
        rig.close()
