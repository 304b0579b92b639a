"""Two hundred taps made and removed, again and again: how soon all are served, how soon nothing is left of them, and
what the agent weighs after it.

The baseline makes and removes as many by the same batch of ip(8) while no agent runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

from bench import memory
from bench.figures import Figure, Limit
from bench.site import DATAPATHS, Site, site

TAPS = range(20_000, 20_200)
ROUNDS = 4
LEAN, NONE = Limit("value", most=60), Limit("value", most=0)
PATIENCE = 60.0
LOOK = 0.01


def measure() -> list[Figure]:
    """All figures."""
    with site() as here:
        here.taps(range(1))
        here.know([0, *TAPS])
        alone = [_round(here, lambda: True, lambda: True) for _ in range(ROUNDS)]
        return [figure for datapath in DATAPATHS for figure in _storm(here, datapath, alone)]


def _storm(here: Site, datapath: str, alone: list[tuple[float, float]]) -> Iterator[Figure]:
    here.start(1, datapath)
    _round(here, lambda: _serving(here) == len(TAPS) + 1, lambda: _serving(here) == 1)  # so much is needed once
    before = memory.resident(here.pid)[0]
    rounds = [
        _round(here, lambda: _serving(here) == len(TAPS) + 1, lambda: _serving(here) == 1) for _ in range(ROUNDS)
    ]
    own = "ip(8) alone"
    for number, what in enumerate(("made and served", "removed and forgotten")):
        took, by_ip = (median(times[number] for times in each) * 1000 for each in (rounds, alone))
        yield Figure(f"storm, {datapath}, {len(TAPS)} taps {what}", took, "ms", by_ip, own)
    after, weight = here.client.status(), memory.resident(here.pid)[0]
    left = sum(after.states.values()) - 1 + len(after.ailments)
    yield Figure(f"storm, {datapath}, ports and ailments left", left, "", limit=NONE)
    made = f"{ROUNDS * len(TAPS):,} taps came and went"
    yield Figure(f"agent's memory, {datapath}, after {made}", weight, "MB", before, "before", LEAN)
    here.forget()


def _serving(here: Site) -> int:
    return here.client.status().states.get("serving", 0)


def _round(here: Site, are_served: Callable[[], bool], are_gone: Callable[[], bool]) -> tuple[float, float]:
    """Seconds until all taps are served, and from their removal on until none is."""
    return _batch(here, "tuntap add dev tap{} mode tap", are_served), _batch(here, "link del dev tap{}", are_gone)


def _batch(here: Site, line: str, until: Callable[[], bool]) -> float:
    began = time.monotonic()
    lines = "".join(f"{line.format(number)}\n" for number in TAPS)
    here.lab.host.run(["ip", "-batch", "-"], timeout=120, input=lines, stdin=None)
    while not until():
        if time.monotonic() - began > PATIENCE:
            raise RuntimeError(f"the agent does not keep up:\n{here.log_text()}")
        time.sleep(LOOK)
    return time.monotonic() - began
