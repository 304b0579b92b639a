"""What the tests of two hosts do on either: the same words on this machine (`Hands`) and on the other (`Far`).

The other one is reached over the private network by lines of JSON, `[word, arguments]` there and `[answer, error]`
back. The guests' network is a VLAN on the private one, in each host's bridge.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import Any
from uuid import UUID

from pyroute2.netlink.exceptions import NetlinkError

from shim.core.policy import Access, Family
from tests.bpf.frames import BOTH
from tests.lab import VethGuest, Wire, service_frames
from tests.lab.wire import ETH_P_8021Q
from tests.netns.say import get
from tests.netns.talk import ALL, outcome
from tests.vagrant.installed import BRIDGE, SECONDS, Host, Installed, await_served
from tests.vagrant.raw import Speaker

PORT = 7031
VLAN = 31
TRUNK = "guests"
"""The VLAN's interface, in the bridge."""


class Hands:
    """This machine: its own guests, its own metashim. `close` takes back all that was made."""

    def __init__(self, host: Host, site: Installed, address: str) -> None:
        self.host, self.site, self.nic = host, site, nic_of(host, address)
        self._guests: dict[str, VethGuest] = {}
        self._wire: Wire | None = None

    def join(self) -> str:
        """Plug the guests' network into the bridge, and begin to capture the private one. The bridge's MAC."""
        with contextlib.suppress(NetlinkError, LookupError):
            self.host.ip.link("del", index=self.host.index(TRUNK))
        index = self.host.index(self.nic)
        self.host.ip.link("add", ifname=TRUNK, kind="vlan", link=index, vlan_id=VLAN)
        self.host.set_up(self.host.index(TRUNK), self.host.index(BRIDGE))
        self._wire = Wire(self.host, self.nic)
        return self.mac(BRIDGE)

    def mac(self, link: str) -> str:
        return str(self.host.ip.get_links(self.host.index(link))[0].get_attr("IFLA_ADDRESS"))

    def crossed(self) -> dict[str, int]:
        """Frames on the private network since the last call: of the guests' VLAN, and about the service."""
        assert self._wire is not None
        frames = self._wire.frames(0.5)
        tagged = [frame for frame in frames if frame[12:16] == struct.pack("!HH", ETH_P_8021Q, VLAN)]
        return {"guests": len(tagged), "service": len(service_frames(frames))}

    def guest(self, name: str, instance: str, document: dict[str, Any]) -> str:
        """A guest that is the instance's, with the IP and MAC that all have; its own id, as it is told."""
        self._guests[name] = self.site.guest(name, UUID(instance), document)
        return self.outcomes(name)[0]

    def empty(self, name: str) -> None:
        """A guest on a tap that is nobody's."""
        self._guests[name] = self.site.guest(name, None)

    def outcomes(self, name: str, seconds: float = SECONDS) -> list[str]:
        """What it meets on each service address."""
        return [outcome(self._guests[name], address, seconds) for address in ALL]

    def met(self, name: str, seconds: float) -> str:
        """What it meets over IPv4."""
        return outcome(self._guests[name], timeout=seconds)

    def user_data(self, name: str) -> str:
        return get(self._guests[name], "/latest/user-data", timeout=SECONDS).body.decode()

    def visitor(self, number: int) -> None:
        """A guest with a MAC and an address of its own, 10.9.0.<number>, on a tap that is nobody's."""
        mac, v4 = f"02:00:00:00:01:{number:02x}", f"10.9.0.{number}/24"
        self._guests["visitor"] = VethGuest("guest-visitor", self.host, "tap-visitor", mac=mac, v4=v4)

    def visitor_reaches(self, number: int) -> bool:
        """Whether it can ping another one over the guests' network."""
        ping = ["busybox", "ping", "-c", "3", "-W", "5", f"10.9.0.{number}"]
        return self._guests["visitor"].run(ping, check=False, timeout=SECONDS).returncode == 0

    def speak(self, name: str, instance: str, to: str) -> list[str]:
        """By hand, on a real tap: the service asked over both families in frames to any MAC. What was answered."""
        tap = self.site.tap(name, UUID(instance))
        try:
            return [Speaker(tap, family, 43000 + family, to).ask().decode().splitlines()[-1] for family in BOTH]
        finally:
            tap.close()

    def opened(self) -> int:
        """Connections that were ever opened by guests that are here now."""
        return sum(each.counters.get("opened", 0) for each in self.site.api.counters())

    def export(self, instance: str) -> dict[str, Any]:
        """What another host needs to know of an instance: its document and its policy."""
        view = self.site.api.instance(UUID(instance))
        return {"document": view.document, "hop_limit": view.policy.hop_limit, "closed": view.policy.closed}

    def adopt(self, name: str, instance: str, exported: dict[str, Any]) -> None:
        """Make a guest that is nobody's the instance's, as it was elsewhere."""
        whose = UUID(instance)
        self.site.api.set_policy(whose, Access.OPEN, list(Family), exported["hop_limit"])
        self.site.api.set_closed(whose, close=exported["closed"])
        self.site.enrol(self._guests[name].tap, whose, exported["document"])
        await_served(self._guests[name], whose)  # its kernel may have given up the service's address for a moment

    def let_go(self, name: str) -> None:
        """The instance is here no more, though its tap still is."""
        tap = self._guests[name].tap
        self.site.api.detach(tap)
        self.site.await_port(tap, None)

    def close_path(self, instance: str, prefix: str) -> None:
        self.site.api.set_closed(UUID(instance), close=[prefix])

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        for guest in self._guests.values():
            guest.close()
        self._guests.clear()
        with contextlib.suppress(NetlinkError, LookupError):
            self.host.ip.link("del", index=self.host.index(TRUNK))


def nic_of(host: Host, address: str) -> str:
    """The interface that has an address. LookupError."""
    for found in host.ip.get_addr():
        if found.get_attr("IFA_ADDRESS") == address:
            return str(host.ip.get_links(found["index"])[0].get_attr("IFLA_IFNAME"))
    raise LookupError(f"no interface here has {address}")


class Far:
    """The other machine's Hands."""

    def __init__(self, address: str) -> None:
        self._socket = socket.create_connection((address, PORT), SECONDS)
        self._socket.settimeout(5 * SECONDS)
        self._lines = self._socket.makefile("rw")

    @property
    def own_address(self) -> str:
        """This machine's, as it is known there."""
        return str(self._socket.getsockname()[0])

    def __getattr__(self, word: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._lines.write(json.dumps([word, arguments]) + "\n")
            self._lines.flush()
            answer, error = json.loads(self._lines.readline())
            assert not error, f"on the other host, {word}{arguments}: {error}"
            return answer

        return call

    def hang_up(self) -> None:
        self._lines.close()
        self._socket.close()


def serve(address: str) -> None:
    """Do what one caller at a time says, until killed."""
    with socket.create_server((address, PORT)) as listener:
        while True:
            connection, _ = listener.accept()
            host = Host()
            hands = Hands(host, Installed(host), address)
            try:
                with connection, connection.makefile("rw") as lines:
                    for line in lines:
                        word, arguments = json.loads(line)
                        lines.write(json.dumps(_done(hands, word, arguments)) + "\n")
                        lines.flush()
            except OSError as error:
                print(f"the caller has gone: {error}", flush=True)
            finally:
                hands.close()
                host.close()


def _done(hands: Hands, word: str, arguments: list[Any]) -> tuple[Any, str]:
    try:
        return getattr(hands, word)(*arguments), ""
    except Exception as error:  # noqa: BLE001 - it fails the caller's test, and is told there
        return None, f"{type(error).__name__}: {error}"
