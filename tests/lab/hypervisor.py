"""The hypervisor: a host namespace with a bridge, the wire behind it, and the guests plugged into it."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from tests.lab.guest import VethGuest
from tests.lab.namespace import Namespace
from tests.lab.tap import TapGuest
from tests.lab.wire import Wire

BRIDGE = "br0"
UPLINK = "uplink"

_counter = itertools.count(1)

T = TypeVar("T", bound=Namespace | TapGuest | Wire)


class Lab:
    """A hypervisor's network; `prefix` names its namespaces and is unique unless given.

    Made by `with`, removed at its end in the opposite order, also after a failure half way.
    """

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = prefix or f"lab{os.getpid()}x{next(_counter)}"
        self._made = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as undo:
            self._made = undo
            self.host = self.namespace("host")
            self.wire = self.namespace("wire")
            self._bridge()
            self._uplink()
            self._made = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.close()

    def _bridge(self) -> None:
        """A bridge that forwards at once and has no address, as a hypervisor's provider bridge."""
        quick = {"br_stp_state": 0, "br_forward_delay": 0, "br_mcast_snooping": 0}
        self.host.ip.link("add", ifname=BRIDGE, kind="bridge", **quick)
        self.host.sysctl(f"net.ipv6.conf.{BRIDGE}.addr_gen_mode", 1)
        for family in ("ip", "ip6", "arp"):
            # br_netfilter, where it is loaded, trims and drops what a bridge itself would carry.
            with contextlib.suppress(FileNotFoundError):
                self.host.sysctl(f"net.bridge.bridge-nf-call-{family}tables", 0)
        self.host.set_up(self.host.index(BRIDGE))

    def _uplink(self) -> None:
        peer = {"ifname": UPLINK, "net_ns_fd": str(self.wire.path)}
        self.host.ip.link("add", ifname=UPLINK, kind="veth", peer=peer)
        self.host.set_up(self.host.index(UPLINK), self.host.index(BRIDGE))
        self.wire.set_up(self.wire.index(UPLINK))
        self.host.await_up(self.host.index(UPLINK))
        self.wire.await_up(self.wire.index(UPLINK))

    def _keep(self, made: T) -> T:
        self._made.callback(made.close)
        return made

    def namespace(self, name: str) -> Namespace:
        """One more namespace, `<prefix>-<name>`: a second hypervisor, a router, a network's own."""
        return self._keep(Namespace(f"{self.prefix}-{name}"))

    def veth_guest(self, name: str, tap: str, *, host: Namespace | None = None, **kwargs: Any) -> VethGuest:
        """A `VethGuest` in `<prefix>-<name>`, plugged into the hypervisor or another `host`."""
        return self._keep(VethGuest(f"{self.prefix}-{name}", host or self.host, tap, **kwargs))

    def tap_guest(self, tap: str, *, host: Namespace | None = None, **kwargs: Any) -> TapGuest:
        """A `TapGuest` on a tap of that name, in the hypervisor or another `host`."""
        return self._keep(TapGuest(host or self.host, tap, **kwargs))

    def capture(self, ifname: str, namespace: Namespace | None = None) -> Wire:
        """A capture on an interface of the hypervisor's, or of another namespace's (`lab.wire`, UPLINK)."""
        return self._keep(Wire(namespace or self.host, ifname))

    def run_in_host(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a process in the hypervisor's namespace; it is ended with the lab. Arguments as of Popen."""
        return self.host.popen(argv, **kwargs)
