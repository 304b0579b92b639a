"""Taps that are made and removed by the hundred, in loops, while guests ask and operators switch: whose each is at any
instant, and that nothing is left of those that went.

STORM_SECONDS says for how long, 15 unless set. From a minute on slots rest as long as they do outside of tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.port import SLOT_QUARANTINE
from shim.datapath import abi, bpf, nft_ports, nft_rules
from tests.bpf.frames import segment
from tests.lab import Lab, Namespace, VethGuest
from tests.lab.namespace import wait_until
from tests.lab.proc import descriptors
from tests.lab.tap import IFF_NO_PI, IFF_TAP, IFREQ, TUNSETIFF
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import BPFFS, Hypervisor, uuid_of
from tests.netns.load import Load
from tests.netns.talk import outcome

SECONDS = float(os.environ.get("STORM_SECONDS", "15"))
REST = 4.0 if SECONDS < 60 else SLOT_QUARANTINE
TAPS = 100  # in each of two namespaces
MAX_PORTS = 512  # fewer than the storm needs: slots are given to others, and run out now and then
CALM_SECONDS = 30.0
AGENT_MB, GROWTH_MB = 60.0, 6.0
SPARE = 8  # descriptors: what the first audit opens is kept, and operators come and go
SYNS = [segment(4 if port % 2 else 6, sport=port) for port in range(20_000, 20_040)]
FACE = {"mac": "02:00:00:00:00:08", "v4": "10.0.0.8/24", "v6": "fd00:1::8/64"}
STEADY, SWITCHED = uuid_of(1), uuid_of(2)

_numbers = itertools.count(100)

pytestmark = pytest.mark.timeout(120 + 2 * SECONDS + 6 * REST)


class Stormy(Hypervisor):
    """Whose slots rest for REST seconds."""

    @property
    def argv(self) -> list[str]:
        program = (
            f"import sys, shim.core.port as port; port.SLOT_QUARANTINE = {REST}; "
            "from shim.cli import main; sys.exit(main())"
        )
        return [sys.executable, "-c", program, "--config", str(self.config)]


class Site:
    """A hypervisor with taps in its own namespace and in another, and guests that stay."""

    def __init__(self, lab: Lab, hypervisor: Hypervisor, rack: Namespace) -> None:
        self.hypervisor, self.places = hypervisor, [lab.host, rack]
        self.lab = lab
        hypervisor.start()
        self.guests = {}
        for number, (tap, instance) in enumerate((("taps", STEADY), ("tapw", SWITCHED))):
            guest = self.guests[instance] = lab.veth_guest(f"s{number}", tap, **FACE)
            lab.host.ip.link("set", index=guest.tap_ifindex, ifalias=f"metashim:{instance}")
            hypervisor.await_port(tap, instance)

    @property
    def table(self) -> str:
        return nft_rules.table_name(self.hypervisor.name)

    def netns(self, where: Namespace) -> str:
        """What the agent calls a namespace."""
        return "" if where is self.lab.host else where.name

    def ports(self) -> set[tuple[str, str, UUID | None, str]]:
        return {(port.netns, port.tap, port.instance, port.state) for port in self.hypervisor.api.ports()}

    def remains(self) -> dict[str, object]:
        """All that a tap may leave, but for what is there of every slot that was ever used."""
        status = self.hypervisor.api.status()
        links = [(where, link) for where in self.places for link in where.links()]
        return {
            "ports": self.ports(),
            "ailments": [str(one) for one in status.ailments],
            "filters": {(where.name, link) for where, link in links if self.is_filtered(where, link)},
            "pins": sorted(path.name for path in (BPFFS / self.hypervisor.name).rglob("*")),
            "namespaces": sorted(path.name for path in Path("/run/netns").glob(f"{self.lab.prefix}*")),
            "gateway": len(self.routes()),
            "kernel": self.maps() if self.hypervisor.datapath == "ebpf" else self.tables(),
        }

    def is_filtered(self, where: Namespace, link: str) -> bool:
        shown = where.run(["tc", "filter", "show", "dev", link, "ingress"], check=False).stdout
        held = where.run(["tc", "qdisc", "show", "dev", link], check=False).stdout
        return self.hypervisor.name in shown or "clsact" in held

    def routes(self) -> list[str]:
        """The gateway's: one for each slot of the other namespace, one for all others."""
        asked = ["ip", "netns", "exec", self.hypervisor.name, "ip", "route", "show"]
        return self.lab.host.run(asked).stdout.splitlines()

    def maps(self) -> dict[str, set[int]]:
        """The slots that the maps know, by map."""
        folder = next((BPFFS / self.hypervisor.name).glob("v*"))
        with contextlib.ExitStack() as opened:
            found = {name: bpf.Map.of_any_shape(folder / name) for name in ("ports", "taps", "flows", "rings")}
            for made in found.values():
                opened.callback(made.close)
            ports, taps = found["ports"], found["taps"]
            slots = {name: set(map(slot_of, found[name].keys())) for name in ("flows", "rings")}
            taken = {slot_of(key) for key, raw in entries(ports) if abi.read_port(raw)[0] != abi.ABSENT}
            taken.discard(0)  # whom all taps have that cannot be enrolled
            assert slots["flows"] <= taken, "connections of ports that are gone"
            assert slots["rings"] <= taken, "places of connections of ports that are gone"
            return {"ports": taken, "taps": {slot_of(key) for key, _ in entries(taps)}}

    def tables(self) -> dict[str, dict[str, int]]:
        """How many elements each set has, and how many chains there are, by namespace."""
        return {where.name: self._table(where) for where in self.places}

    def _table(self, where: Namespace) -> dict[str, int]:
        shown = json.loads(where.run(["nft", "-j", "list", "table", "netdev", self.table]).stdout)["nftables"]
        sets = {each["name"]: len(each.get("elem", ())) for one in shown for kind, each in one.items() if kind in KINDS}
        assert max(sets[name] for name in ("owners4", "owners6", *nft_ports.COUNTED)) <= MAX_PORTS
        return {name: sets[name] for name in ("slots", *nft_ports.OF_PORT)} | {
            "chains": len([one for one in shown if one.get("chain", {}).get("name", "").startswith("tap")])
        }

    def resident(self) -> dict[str, float]:
        """MB of the agent and of its worker."""
        pids = {"agent": self.hypervisor.api.status().pid, "worker": self.hypervisor.worker}
        return {who: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) / 256 for who, pid in pids.items()}


KINDS = ("set", "map")


def entries(found: bpf.Map) -> Iterator[tuple[bytes, bytes]]:
    """What a map holds."""
    looked_up = ((key, found.lookup(key)) for key in found.keys())  # noqa: SIM118 (it is no mapping)
    return ((key, raw) for key, raw in looked_up if raw is not None)


def slot_of(key: bytes) -> int:
    return int(struct.unpack_from("=I", key)[0])


@pytest.fixture(scope="module", params=["ebpf", "nft"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Lab() as lab:
        rack = lab.namespace("rack")
        settings = f'{PLENTY}namespaces = ["{rack.name}"]\nmax_ports = {MAX_PORTS}\n'
        with Stormy(lab, settings, datapath=request.param) as hypervisor:
            yield Site(lab, hypervisor, rack)


def appear(where: Namespace, taps: Mapping[str, UUID]) -> None:
    lines = (
        f"tuntap add dev {tap} mode tap\nlink set dev {tap} up alias metashim:{instance}\n"
        for tap, instance in taps.items()
    )
    where.run(["ip", "-batch", "-"], input="".join(lines), stdin=None)


def vanish(where: Namespace, taps: Mapping[str, UUID]) -> None:
    where.run(["ip", "-batch", "-"], input="".join(f"link del dev {tap}\n" for tap in taps), stdin=None)


def swarm(size: int) -> dict[str, UUID]:
    """Taps, always of the same names, and always of instances that were never seen."""
    return {f"tapx{number}": uuid_of(next(_numbers)) for number in range(size)}


def storm(where: Namespace) -> None:
    taps = swarm(TAPS)
    appear(where, taps)
    time.sleep(next(_numbers) % 7 * 0.05)
    vanish(where, taps)


def chatter(where: Namespace) -> None:
    """A guest that begins connections, and goes in the middle of that."""
    fd = where.call(os.open, "/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(b"tapc", IFF_TAP | IFF_NO_PI))
        where.ip.link("set", index=where.index("tapc"), ifalias=f"metashim:{uuid_of(next(_numbers))}", state="up")
        for frame in SYNS:
            with contextlib.suppress(OSError):  # it is not up yet, or nobody reads what it is answered
                os.write(fd, frame)
            time.sleep(0.01)
    finally:
        os.close(fd)


class Visits:
    """Guests of one name and one face, one after the other, each another instance, that ask as soon as they can."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.met: list[tuple[str, str]] = []

    def __call__(self) -> None:
        instance, netns = uuid_of(next(_numbers)), f"{self._lab.prefix}-v"
        with contextlib.closing(VethGuest(netns, self._lab.host, "tapv", **FACE)) as guest:
            self._lab.host.ip.link("set", index=guest.tap_ifindex, ifalias=f"metashim:{instance}")
            self.met += [(str(instance), outcome(guest, timeout=3)) for _ in range(3)]


def switch(site: Site) -> None:
    """What is shut is shut as soon as that is said, and what is opened is open."""
    guest = site.guests[SWITCHED]
    site.hypervisor.disable(SWITCHED)
    assert outcome(guest, timeout=5) == "refused"
    site.hypervisor.enable(SWITCHED)
    assert outcome(guest, timeout=10) == str(SWITCHED)


@contextlib.contextmanager
def going_on(*loops: Callable[[], None]) -> Iterator[None]:
    """All of these again and again, each in a thread of its own; what one raises is raised at the end."""
    over, faults = threading.Event(), []

    def run(loop: Callable[[], None]) -> None:
        try:
            while not over.is_set():
                loop()
        except BaseException as error:  # noqa: BLE001 (for the test's own thread)
            faults.append(error)

    threads = [threading.Thread(target=run, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    for fault in faults:
        raise fault


def await_calm(site: Site, before: dict[str, object]) -> None:
    """Until all is as it was."""

    def is_calm() -> bool:
        return site.ports() == before["ports"] and not site.hypervisor.api.status().ailments

    with contextlib.suppress(TimeoutError):
        wait_until(is_calm, "calm", CALM_SECONDS)
        wait_until(lambda: site.remains() == before, "nothing to be left", 5)
    assert site.remains() == before


def test_a_storm_of_taps_leaves_nothing(site):
    lab, visits = site.lab, Visits(site.lab)
    before = site.remains()
    for where in site.places:  # so much is needed once, and kept
        storm(where)
    await_calm(site, before)
    weighed, pid = site.resident(), site.hypervisor.api.status().pid
    held = len(descriptors(pid))
    loops: list[Callable[[], None]] = [lambda where=where: storm(where) for where in site.places]  # type: ignore[misc]
    loops += [lambda where=where: chatter(where) for where in site.places]  # type: ignore[misc]
    with Load({STEADY: site.guests[STEADY]}, pause=0.05) as load:
        with going_on(*loops, visits, lambda: switch(site)):
            time.sleep(SECONDS)
        load.await_more(10)
    assert load.failures == []
    await_calm(site, before)
    strangers = [(want, got) for want, got in visits.met if got != want and got.count("-") == 4]
    assert strangers == []
    assert [got for want, got in visits.met if got == want], visits.met
    print(f"{next(_numbers):,} instances came and went; MB: {weighed} before, {site.resident()} after")
    for who, size in site.resident().items():
        assert size - weighed[who] < GROWTH_MB, f"the {who} grew"
    assert site.resident()["agent"] < AGENT_MB
    assert len(descriptors(pid)) <= held + SPARE
    assert lab.host.links() == {"lo", "br0", "uplink", "taps", "tapw", f"{site.hypervisor.name}0"}


def test_every_slot_is_there_for_others_then(site):
    """More taps than there are slots, and those that found none are served once others have gone and their slots have
    rested."""
    before = site.remains()
    crowd = swarm(MAX_PORTS - len(site.guests))
    late = {f"tapy{number}": uuid_of(next(_numbers)) for number in range(20)}
    first, second = dict(itertools.islice(crowd.items(), TAPS)), dict(itertools.islice(crowd.items(), TAPS, None))

    def states() -> set[str]:
        return {port.state for port in site.hypervisor.api.ports()}

    appear(site.places[0], crowd)
    patience = 3 * REST + CALM_SECONDS
    wait_until(lambda: len(site.hypervisor.api.ports()) == MAX_PORTS and states() == {"serving"}, "all slots", patience)
    appear(site.places[0], late)
    wait_until(lambda: bool(site.hypervisor.api.status().ailments), "the want of slots to be told")
    vanish(site.places[0], first)
    wait_until(lambda: states() == {"serving"}, "those who found none to be served", patience)
    assert {port.tap for port in site.hypervisor.api.ports()} >= late.keys()
    vanish(site.places[0], second | late)
    await_calm(site, before)
