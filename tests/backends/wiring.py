"""Settings that make a metashim of tests/netns forward to backends, and guests that ask through it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import UUID

from tests.backends.visit import Fields, Reply, Visit
from tests.lab import VethGuest
from tests.netns import talk
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor

BUSY = "request_rate = 1000000\nrequest_burst = 1000000\nconnections_per_instance = 128\n"
"""Proxy settings for tests that ask more than a guest may: the limits have tests of their own."""
WITHIN = 1.0
"""Seconds in which a guest is told that there is no backend."""
AGAIN = 8.0
"""Seconds after which a backend that came back is asked again at the latest."""


class Listening(Protocol):
    """Any of the backends."""

    secret_file: Path

    @property
    def url(self) -> str: ...


def forward_to(kind: str, *backends: Listening, secret_file: Path | None = None, forward: str = "") -> str:
    """Settings: everything goes to these, as the backend `kind` (nova, http)."""
    addresses = json.dumps([backend.url for backend in backends])
    secret = secret_file or backends[0].secret_file
    return (
        f'{PLENTY}[forward]\nroutes = {{"/" = "{kind}"}}\nrequests_per_instance = 64\n{forward}\n'
        f'[{kind}]\naddresses = {addresses}\nsecret_file = "{secret}"\n'
    )


def enrol(
    site: Hypervisor, name: str, instance: UUID, project: str, addresses: tuple[str, ...] = (), mtu: int = 1500
) -> VethGuest:
    """A guest on a tap of its own, which is an instance of this project; all guests have one MAC and one address.

    `addresses` are what the instance's document says ("10.0.0.7/24").
    """
    mac = "02:00:00:00:00:05"
    guest = site.lab.veth_guest(name, f"tap-{name}", mac=mac, v4="10.0.0.5/24", v6="fd00:1::5/64", mtu=mtu)
    networks = [{"mac": mac, "addresses": addresses}] if addresses else []
    site.api.put_document(instance, json.dumps({"project_id": project, "networks": networks}).encode())
    site.api.attach(guest.tap, instance)
    site.await_port(guest.tap, instance)
    return guest


@contextmanager
def visiting(guest: VethGuest, address: str = talk.V4, timeout: float = 10.0) -> Iterator[Visit]:
    """A kept connection of the guest's."""
    with Visit(talk.connect(guest, address, timeout)) as visit:
        yield visit


def ask(
    guest: VethGuest,
    path: str,
    method: str = "GET",
    headers: Fields = (),
    body: bytes | None = None,
    address: str = talk.V4,
) -> Reply:
    """One request on a connection of its own."""
    with visiting(guest, address) as visit:
        return visit.ask(path, method, headers, body)


def timed(act: Callable[[], Reply]) -> tuple[Reply, float]:
    """What it gives, and the seconds that it takes."""
    began = time.monotonic()
    reply = act()
    return reply, time.monotonic() - began


def await_status(guest: VethGuest, path: str, status: int, seconds: float = AGAIN) -> Reply:
    """Ask until this is the status. AssertionError with the last one."""
    end = time.monotonic() + seconds
    while (reply := ask(guest, path)).status != status:
        assert time.monotonic() < end, f"{reply.status} instead of {status} for {seconds} s: {reply.body[:200]!r}"
        time.sleep(0.05)
    return reply


def at_once(count: int, act: Callable[[int], None]) -> list[BaseException]:
    """`act(number)` in so many threads at the same time; what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait(10)
            act(number)
        except (Exception, AssertionError) as error:  # noqa: BLE001 - the caller compares it with nothing
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return raised
