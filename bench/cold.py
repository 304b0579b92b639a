"""From nothing in the kernel to a thousand guests served: how long an agent takes that starts where their taps are
already, and what it weighs then.

With each datapath: one file as the source; all sources at once, libvirt's and Open vSwitch's children among them; and
the taps in twenty namespaces instead of one. The baseline attaches as many by one batch of tc(8) or nft(8), to what is
loaded already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from bench import memory
from bench.figures import Figure, Limit
from bench.site import DATAPATHS, DEFAULTS, FILE, Site, instance_of, site
from shim.core.policy import Policy
from shim.core.port import Port
from shim.datapath import nft_ports
from shim.host import nft_settings
from tests.lab import Namespace
from tests.netns.talk import outcome

TAPS = 1_000
NAMESPACES = 20
TRIES = 3
SOON = Limit("value", most=3)
LEAN = Limit("value", most=60)
PATIENCE = 60.0

MANY = f"bench{os.getpid()}-many"
SPREAD = f'[datapath]\nnamespaces = ["{MANY}*"]\n'
ALL = """\
sources = ["operator", "file", "alias", "netns", "libvirt", "ovs"]
libvirt_state = "{{folder}}"
ovs = "{remote}"
"""


def measure() -> list[Figure]:
    """All of it. Of those starts that find the programs compiled the quickest counts: what else the machine does only
    adds."""
    from tests.netns.ovsdb_server import OvsdbServer  # the ovs library, for those who use it

    with OvsdbServer() as server:
        everybody = ALL.format(remote=server.remote)
        found = [figure for datapath in DATAPATHS for figure in _in_one(datapath, FILE, "a file")]
        found += [figure for datapath in DATAPATHS for figure in _in_one(datapath, everybody, "all sources")]
    return found + [figure for datapath in DATAPATHS for figure in _in_many(datapath)]


def _in_one(datapath: str, identity: str, sources: str) -> Iterator[Figure]:
    with site(DEFAULTS, identity) as here:
        here.taps(range(TAPS))
        guest = here.guest(TAPS)
        here.know(range(TAPS + 1))
        whose = str(instance_of(TAPS))
        starts = _starts(here, datapath, TAPS + 1, lambda: outcome(guest) == whose)
        yield from _figures(f"{datapath}, {TAPS:,} taps, {sources}", *starts, _by_hand(here, datapath))


def _in_many(datapath: str) -> Iterator[Figure]:
    """As many taps, spread over namespaces, which are there too when the agent starts."""
    with site(DEFAULTS + SPREAD, 'sources = ["alias"]') as here:
        there = [here.lab.namespace(f"many{number}") for number in range(NAMESPACES)]
        for number, where in enumerate(there):
            _fill(where, range(number * TAPS // NAMESPACES, (number + 1) * TAPS // NAMESPACES))
        starts = _starts(here, datapath, TAPS, lambda: True)
        yield from _figures(f"{datapath}, {TAPS:,} taps in {NAMESPACES} namespaces", *starts, None)


def _fill(where: Namespace, numbers: range) -> None:
    lines = (f"tuntap add dev tap{n} mode tap\nlink set dev tap{n} alias metashim:{instance_of(n)}\n" for n in numbers)
    where.run(["ip", "-batch", "-"], timeout=120, input="".join(lines), stdin=None)


def _figures(
    name: str, took: list[float], agent: float, children: float, by_hand: float | None
) -> Iterator[Figure]:
    alone = "attached by one batch" if by_hand else ""
    yield Figure(f"cold start, {name}", min(took[1:]), "s", by_hand, alone, SOON)
    yield Figure(f"first start ever, {name}", took[0], "s", by_hand, alone, SOON)
    yield Figure(f"agent's memory then, {name}", agent, "MB", limit=LEAN)
    if children:
        yield Figure(f"its sources' children's, {name}", children, "MB")


def _starts(
    here: Site, datapath: str, ports: int, is_served: Callable[[], bool]
) -> tuple[list[float], float, float]:
    """The seconds of each until every port is served and a guest is; then the agent's resident MB, and its sources'
    children's. Before each there is nothing in the kernel; before the first, nothing was ever compiled."""
    times = []
    for _ in range(TRIES):
        began = time.monotonic()
        here.begin(datapath)
        here.await_ready()
        while not is_served():
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError("the guest is not served")
        times.append(time.monotonic() - began)
        here.must_serve(ports)
        agent, children = memory.resident(here.pid)[0], sum(memory.resident(pid)[0] for pid in here.other_pids)
        here.forget()
    return times, agent, children


def _by_hand(here: Site, datapath: str) -> float:
    """Seconds that one batch takes to attach to all taps once more what is loaded already."""
    here.start(TAPS + 1, datapath)
    here.leave()
    command, lines = (["tc", "-batch", "-"], _tc(here)) if datapath == "ebpf" else (["nft", "-f", "-"], _nft(here))
    began = time.monotonic()
    here.lab.host.run(command, timeout=120, input="".join(lines), stdin=None)
    return time.monotonic() - began


def _tc(here: Site) -> Iterator[str]:
    program = f"bpf direct-action object-pinned {here.program}"
    return (f"filter add dev tap{n} ingress prio 9 {program}\n" for n in range(TAPS))


def _nft(here: Site) -> Iterator[str]:
    table = nft_settings(here.config).table
    ports = (Port(0, 0, TAPS * 9 + n, f"tap{n}", "", None, Policy()) for n in range(TAPS))
    return (nft_ports.text(table, nft_ports.hook(port)) + "\n" for port in ports)
