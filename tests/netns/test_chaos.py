"""Agent and workers killed at random under load, while operators switch guests on and off.

Invariants: who was disabled, and that was acknowledged, gets no 200 until somebody begins to enable it; nobody ever
gets another's data; what was acknowledged is in force after every crash; and in the end all are served, and nothing is
left of what happened: no process, socket, connection, port or note more than before.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import pytest

from shim.core.policy import Access
from shim.errors import MetashimError
from tests.lab import Lab
from tests.lab.namespace import wait_until
from tests.netns.asking import Line, Load
from tests.netns.conftest import PLENTY, on_both
from tests.netns.hypervisor import BPFFS, Hypervisor, uuid_of
from tests.netns.talk import await_outcome
from tests.netns.test_restarts import GUESTS, Scene

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
SEED = int(os.environ.get("SOAK_SEED", "6"))
WAYS = (Access.OPEN, Access.OPEN, Access.RESET, Access.FORBID, Access.DROP)


@dataclass
class Asking(Load):
    """The load, with what became of it: `met` by kind, `holes` what must not be."""

    shut: dict[str, float] = field(default_factory=dict)
    met: Counter[str] = field(default_factory=Counter)
    holes: list[str] = field(default_factory=list)

    def answered(self, line: Line, want: str, got: str, began: float) -> None:
        self.met["200"] += 1
        since = self.shut.get(want)
        if got != want:
            self.holes.append(f"{want} got {got}")
        if since is not None and began > since:
            self.holes.append(f"{want} was served {time.monotonic() - since:.3f} s after it was shut")

    def failed(self, line: Line, kind: str, error: Exception) -> None:
        self.met[f"{line.stage}: {type(error).__name__} {error}".strip()] += 1


class Operator:
    """Switches guests at random, in a thread. `acknowledged`: what each has, as far as that is certain."""

    def __init__(self, site: Hypervisor, load: Asking, seed: int) -> None:
        self.acknowledged: dict[UUID, Access] = {}
        self.done = self.failed = 0
        self._site, self._load, self._chance = site, load, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._switch(uuid_of(self._chance.randint(1, GUESTS)), self._chance.choice(WAYS))
            time.sleep(self._chance.random() * 0.05)

    def _switch(self, instance: UUID, way: Access) -> None:
        if way is Access.OPEN:
            self._load.shut.pop(str(instance), None)
        self.acknowledged.pop(instance, None)
        try:
            self._site.disable(instance, way)
        except (MetashimError, OSError):  # it was done, or not
            self.failed += 1
            return
        self.done += 1
        self.acknowledged[instance] = way
        if way is not Access.OPEN:
            self._load.shut.setdefault(str(instance), time.monotonic())

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def in_force(self) -> None:
        """What was acknowledged is what holds."""
        for instance, way in self.acknowledged.items():
            policy = self._site.api.instance(instance).policy
            assert (policy.v4, policy.v6) == (way.value, way.value), instance


class Killer:
    """What happens to the processes, one thing after the other."""

    def __init__(self, site: Hypervisor, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._site, self._chance = site, random.Random(seed)

    def strike(self) -> None:
        """Something, after a while."""
        time.sleep(self._chance.random() * 0.6)
        act = self._chance.choice([self.agent, self.worker, self.both, self.leave, self.restart, self.reload])
        self.done[act.__name__] += 1
        act()

    def agent(self) -> None:
        self._site.end(signal.SIGKILL)
        self._begin()

    def both(self) -> None:
        workers = self._workers()
        self._site.end(signal.SIGKILL)
        for pid in workers:
            self._kill(pid, signal.SIGKILL)
        self._begin()

    def leave(self) -> None:
        self._site.end(signal.SIGQUIT)
        self._begin()

    def restart(self) -> None:
        self._site.end(signal.SIGTERM)
        self._begin()

    def worker(self) -> None:
        for pid in self._workers()[:1]:
            self._kill(pid, self._chance.choice([signal.SIGKILL, signal.SIGTERM]))

    def reload(self) -> None:
        assert self._site.agent is not None
        self._site.agent.send_signal(signal.SIGHUP)

    def _begin(self) -> None:
        """Another agent; now and then it is killed before it is ready, and one follows."""
        while self._chance.random() < 0.3:
            self._site.begin()
            time.sleep(self._chance.random())
            self._site.end(signal.SIGKILL)
        self._site.start()

    def _workers(self) -> list[int]:
        pids = []
        for note in self._site.run.glob("worker*.pid"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                pids.append(int(note.read_text().split()[0]))
        self._chance.shuffle(pids)
        return pids

    def _kill(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.fixture(scope="module")
def scene(datapath: str) -> Iterator[Scene]:
    quiet = PLENTY + "[log]\naccess_rate = 0\n"
    with Lab() as lab, Hypervisor(lab, quiet, proxy="workers = 2", datapath=datapath) as site:
        site.keeps = True
        site.start()
        yield Scene(site)


def counts(scene: Scene) -> dict[str, object]:
    """All that must be as it was."""
    site = scene.site
    pins = BPFFS / site.name
    return {
        "ports": scene.ports,
        "listening": scene.listening,
        "workers": len(site.api.status().workers),
        "notes": sorted(path.name for path in site.run.glob("*.pid")),
        "processes": len(site.lab.host.pids()),
        "connections": sum(worker.connections for worker in site.api.status().workers),
        "pins": sorted(str(path) for path in pins.rglob("*")) if pins.exists() else [],
    }


@on_both
@pytest.mark.timeout(SECONDS + 200)
def test_kills_at_random_under_load(scene: Scene) -> None:
    site, before = scene.site, counts(scene)
    with Asking(scene.guests, patience=3.0) as load:
        operator, killer = Operator(site, load, SEED), Killer(site, SEED)
        try:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                killer.strike()
        finally:
            operator.end()
        print(f"\n{dict(killer.done)}; {operator.done} switched, {operator.failed} not known; {dict(load.met)}")
        operator.in_force()
        for number in range(1, GUESTS + 1):
            load.shut.pop(str(uuid_of(number)), None)
            site.enable(uuid_of(number))
    assert load.holes == []
    assert load.met["200"] > 100
    for number, (guest, _) in enumerate(scene.guests, 1):
        await_outcome(guest, str(uuid_of(number)), seconds=20)
    wait_until(lambda: counts(scene) == before, f"all to be as before: {before}", 90)
