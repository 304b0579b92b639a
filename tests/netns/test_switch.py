"""From one datapath to the other on a host that serves guests, and back; and what `auto` takes without eBPF."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, VethGuest, Wire, service_frames
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import ROOT, Hypervisor, uuid_of
from tests.netns.talk import ALL, V4, V6, Talk, await_outcome, outcome

A, B = uuid_of(1), uuid_of(2)
SAME = {"mac": "02:00:00:00:00:05", "v4": "10.0.0.5/24", "v6": "fd00:1::5/64"}


class Hammer:
    """A guest that connects without end, over both families; `met` is all that it ever met."""

    def __init__(self, guest: VethGuest) -> None:
        self._guest, self._end = guest, threading.Event()
        self.met: set[str] = set()
        self._threads = [threading.Thread(target=self._run, args=(address,)) for address in (V4, V6)]

    def _run(self, address: str) -> None:
        while not self._end.is_set():
            self.met.add(outcome(self._guest, address, 0.3))

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


class Scene:
    """`on` is served and `off` is refused; the bridge, its uplink and the network behind are watched."""

    def __init__(self, site: Hypervisor, on: VethGuest, off: VethGuest, wires: list[Wire]) -> None:
        self.site, self.on, self.off, self.wires = site, on, off, wires

    def slots(self) -> dict[str, tuple[int | None, int]]:
        return {port.tap: (port.slot, port.generation) for port in self.site.api.ports()}

    def guarded_by(self) -> set[str]:
        """Whatever there is of either datapath."""
        host, name = self.site.lab.host, self.site.name
        filters = "".join(host.run(["tc", "filter", "show", "dev", tap, "ingress"]).stdout for tap in ("tap1", "tap2"))
        ebpf = "from_instance" in filters or Path(f"/sys/fs/bpf/{name}").exists()
        nft = f"table netdev datapath-{name}\n" in host.run(["nft", "list", "tables"]).stdout
        return {kind for kind, there in (("ebpf", ebpf), ("nft", nft)) if there}

    def switch(self, datapath: str, number: int = signal.SIGTERM) -> None:
        self.site.end(number)
        self.site.datapath = datapath
        self.site.start()

    def as_it_should_be(self) -> None:
        for address in ALL:
            await_outcome(self.on, str(A), address)
        assert [outcome(self.off, address) for address in ALL] == ["refused"] * 3

    def leaked(self) -> list[bytes]:
        return [frame for wire in self.wires for frame in service_frames(wire.frames(0.05))]


@pytest.fixture
def scene(lab: Lab) -> Iterator[Scene]:
    with Hypervisor(lab, PLENTY, datapath="ebpf") as site:
        on, off = (lab.veth_guest(f"g{n}", f"tap{n}", **SAME) for n in (1, 2))
        site.start()
        site.api.attach("tap1", A)
        site.api.attach("tap2", B)
        site.disable(B)
        with lab.capture("br0") as bridge, lab.capture("uplink") as uplink, lab.capture("uplink", lab.wire) as wire:
            yield Scene(site, on, off, [bridge, uplink, wire])


class TestSwitch:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_there_and_back(self, scene, number):
        slots = scene.slots()
        with Hammer(scene.off) as hammer:
            for datapath in ("nft", "ebpf", "nft"):
                scene.switch(datapath, number)
                status = scene.site.api.status()
                assert (status.datapath, status.ailments) == (datapath, [])
                assert scene.slots() == slots
                assert scene.guarded_by() == {datapath}
                scene.as_it_should_be()
        assert hammer.met <= {"refused", "timeout"}
        assert "refused" in hammer.met
        assert scene.leaked() == []

    def test_an_open_connection_ends_and_its_answer_is_nobody_elses(self, scene):
        with Talk(scene.on) as talk:
            assert talk.ask().body == str(A)
            scene.switch("nft", signal.SIGQUIT)
            with pytest.raises((ConnectionResetError, BrokenPipeError, TimeoutError)):
                talk.ask()
        scene.as_it_should_be()
        assert scene.leaked() == []

    @pytest.mark.parametrize("configured", ["ebpf", "nft"])
    def test_teardown_removes_either_whatever_is_configured(self, scene, tmp_path, configured):
        """And with neither nft nor bcc there any more."""
        (tmp_path / "bcc.py").write_text("raise ImportError\n")
        other = {"ebpf": "nft", "nft": "ebpf"}[configured]
        scene.switch(other)
        scene.site.configure(f'[datapath]\ndatapath = "{configured}"\n')
        scene.site.end(signal.SIGTERM)
        without = ["env", "PATH=/nonexistent", f"PYTHONPATH={tmp_path}", *scene.site.argv, "teardown"]
        scene.site.lab.host.run(without, cwd=str(ROOT))
        assert scene.site.left_behind() == []

    def test_one_that_cannot_be_opened_leaves_the_other_at_work(self, scene):
        """Without nft(8) the agent says so and ends; eBPF goes on with its policies, and the workers go on."""
        scene.site.end(signal.SIGQUIT)
        scene.site.datapath = "nft"
        agent = scene.site.begin(PATH="/nonexistent")
        assert agent.wait(20) == 7
        assert "nft(8) cannot be run" in scene.site.log_text()
        scene.as_it_should_be()
        assert scene.leaked() == []


def without_bcc(site: Hypervisor, modules: Path) -> None:
    """Ends what runs, for an agent with these modules that has nothing compiled and no compiler."""
    (modules / "bcc.py").write_text("raise ImportError('no bcc here')\n")
    site.end(signal.SIGTERM)
    site.verb("teardown")
    for kept in site.state.glob("programs-*"):
        kept.unlink()


class TestAuto:
    def test_without_bcc_it_falls_back_and_says_why(self, scene, tmp_path):
        without_bcc(scene.site, tmp_path)
        scene.site.datapath = "auto"
        for _ in range(2):
            scene.site.start(PYTHONPATH=str(tmp_path))
            status = scene.site.api.status()
            assert status.datapath == "nft"
            assert "no bcc here" in status.fallback
            assert any("802.1Q" in what for what in status.lacks)
            shown = scene.site.verb("status").stdout
            assert "in place of ebpf:" in shown and "no bcc here" in shown
            assert "with nft: guests that tag their frames" in shown
            assert not Path(f"/sys/fs/bpf/{scene.site.name}").exists()
            scene.as_it_should_be()
            scene.site.end(signal.SIGTERM)
        scene.site.start()
        status = scene.site.api.status()
        assert (status.datapath, status.fallback, status.lacks) == ("ebpf", "", [])
        scene.as_it_should_be()
        assert scene.leaked() == []

    def test_with_neither_it_says_why_of_both(self, scene, tmp_path):
        without_bcc(scene.site, tmp_path)
        scene.site.datapath = "auto"
        agent = scene.site.begin(PYTHONPATH=str(tmp_path), PATH="/nonexistent")
        assert agent.wait(20) == 7
        assert "neither datapath" in scene.site.log_text()
        assert "no bcc here" in scene.site.log_text() and "nft(8) cannot be run" in scene.site.log_text()
