"""From one version of the datapath's state to another, with guests that ask all the while. eBPF: nftables' own
upgrade, where rules are replaced in one transaction, is tests/contract/test_tables.py's."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.datapath import abi
from tests.lab import Lab, VethGuest
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import BPFFS, ROOT, Hypervisor, uuid_of
from tests.netns.load import Load
from tests.netns.talk import ALL, Ended, Talk, await_outcome, outcome
from tests.netns.versions import later

ON, OTHER, OFF = uuid_of(1), uuid_of(2), uuid_of(3)
SAME = {"mac": "02:00:00:00:00:05", "v4": "10.0.0.5/24", "v6": "fd00:1::5/64"}


class Host:
    """`on` and `other` are served as themselves, `off` is refused; all have one MAC and one IP."""

    def __init__(self, lab: Lab, site: Hypervisor, next_version: Path) -> None:
        self.site, self.next_version = site, next_version
        self.on, self.other, self.off = (lab.veth_guest(f"g{n}", f"tap{n}", **SAME) for n in (1, 2, 3))
        site.start()
        for tap, instance in (("tap1", ON), ("tap2", OTHER), ("tap3", OFF)):
            site.api.attach(tap, instance)
            site.await_port(tap, instance)
        site.disable(OFF)

    @property
    def served(self) -> dict[object, VethGuest]:
        return {ON: self.on, OTHER: self.other}

    def folders(self) -> list[str]:
        return sorted(path.name.split("-")[0] for path in (BPFFS / self.site.name).iterdir())

    def slots(self) -> dict[str, tuple[int, int]]:
        return {port.tap: (port.slot, port.generation) for port in self.site.api.ports()}

    def start(self, tree: Path) -> None:
        """Start the version that is in `tree`; whoever ran before left its workers."""
        self.site.tree = tree
        self.site.start()

    def refused(self) -> None:
        assert [outcome(self.off, address) for address in ALL] == ["refused"] * 3


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return later(tmp_path_factory.mktemp("later"))


@pytest.fixture
def host(lab: Lab, next_version: Path) -> Iterator[Host]:
    with Hypervisor(lab, PLENTY, datapath="ebpf") as site:
        yield Host(lab, site, next_version)


def warnings(site: Hypervisor) -> list[str]:
    return [line for line in site.log_text().splitlines() if "cannot go on with" in line]


class TestUpgrade:
    @pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL])
    def test_loses_no_request(self, host, how):
        slots = host.slots()
        with Talk(host.on) as idle, Load(host.served) as load:
            assert idle.ask().body == str(ON)
            host.site.end(how)
            load.await_more()
            host.start(host.next_version)
            load.await_more()
            assert idle.ask().body == str(ON)
        assert load.failures == []
        assert host.slots() == slots
        assert host.folders() == [f"v{abi.VERSION + 1}"]
        assert warnings(host.site) == []
        host.refused()

    def test_goes_on_with_what_was_counted(self, host):
        host.refused()
        before = {port.tap: port.counters for port in host.site.api.counters()}
        host.site.end(signal.SIGQUIT)
        host.start(host.next_version)
        after = {port.tap: port.counters for port in host.site.api.counters()}
        assert before["tap3"]
        for tap, counters in before.items():
            assert all(after[tap].get(label, 0) >= number for label, number in counters.items())

    def test_a_policy_of_the_next_version_holds_at_once(self, host):
        host.site.end(signal.SIGQUIT)
        host.start(host.next_version)
        with Talk(host.on) as talk:
            host.site.disable(ON)
            assert talk.end_within(2) == "reset"
        assert outcome(host.on) == "refused"
        host.site.enable(OFF)
        await_outcome(host.off, str(OFF))

    def test_killed_again_and_again_on_the_way_loses_no_request(self, host):
        """At random instants of the next version's start, on the former's state each time it did not get through."""
        chance = random.Random(6)
        with Load(host.served) as load:
            host.site.end(signal.SIGKILL)
            for _ in range(12):
                host.site.tree = host.next_version
                host.site.begin()
                time.sleep(chance.uniform(0.3, 2.5))
                host.site.end(signal.SIGKILL)
                host.refused()
                assert load.failures == []
            host.start(host.next_version)
            load.await_more()
        assert load.failures == []
        assert host.folders() == [f"v{abi.VERSION + 1}"]
        host.refused()

    def test_one_that_cannot_be_loaded_leaves_the_former_in_force(self, host, tmp_path):
        """The operator goes back to the former version then, and nobody has noticed."""
        broken = later(tmp_path)
        source = broken / "rules/bpf/from_instance.c"
        source.write_text(source.read_text() + "\nthis is no C\n")
        with Load(host.served) as load:
            host.site.end(signal.SIGQUIT)
            host.site.tree = broken
            assert host.site.begin().wait(30) != 0
            load.await_more()
            host.start(ROOT)
            load.await_more()
        assert load.failures == []
        assert warnings(host.site) == []
        assert host.folders() == [f"v{abi.VERSION}"]


class TestCutOver:
    """Connections end; nobody is served as another, nobody who is off is let in."""

    def shift(self, host: Host, tree: Path, why: str) -> None:
        with Talk(host.on) as talk:
            assert talk.ask().body == str(ON)
            host.site.end(signal.SIGQUIT)
            host.start(tree)
            (line,) = warnings(host.site)
            assert why in line
            assert "WARNING" in line.upper()
            with pytest.raises((OSError, Ended)):
                talk.ask()
        host.refused()
        assert [outcome(guest) for guest in (host.on, host.other)] == [str(ON), str(OTHER)]
        host.refused()

    def test_to_other_sizes(self, host):
        host.site.configure(PLENTY + "max_ports = 64\n")
        self.shift(host, ROOT, "other sizes")
        assert len(host.folders()) == 1

    def test_back_to_the_former_version(self, host):
        host.site.end(signal.SIGQUIT)
        host.start(host.next_version)
        self.shift(host, ROOT, "a newer version")
        assert host.folders() == [f"v{abi.VERSION}"]

    def test_from_pins_that_somebody_broke(self, host):
        (folder,) = (BPFFS / host.site.name).iterdir()
        (folder / "flows").unlink()
        self.shift(host, ROOT, "cannot open")
        assert host.folders() == [f"v{abi.VERSION}"]

    def test_guests_under_load_never_meet_another(self, host):
        """What fails is a connection that ended; what is answered is right."""
        with Load(host.served) as load:
            host.site.end(signal.SIGQUIT)
            host.site.configure(PLENTY + "max_ports = 64\n")
            host.start(ROOT)
            load.await_more()
        assert [failure for failure in load.failures if "instead of" in failure] == []
        host.refused()

    def test_killed_again_and_again_on_the_way(self, host):
        chance = random.Random(7)
        with Load(host.served) as load:
            host.site.configure(PLENTY + "max_ports = 64\n")
            host.site.end(signal.SIGKILL)
            for _ in range(8):
                host.site.begin()
                time.sleep(chance.uniform(0.3, 2.5))
                host.site.end(signal.SIGKILL)
                assert outcome(host.off) in ("refused", "timeout")
            host.start(ROOT)
            load.failures.clear()
            load.await_more()
        assert [failure for failure in load.failures if "instead of" in failure] == []
        assert len(host.folders()) == 1
        host.refused()
