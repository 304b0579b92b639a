"""Somebody else's hands: filters, links and namespaces of ours that go, and storms of taps that come and go."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, VethGuest, service_frames
from tests.lab.namespace import wait_until
from tests.lab.proc import descriptors
from tests.netns.conftest import PLENTY, on_both
from tests.netns.hypervisor import BPFFS, Hypervisor, uuid_of
from tests.netns.talk import V4, await_outcome, outcome

A, B = uuid_of(1), uuid_of(2)
FACE = {"mac": "02:00:00:00:00:05", "v4": "10.0.0.5/24"}
STORM_SECONDS = float(os.environ.get("METASHIM_STORM", "5"))
TOGGLES = 200


@pytest.fixture(scope="module")
def place(datapath: str) -> Iterator[tuple[Hypervisor, VethGuest, VethGuest]]:
    """Two enrolled guests, `B` is disabled."""
    with Lab() as lab, Hypervisor(lab, PLENTY, datapath=datapath) as site:
        guests = [lab.veth_guest(f"g{n}", f"tap{n}", **FACE) for n in (1, 2)]
        site.start()
        site.api.attach("tap1", A)
        site.api.attach("tap2", B)
        site.disable(B)
        yield site, *guests


def rss(pid: int) -> int:
    """Resident memory in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])


def tables(site: Hypervisor) -> set[str]:
    """What stands in nftables, by lines, without what packets change: counters and the elements of sets."""
    shown = site.lab.host.run(["nft", "--stateless", "--terse", "list", "ruleset"]).stdout
    return {line.strip() for line in shown.splitlines()}


def has_filter(lab: Lab, tap: str) -> bool:
    return "from_instance" in lab.host.run(["tc", "filter", "show", "dev", tap, "ingress"], check=False).stdout


@on_both
class TestTablesThatGo:
    COMMANDS = ("flush ruleset", "delete table inet guard-{}", "flush chain bridge guard-{} from_taps")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_are_put_back_soon_and_others_are_left_alone(self, place, command, datapath):
        """The guests' frames for the service get nowhere meanwhile, unless all that held them was flushed at once;
        somebody else's table is not ours to put back."""
        site, guest, refused = place
        site.lab.host.run(["nft", "add table inet others"])
        before = tables(site)
        with site.lab.capture("uplink", site.lab.wire) as wire:
            site.lab.host.run(["nft", command.format(site.name)])
            assert outcome(refused, timeout=0.3) in ("refused", "timeout")
            await_outcome(refused, "refused", seconds=2)
            await_outcome(guest, str(A), seconds=2)
            wanted = before if "ruleset" not in command else before - {"table inet others {"}
            wait_until(lambda: tables(site) == wanted, "the tables", 2)
            leaked = service_frames(wire.frames())
        site.lab.host.run(["nft", "add table inet others; delete table inet others"])
        assert leaked == [] or (datapath, command) == ("nft", "flush ruleset")
        assert site.api.status().ailments == []

    def test_of_the_datapath_alone(self, place, datapath):
        """The leak guard holds what its tap's chain does not take off any more."""
        site, guest, refused = place
        if datapath == "nft":
            site.lab.host.run(["nft", f"delete table netdev datapath-{site.name}"])
            with site.lab.capture("uplink", site.lab.wire) as wire:
                await_outcome(refused, "refused", seconds=2)
                await_outcome(guest, str(A), seconds=2)
                assert service_frames(wire.frames()) == []
        assert (f"table netdev datapath-{site.name} {{" in tables(site)) == (datapath == "nft")


class TestFiltersThatGo:
    @pytest.mark.parametrize(
        "command", ["qdisc del dev tap1 clsact", "filter del dev tap1 ingress", "filter del dev tap1 ingress prio 7"]
    )
    def test_are_put_back_soon(self, place, command):
        site, guest, _ = place
        began = time.monotonic()
        site.lab.host.run(["tc", *command.split()])
        wait_until(lambda: has_filter(site.lab, "tap1"), "the filter", 2)
        assert time.monotonic() - began < 1
        await_outcome(guest, str(A))

    def test_a_refused_one_is_refused_again(self, place):
        site, _, guest = place
        site.lab.host.run(["tc", "qdisc", "del", "dev", "tap2", "clsact"])
        await_outcome(guest, "refused", seconds=2)

    def test_somebody_elses_filters_stay(self, place):
        site, guest, _ = place
        pinned = next((BPFFS / site.name).glob("*/to_instance-*"))
        other = "tc filter add dev tap1 ingress prio 99 bpf da object-pinned"
        site.lab.host.run([*other.split(), str(pinned)])
        site.api.detach("tap1")
        site.api.attach("tap1", A)
        await_outcome(guest, str(A))
        shown = site.lab.host.run(["tc", "filter", "show", "dev", "tap1", "ingress"]).stdout
        assert "pref 99" in shown
        site.lab.host.run(["tc", "filter", "del", "dev", "tap1", "ingress", "prio", "99"])

    def test_of_the_gateway(self, place):
        site, guest, _ = place
        site.lab.host.run(["tc", "qdisc", "del", "dev", f"{site.name}0", "clsact"])
        assert await_outcome(guest, str(A), seconds=10) < 5


@on_both
class TestPeace:
    def test_nothing_goes_on_for_ever(self, place):
        """What is put back must not look like another's work: the agent would never come to rest."""
        site, *_ = place
        time.sleep(0.5)
        stat = Path(f"/proc/{site.api.status().pid}/stat")
        before = sum(map(int, stat.read_text().split()[13:15]))
        time.sleep(1)
        assert sum(map(int, stat.read_text().split()[13:15])) - before < 20  # ticks of 10 ms


@on_both
class TestGateway:
    def test_its_link_is_deleted(self, place):
        site, guest, refused = place
        with site.lab.capture("uplink", site.lab.wire) as wire:
            site.lab.host.run(["ip", "link", "del", f"{site.name}0"])
            assert outcome(refused) == "refused"
            assert await_outcome(guest, str(A), seconds=10) < 5
            assert outcome(refused) == "refused"
            assert service_frames(wire.frames()) == []

    def test_its_link_is_set_down(self, place):
        site, guest, _ = place
        site.lab.host.run(["ip", "link", "set", f"{site.name}0", "down"])
        assert await_outcome(guest, str(A), seconds=10) < 5

    def test_its_namespace_is_deleted(self, place):
        site, guest, refused = place
        with site.lab.capture("uplink", site.lab.wire) as wire:
            site.lab.host.run(["ip", "netns", "del", site.name])
            time.sleep(2.5)
            assert outcome(refused) == "refused"
            await_outcome(guest, str(A), seconds=10)
            assert outcome(refused) == "refused"
            assert service_frames(wire.frames()) == []
        assert (Path("/run/netns") / site.name).exists()


@on_both
class TestStorm:
    def test_taps_come_and_go(self, place):
        """With the identity in the alias, of a changing owner; at the end nothing of them is left."""
        site, guest, _ = place
        pid = site.api.status().pid
        create = "".join(
            f"link add taps{n} type veth peer name peer{n}\nlink set taps{n} alias metashim:{uuid_of(1000 + n)}\n"
            for n in range(100)
        )
        delete = "".join(f"link del taps{n}\n" for n in range(100))
        end, rounds, sizes = time.monotonic() + STORM_SECONDS, 0, []
        while time.monotonic() < end:
            for batch in (create, delete):
                site.lab.host.run(["ip", "-batch", "-"], input=batch, stdin=None)
            assert outcome(guest) == str(A)
            rounds += 1
            sizes.append(rss(pid))
        assert rounds > 1
        wait_until(lambda: len(site.api.ports()) == 2, "the ports to go", 10)
        status = site.api.status()
        assert status.ailments == []
        assert status.pid == pid
        assert sizes[-1] - sizes[len(sizes) // 2] < 4096
        assert outcome(guest) == str(A)

    def test_sigterm_during_one(self, place):
        site, guest, refused = place
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                batch = "".join(f"link add taps{n} type veth peer name peer{n}\n" for n in range(50))
                batch += "".join(f"link del taps{n}\n" for n in range(50))
                site.lab.host.run(["ip", "-batch", "-"], input=batch, stdin=None)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            time.sleep(0.3)
            began = time.monotonic()
            assert site.end(signal.SIGTERM) == 0
            assert time.monotonic() - began < 5
            site.start()
        finally:
            stop.set()
            thread.join()
        await_outcome(guest, str(A))
        assert outcome(refused) == "refused"
        wait_until(lambda: len(site.api.ports()) == 2, "the ports to go", 10)


@on_both
class TestNoLeaks:
    def test_of_descriptors_or_memory(self, place):
        site, guest, _ = place
        pid = site.api.status().pid

        def work(count: int) -> None:
            for _ in range(count):
                site.disable(A)
                site.enable(A)
                site.api.detach("tap1")
                site.api.attach("tap1", A)

        work(20)
        before = len(descriptors(pid)), len(descriptors(site.worker)), rss(pid)
        work(TOGGLES)
        wait_until(lambda: len(descriptors(pid)) <= before[0], "the last connections to be closed")
        assert len(descriptors(site.worker)) <= before[1] + 1
        assert rss(pid) - before[2] < 2048
        assert outcome(guest, V4) == str(A)
