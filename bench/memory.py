"""Resident memory of the agent and of a worker of the proxy, after requests of several instances.

The baselines are what their parts take that do nothing: an interpreter that has imported asyncio and pyroute2,
and the bare server on httptools and uvloop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import load
from bench.figures import Figure, Limit
from bench.site import ROOT, Site, instance_of
from tests.lab import VethGuest

AGENT = Limit("value", most=60)
WORKER = Limit("value", most=40)
HELD_AT = 1000
"""The number of ports up to which the limits hold."""

SERVICE = "169.254.169.254"
VISIT_SECONDS = 0.3
AGENT_PARTS = "import asyncio, msgspec, pyroute2, sqlite3"
WORKER_PARTS = "import bench.bare"


def measure(here: Site, guests: Sequence[VethGuest], ports: int, datapath: str) -> list[Figure]:
    """The figures at so many ports."""
    for number, guest in enumerate(guests, 1):
        here.client.put_document(instance_of(number), json.dumps({"user_data": "x" * 200}).encode())
        for path in ("/latest/user-data", "/openstack/latest/meta_data.json", "/latest/meta-data/"):
            load.visits(guest, SERVICE, 80, path, VISIT_SECONDS)
    held = ports <= HELD_AT
    agent, worker = resident(here.pid), max(map(resident, here.worker_pids))
    at = f"{datapath}, {ports:,} ports"
    return [
        *_figures(f"agent, {at}", agent, _idle(AGENT_PARTS), "its parts, idle", AGENT if held else None),
        *_figures(f"worker, {at}", worker, _idle(WORKER_PARTS), "bare server", WORKER if held else None),
    ]


def resident(pid: int) -> tuple[float, float]:
    """(VmRSS, Pss) in MB: of 1024 KiB, as the limits are meant."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in rollup.splitlines()[1:]}
    return sizes["Rss"], sizes["Pss"]


def _idle(parts: str) -> tuple[float, float]:
    """What an interpreter takes that has imported this."""
    program = f"{parts}; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as idle:
        assert idle.stdout
        idle.stdout.readline()
        try:
            return resident(idle.pid)
        finally:
            idle.kill()


def _figures(
    name: str, found: tuple[float, float], idle: tuple[float, float], idle_name: str, limit: Limit | None
) -> list[Figure]:
    return [
        Figure(f"resident memory, {name}", found[0], "MB", idle[0], idle_name, limit),
        Figure(f"proportional set, {name}", found[1], "MB", idle[1], idle_name),
    ]
