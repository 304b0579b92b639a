"""Guests that wait for a change: how soon thousands are told of one host-wide edit, and what one costs that waits.

The baseline of a wake is the edit itself while nobody waits: from its being sent until the agent says that it is done.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median

from bench.figures import Figure, Limit, percentile
from bench.load import cpus, on_cpu
from bench.memory import resident
from bench.site import RAISED, ROOT, Site, site
from shim.control.live_client import LiveClient
from tests.lab import Namespace
from tests.lab.namespace import wait_until

LINKS, EACH, ROUNDS = 500, 10, 7
PATH = "/metashim/v1/sources/host/notice"
ROOM = "connections = 8192\nworkers = 2\n"
"""As many workers as this size of machine has cores."""
WAKE = Limit("value", most=50)
CROWD = "crowd"


def measure() -> list[Figure]:
    """The row's figures."""
    with site(RAISED + ROOM) as here:
        crowd = here.lab.namespace(CROWD)
        _plug(here, crowd)
        here.know(range(1, LINKS + 1))
        here.start(LINKS)
        _edit(here, 0)
        alone = [_edit(here, number)[1] * 1e3 for number in range(1, 1 + ROUNDS)]
        before = _resident(here)
        process = crowd.popen(
            [*on_cpu(cpus()[1]), sys.executable, "-m", "bench.crowd", str(LINKS), str(EACH), PATH],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        waits = _rounds(here, process)
        idle = (_resident(here) - before) / (LINKS * EACH) * 1024
        process.kill()  # or it complains of the service's end
        process.wait()
    medians = [median(times) for times in waits]
    every = [one for times in waits for one in times]
    many = f"{LINKS * EACH:,} long polls of {LINKS} instances"
    return [
        Figure(f"{many} woken by one edit, p50", median(medians), "ms", median(alone), "the edit, no one waits", WAKE),
        Figure(f"{many}, p99", percentile(every, 99), "ms", median(alone), "the edit, no one waits"),
        Figure("worker's memory for one that waits", idle, "KiB"),
    ]


def _resident(here: Site) -> float:
    """Of all workers, in MB."""
    return sum(resident(worker)[0] for worker in here.worker_pids)


def _rounds(here: Site, process: subprocess.Popen[str]) -> list[list[float]]:
    """Milliseconds from an edit's being sent to each answer, of each round."""
    assert process.stdout is not None
    found = []
    for number in range(100, 100 + ROUNDS):
        if process.stdout.readline() != "waiting\n":
            raise RuntimeError("the crowd did not get as far as to wait")
        time.sleep(0.5)  # all are known to the worker, and idle
        began, _ = _edit(here, number)
        times = json.loads(process.stdout.readline())
        found.append([(one - began) * 1e3 for one in times])
    return found


def _edit(here: Site, number: int) -> tuple[float, float]:
    """Write the host's notice; when that began, and the seconds until it was done."""
    began, since = time.time(), time.monotonic()
    LiveClient(here.config.control_socket).put_source("host", "notice", b"#cloud-config\nmotd: %d\n" % number, {})
    return began, time.monotonic() - since


def _plug(here: Site, crowd: Namespace) -> None:
    """So many links of one namespace, each to a tap of its own: guests by their taps, though they share a kernel."""
    lines = [f"link add tap{n} type veth peer name e{n} netns {crowd.name}\nlink set tap{n} up" for n in _numbers()]
    here.lab.host.run(["ip", "-batch", "-"], timeout=120, input="\n".join(lines), stdin=None)
    crowd.sysctl("net.ipv4.conf.all.rp_filter", 0)
    crowd.sysctl("net.ipv4.conf.all.arp_ignore", 1)
    lines = [f"link set e{n} up\naddr add 10.66.{n >> 8}.{n & 255}/32 dev e{n}" for n in _numbers()]
    lines += [f"route add 169.254.169.254/32 dev e{n} src 10.66.{n >> 8}.{n & 255} metric {n}" for n in _numbers()]
    crowd.run(["ip", "-batch", "-"], timeout=120, input="\n".join(lines), stdin=None)
    wait_until(lambda: "state UP" in crowd.run(["ip", "link", "show", f"e{LINKS}"]).stdout, "the links")


def _numbers() -> range:
    return range(1, LINKS + 1)

