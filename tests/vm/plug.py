"""Taps of a hypervisor's that are instances, for real guests to be put on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from shim.errors import UnreachableError
from tests.netns.hypervisor import Hypervisor
from tests.vm.machine import Nic, Tap
from tests.vm.tiny import Tiny

MAC = "02:00:00:00:00:05"
STATIC = "configure eth0 10.0.0.5/24 fd00:1::5/64\n"
"""What guests have: each the same."""
ADDRESSES = {"V4": "169.254.169.254", "V6": "fd00:ec2::254", "LL": "fe80::a9fe:a9fe"}
"""The service's, by their names in a guest's script."""


@contextmanager
def plugged(site: Hypervisor, name: str, instance: UUID, *, queues: int = 1, mtu: int = 1500) -> Iterator[Tap]:
    """A tap in the bridge that is the instance's from its making on."""
    site.api.attach(name, instance)
    tap = Tap(site.lab.host, name, queues=queues, mtu=mtu)
    try:
        site.await_port(name, instance)
        yield tap
    finally:
        tap.remove()
        with suppress(UnreachableError):  # a test may have killed the agent
            site.api.detach(name)


def documented(site: Hypervisor, instance: UUID, **document: object) -> None:
    """Write what the instance is to see of itself."""
    site.api.put_document(instance, json.dumps(document).encode())


def tiny(
    site: Hypervisor,
    tap: Tap,
    *,
    mtu: int = 0,
    options: dict[str, str] | None = None,
    vhost: bool = False,
    **hardware: Any,
) -> Tiny:
    """The guest behind a tap; `hardware` as of Tiny."""
    nic = Nic(tap.name, MAC, queues=tap.queues, mtu=mtu, options=options or {}, vhost=vhost)
    return Tiny(site.lab.host, [nic], **hardware)
