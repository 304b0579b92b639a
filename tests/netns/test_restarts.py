"""Restarts under load: no request fails, whoever is started again, and in whatever way an admin does it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.asking import REQUEST, Load
from tests.netns.conftest import PLENTY, on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.say import request, say
from tests.netns.talk import connect
from tests.netns.test_survival import worker_gone

ROUNDS = int(os.environ.get("METASHIM_RESTARTS", "7"))
"""How often each way is gone: each process is started anew some twenty times."""
GUESTS = 10
PATIENCE = 20.0
BETWEEN = 40
"""Requests that are answered between two restarts, at the least."""


class Scene:
    """Ten guests with one IP and MAC, and what each gets."""

    def __init__(self, site: Hypervisor) -> None:
        self.site = site
        self.guests = [(self._guest(number), str(uuid_of(number))) for number in range(1, GUESTS + 1)]
        for number, (guest, _) in enumerate(self.guests, 1):
            site.await_port(guest.tap, uuid_of(number))

    def _guest(self, number: int) -> VethGuest:
        same = {"mac": "02:00:00:00:00:05", "v4": "10.0.0.5/24", "v6": "fd00:1::5/64"}
        guest = self.site.lab.veth_guest(f"g{number}", f"tap{number}", **same)
        self.site.api.attach(guest.tap, uuid_of(number))
        return guest

    @property
    def ports(self) -> dict[str, tuple[int, int, object, str]]:
        return {port.tap: (port.slot, port.generation, port.instance, port.state) for port in self.site.api.ports()}

    @property
    def listening(self) -> set[str]:
        """The sockets that the gateway's namespace has, by what the kernel numbers them."""
        shown = subprocess.run(["ip", "netns", "exec", self.site.name, "ss", "-Hltne"], capture_output=True, text=True)
        return {word for word in shown.stdout.split() if word.startswith("ino:")}

    def under_load(self, restarts: Sequence[Callable[[], None]]) -> None:
        """One after the other; guests are served in between, and none of them notices."""
        ports, listening = self.ports, self.listening
        with Load(self.guests) as load:
            for restart in restarts:
                served = load.requests
                restart()
                wait_until(partial(load.has_had, served + BETWEEN), "guests to be served", PATIENCE)
        print(f"\n{len(restarts)} restarts: {load}")
        assert load.failures == [], "\n".join(load.failures[:20])
        assert self.ports == ports
        assert self.listening == listening

    def agent(self, number: signal.Signals) -> None:
        """Ends the agent, and starts another."""
        self.site.end(number)
        self.site.start()

    def worker_by_hand(self) -> None:
        """SIGTERM to the worker: the agent starts the next one."""
        worker = self.site.worker
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: self.has_another(worker), "another worker", PATIENCE)

    def worker_by_reload(self) -> None:
        """SIGHUP to the agent: the next one serves before the former ends."""
        worker = self.site.worker
        assert self.site.agent is not None
        self.site.agent.send_signal(signal.SIGHUP)
        wait_until(lambda: self.has_another(worker) and worker_gone(worker), "another worker", PATIENCE)

    def has_another(self, former: int) -> bool:
        """Whether another worker than that one is noted."""
        with contextlib.suppress(OSError, IndexError):
            return self.site.worker != former
        return False


@pytest.fixture(scope="module")
def lasting(datapath: str) -> Iterator[Scene]:
    with Lab() as lab, Hypervisor(lab, PLENTY, datapath=datapath) as site:
        site.keeps = True
        site.start()
        yield Scene(site)


@pytest.fixture
def scene(lasting: Scene) -> Scene:
    """The lasting one, running, whatever the last test left."""
    site = lasting.site
    if site.agent is None or site.agent.poll() is not None:
        site.start()
    site.await_workers()
    return lasting


@on_both
@pytest.mark.timeout(60 + 45 * ROUNDS)
def test_the_agent(scene: Scene) -> None:
    ways = [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL]
    rounds = ROUNDS if scene.site.datapath == "ebpf" else -(-ROUNDS // 3)
    scene.under_load([partial(scene.agent, number) for number in ways] * rounds)


@pytest.mark.timeout(60 + 45 * ROUNDS)
def test_the_worker(scene: Scene) -> None:
    scene.under_load([scene.worker_by_hand, scene.worker_by_reload] * (ROUNDS * 3 // 2))


class TestNobodyAccepts:
    """Guests that connect while no worker accepts wait for the next one."""

    @staticmethod
    def ask(scene: Scene) -> list[socket.socket]:
        socks = [connect(guest, timeout=20) for guest, _ in scene.guests]
        for sock in socks:
            sock.sendall(REQUEST)
        return socks

    @staticmethod
    def answered(scene: Scene, socks: list[socket.socket]) -> None:
        for (_, want), sock in zip(scene.guests, socks, strict=True):
            with sock:
                assert sock.recv(4096).endswith(want.encode())

    def test_as_the_worker_is_killed(self, scene: Scene) -> None:
        worker = scene.site.worker
        with scene.site.stopped(worker):
            socks = self.ask(scene)
            os.kill(worker, signal.SIGKILL)
        self.answered(scene, socks)

    def test_as_all_are_killed(self, scene: Scene) -> None:
        worker = scene.site.worker
        with scene.site.stopped(worker):
            before = self.ask(scene)
            scene.site.end(signal.SIGKILL)
            os.kill(worker, signal.SIGKILL)
        meanwhile = self.ask(scene)
        scene.site.start()
        self.answered(scene, before)
        self.answered(scene, meanwhile)

    def test_where_the_next_agent_has_them_of_the_worker_alone(self, scene: Scene) -> None:
        """No systemd, or a unit that was started rather than restarted."""
        listening, worker = scene.listening, scene.site.worker
        scene.site.end(signal.SIGQUIT)
        scene.site.forget()
        scene.site.start()
        with scene.site.stopped(worker):
            socks = self.ask(scene)
            os.kill(worker, signal.SIGKILL)
        self.answered(scene, socks)
        assert scene.listening == listening

    def test_what_was_kept_of_a_former_gateway_is_of_no_use(self, scene: Scene) -> None:
        listening = scene.listening
        scene.site.end(signal.SIGTERM)
        scene.site.verb("teardown")
        scene.site.start()
        self.answered(scene, self.ask(scene))
        assert len(scene.listening) == len(listening)


def test_who_waits_is_told_at_once_that_there_is_no_change(scene: Scene) -> None:
    guest = scene.guests[0][0]
    path = "/metashim/v1/kv/host/news"
    scene.site.api.put_key(uuid_of(1), "host/news", b"old", {})
    etag = say(guest, "GET", path).etag
    with connect(guest, timeout=20) as poll, connect(guest, timeout=20) as stream:
        poll.sendall(request("GET", f"{path}?wait=300&etag={etag.strip(chr(34))}"))
        stream.sendall(request("GET", path, headers={"accept": "text/event-stream"}))
        told = b""
        while b"\n\n" not in told.partition(b"\r\n\r\n")[2]:
            told += stream.recv(4096)
        wait_until(lambda: scene.site.api.status().workers[0].connections >= 2, "both to wait")
        began = time.monotonic()
        scene.site.end(signal.SIGTERM)
        assert time.monotonic() - began < 4.5
        assert poll.recv(4096).startswith(b"HTTP/1.1 304")
        assert stream.recv(4096) == b"0\r\n\r\n", "a whole stream"
    scene.site.start()


def test_a_worker_that_no_agent_knows_ends(scene: Scene) -> None:
    """It would serve by what was so when its agent was killed."""
    orphan = scene.site.worker
    scene.site.end(signal.SIGKILL)
    (scene.site.run / "worker0.pid").unlink()
    scene.site.start()
    assert scene.site.worker != orphan
    wait_until(lambda: worker_gone(orphan), "its end", PATIENCE)
