"""A hypervisor's network in namespaces of its own, for tests, the demo and the bench.

    with Lab() as lab:
        one = lab.veth_guest("one", tap="tap1", mac=MAC, v4="10.0.0.5/24")
        two = lab.veth_guest("two", tap="tap2", mac=MAC, v4="10.0.0.5/24")
        with lab.capture("uplink", lab.wire) as wire:
            one.run(["curl", "-s", "http://169.254.169.254/"])
        assert not service_frames(wire.frames())

`Lab` makes `<prefix>-host`, the hypervisor, with a bridge `br0`, and `<prefix>-wire`, the network behind
that bridge, joined to it by a veth pair whose ends are both named `uplink`. Guests are plugged into the
host: `VethGuest` is a namespace with a kernel stack, `TapGuest` a real tap device whose frames the test
writes and reads itself. All of it is the kernel's; nothing here is simulated. Everything is removed at
the end of the `with`, processes started through it included.
"""

from tests.lab.guest import VethGuest
from tests.lab.hypervisor import Lab
from tests.lab.namespace import Namespace
from tests.lab.tap import TapGuest, Vnet, offloaded
from tests.lab.wire import SERVICE_ADDRESSES, Frame, FramesLostError, Wire, mentions, service_frames

__all__ = [
    "SERVICE_ADDRESSES",
    "Frame",
    "FramesLostError",
    "Lab",
    "Namespace",
    "TapGuest",
    "VethGuest",
    "Vnet",
    "Wire",
    "mentions",
    "offloaded",
    "service_frames",
]
