"""A machine within this machine: a QEMU on a real tap, served by the metashim that systemd runs."""

from __future__ import annotations

from tests.lab import Wire, service_frames
from tests.netns.hypervisor import uuid_of
from tests.vagrant.installed import Installed
from tests.vm.machine import Nic, Tap
from tests.vm.tiny import Tiny

NESTED = uuid_of(34)
NESTED_SECONDS = 600.0
"""An emulated machine within an emulated one takes its time: 77 s at best until it has its metadata."""

SCRIPT = """
configure eth0 10.0.0.5/24
echo id=$(outcome $V4 $ID 60)
echo data=$(get $V4 /latest/user-data 60)
echo asked
await disabled
echo after=$(outcome $V4 $ID 60)
"""


def test_a_nested_guest(site: Installed, behind: Wire) -> None:
    """A machine of its own within this one: no DHCP, a static address. It is switched off while it runs."""
    tap = Tap(site.host, "tap-nested")
    try:
        site.enrol(tap.name, NESTED, {"user_data": "hello-from-the-operator"})
        with Tiny(site.host, [Nic(tap.name, "02:00:00:00:00:05")]).start(SCRIPT) as guest:
            guest.await_line("^asked$", NESTED_SECONDS)
            site.metashim("disable", str(NESTED))
            guest.tell("disabled")
            said = guest.output(NESTED_SECONDS)
    finally:
        tap.remove()
    assert service_frames(behind.frames()) == []
    assert said.value("id") == str(NESTED)
    assert said.value("data") == "hello-from-the-operator"
    assert said.value("after") == "refused"
