"""What holds when processes die, are stopped, or start again: refused stays refused, open stays open."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.core.policy import Access
from tests.lab import Lab, VethGuest, Wire, service_frames
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY, on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import ALL, V4, V6, Talk, await_outcome, outcome

A, B = uuid_of(1), uuid_of(2)
SAME = {"mac": "02:00:00:00:00:05", "v4": "10.0.0.5/24", "v6": "fd00:1::5/64"}


class Scene:
    """`on` is served and `off` is refused, both with one IP and MAC; the wire behind the bridge is watched."""

    def __init__(self, site: Hypervisor, on: VethGuest, off: VethGuest, wire: Wire) -> None:
        self.site, self.on, self.off, self.wire = site, on, off, wire

    def refused(self) -> None:
        assert [outcome(self.off, address) for address in ALL] == ["refused"] * 3

    def served(self) -> None:
        assert [outcome(self.on, address) for address in ALL] == [str(A)] * 3

    def no_leak(self) -> None:
        assert service_frames(self.wire.frames()) == []


@pytest.fixture(scope="module")
def lasting(datapath: str) -> Iterator[Scene]:
    with Lab() as lab, Hypervisor(lab, PLENTY, datapath=datapath) as site:
        on, off = (lab.veth_guest(f"g{n}", f"tap{n}", **SAME) for n in (1, 2))
        site.start()
        site.api.attach("tap1", A)
        site.api.attach("tap2", B)
        with lab.capture("uplink", lab.wire) as wire:
            yield Scene(site, on, off, wire)


@pytest.fixture
def scene(lasting: Scene) -> Scene:
    """The lasting one as it should be, whatever the last test did to it."""
    site = lasting.site
    if site.agent is None or site.agent.poll() is not None:
        site.configure(PLENTY)
        site.start()
    site.await_workers()
    site.enable(A)
    site.disable(B)
    await_outcome(lasting.on, str(A))
    lasting.wire.frames(0.01)
    return lasting


def worker_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@on_both
class TestAgentKilled:
    def test_all_goes_on_without_an_agent_and_with_the_next(self, scene):
        with Talk(scene.on, V4) as four, Talk(scene.on, V6) as six:
            assert four.ask().body == six.ask().body == str(A)
            worker = scene.site.worker
            scene.site.end(signal.SIGKILL)
            scene.refused()
            scene.served()
            assert four.ask().body == six.ask().body == str(A)
            scene.site.start()
            assert scene.site.worker == worker
            assert four.ask().body == six.ask().body == str(A)
            scene.refused()
            scene.served()
            assert {p.tap: p.state for p in scene.site.api.ports()} == {"tap1": "serving", "tap2": "refused"}
            scene.site.disable(A)
            assert four.end_within(1) == six.end_within(1) == "reset"
        scene.no_leak()

    def test_again_and_again(self, scene):
        slots = {p.tap: (p.slot, p.generation) for p in scene.site.api.ports()}
        with Talk(scene.on) as talk:
            for _ in range(5):
                scene.site.end(signal.SIGKILL)
                scene.site.start()
                assert talk.ask().body == str(A)
        assert {p.tap: (p.slot, p.generation) for p in scene.site.api.ports()} == slots
        scene.refused()
        scene.no_leak()

    def test_what_was_set_to_403_is_answered_so_by_the_next(self, scene):
        scene.site.disable(B, Access.FORBID)
        assert outcome(scene.off) == "403"
        scene.site.end(signal.SIGKILL)
        assert outcome(scene.off) == "403"
        scene.site.start()
        assert outcome(scene.off) == "403"

    def test_403_is_in_force_when_the_command_returns_straight_after_a_restart(self, scene):
        """The worker that went on has the former agent's table until it has found the new one."""
        for _ in range(3):
            scene.site.enable(A)
            scene.site.end(signal.SIGKILL)
            (scene.site.run / "control.sock").unlink(missing_ok=True)
            scene.site.begin()
            wait_until((scene.site.run / "control.sock").exists, "the control socket")
            for _ in range(100):
                try:
                    scene.site.disable(A, Access.FORBID)
                    break
                except Exception:  # noqa: BLE001 - it is bound before it listens
                    time.sleep(0.005)
            assert outcome(scene.on) == "403"


@on_both
class TestAgentLeaves:
    def test_sigquit_keeps_workers_and_connections(self, scene):
        with Talk(scene.on) as talk:
            assert talk.ask().body == str(A)
            worker = scene.site.worker
            assert scene.site.end(signal.SIGQUIT) == 0
            assert talk.ask().body == str(A)
            scene.served()
            scene.site.start()
            assert scene.site.worker == worker
            assert talk.ask().body == str(A)
        scene.refused()
        scene.no_leak()

    def test_sigterm_ends_all_processes_and_leaves_the_refusal(self, scene):
        began = time.monotonic()
        assert scene.site.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 5
        assert scene.site.lab.host.pids() == []
        scene.refused()
        assert outcome(scene.on) in ("refused", "timeout")
        scene.no_leak()
        scene.site.start()
        scene.served()
        scene.refused()

    def test_teardown_is_refused_while_an_agent_runs(self, scene):
        done = scene.site.verb("teardown", check=False)
        assert done.returncode == 6
        assert "runs already" in done.stderr
        scene.served()

    def test_policy_survives_teardown(self, scene):
        scene.site.disable(A, Access.FORBID)
        scene.site.end(signal.SIGTERM)
        for _ in range(2):
            scene.site.verb("teardown")
            assert scene.site.left_behind() == []
        scene.site.start()
        assert outcome(scene.on) == "403"
        scene.refused()


class TestWorkerKilled:
    def test_the_next_worker_serves_and_nobody_else_is_served(self, scene):
        restarts = scene.site.api.status().workers[0].restarts
        for _ in range(3):
            worker = scene.site.worker
            os.kill(worker, signal.SIGKILL)
            scene.refused()
            await_outcome(scene.on, str(A), seconds=8)
            assert scene.site.worker != worker
            scene.refused()
        assert scene.site.api.status().workers[0].restarts == restarts + 3
        scene.no_leak()

    def test_together_with_the_agent(self, scene):
        worker = scene.site.worker
        scene.site.end(signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker_gone(worker), "the worker's end")
        scene.refused()
        assert outcome(scene.on) == "refused"
        scene.no_leak()
        scene.site.start()
        await_outcome(scene.on, str(A))
        scene.refused()

    def test_while_no_agent_runs_that_could_start_another(self, scene):
        """Two workers, one of which died unseen: the next agent takes over one and starts the other."""
        scene.site.end(signal.SIGTERM)
        scene.site.configure(PLENTY, proxy="workers = 2")
        scene.site.start()
        first = scene.site.worker
        scene.site.end(signal.SIGKILL)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: worker_gone(first), "the worker's end")
        scene.site.start()
        pids = [w.pid for w in scene.site.api.status().workers]
        assert len(pids) == 2
        assert all(pids)
        for _ in range(20):
            scene.served()
        scene.refused()
        scene.site.end(signal.SIGTERM)


class TestWorkerStopped:
    def test_disable_returns_soon_and_holds(self, scene):
        """A worker that hangs cannot keep the kernel from refusing, and is not left hanging."""
        with scene.site.stopped(scene.site.worker):
            began = time.monotonic()
            scene.site.disable(A)
            assert time.monotonic() - began < 5
            assert outcome(scene.on) == "refused"
        assert outcome(scene.on) == "refused"
        assert scene.site.api.instance(A).policy.v4 == "reset"
        scene.site.await_workers()
        scene.site.enable(A)
        await_outcome(scene.on, str(A))

    def test_403_holds_once_it_is_said_to(self, scene):
        with Talk(scene.on) as talk, scene.site.stopped(scene.site.worker):
            assert talk.sock is not None
            scene.site.disable(A, Access.FORBID)
        await_outcome(scene.on, "403")
        assert scene.site.api.instance(A).policy.v4 == "403"
