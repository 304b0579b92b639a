"""Restarts on a whole host, each as an admin, a crash or the kernel brings it about: guests who ask lose no request."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from tests.lab import VethGuest
from tests.lab.namespace import wait_until
from tests.netns.asking import Load
from tests.netns.hypervisor import uuid_of
from tests.vagrant import told
from tests.vagrant.installed import SECONDS, Installed, await_served

GUESTS = {"one": uuid_of(11), "two": uuid_of(12)}
CONNECTIONS = 4
BETWEEN = 20
"""Requests that are answered before and after each, at the least."""


@pytest.fixture(scope="module")
def guests(site: Installed) -> list[tuple[VethGuest, str]]:
    """Two of the same address and MAC."""
    return [(site.guest(name, instance), str(instance)) for name, instance in GUESTS.items()]


@contextmanager
def asking(guests: list[tuple[VethGuest, str]]) -> Iterator[None]:
    """Something happens while they ask, and no request fails."""
    with Load(guests, CONNECTIONS, SECONDS) as load:
        wait_until(lambda: load.has_had(BETWEEN), "requests before", SECONDS)
        yield
        had = load.requests
        wait_until(lambda: load.has_had(had + BETWEEN), "requests after", SECONDS)
    print(load)
    assert load.failures == []


def agent_is_up(site: Installed) -> bool:
    return site.shown("ActiveState")["ActiveState"] == "active"


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_restart(site: Installed, guests: list[tuple[VethGuest, str]]) -> None:
    agent, worker = site.agent, site.worker
    with asking(guests):
        site.restart()
    assert site.agent != agent and site.worker != worker
    assert site.shown("NFileDescriptorStore") == {"NFileDescriptorStore": "2"}


def test_readmes_upgrade(site: Installed, guests: list[tuple[VethGuest, str]]) -> None:
    agent, worker = site.agent, site.worker
    with asking(guests):
        site.host.run(["bash", "-c", told.command(told.UPGRADE)], timeout=SECONDS)
        wait_until(lambda: gone(worker), "the former worker to end", SECONDS)
        site.await_workers()
    assert site.agent != agent and site.worker != worker


def test_a_killed_agent_comes_again_and_its_worker_serves_meanwhile(
    site: Installed, guests: list[tuple[VethGuest, str]]
) -> None:
    agent, worker = site.agent, site.worker
    with asking(guests):
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: site.agent not in (0, agent) and agent_is_up(site), "another agent", SECONDS)
        site.await_workers()
    assert site.worker == worker
    assert site.shown("NRestarts") == {"NRestarts": "1"}


def test_a_killed_worker_comes_again(site: Installed, guests: list[tuple[VethGuest, str]]) -> None:
    """What it had accepted is cut; who asks again is served."""
    agent, worker = site.agent, site.worker
    os.kill(worker, signal.SIGKILL)
    for guest, instance in guests:
        await_served(guest, UUID(instance))
    assert site.agent == agent and site.worker != worker
