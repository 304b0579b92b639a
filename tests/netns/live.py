"""What the tests of sources, keys and switches do on a hypervisor: sources by the API, and guests that are rude."""

from __future__ import annotations

import email
import socket
import struct
import time
from uuid import UUID

from shim.control.live_client import LiveClient
from shim.control.shapes import AuditRow
from tests.lab import VethGuest
from tests.netns.hypervisor import Hypervisor
from tests.netns.say import request
from tests.netns.talk import connect


def api(site: Hypervisor) -> LiveClient:
    """The operators' end, which costs no process as a verb does."""
    return LiveClient(site.run / "control.sock", 15.0)


def enrol(site: Hypervisor, name: str, instance: UUID, document: bytes = b'{"project_id": "blue"}') -> VethGuest:
    """A guest on a tap of its own; all have one MAC and one address."""
    guest = site.lab.veth_guest(name, f"tap-{name}", mac="02:00:00:00:00:05", v4="10.0.0.5/24", v6="fd00:1::5/64")
    site.api.put_document(instance, document)
    site.api.attach(guest.tap, instance)
    site.await_port(guest.tap, instance)
    return guest


def add(site: Hypervisor, scope: object, name: str, body: bytes, **parameters: object) -> None:
    """Write a source; `parameters` as the control API has them."""
    api(site).put_source(str(scope), name, body, parameters)


def trail(site: Hypervisor, instance: UUID | None = None, after: int = 0) -> list[AuditRow]:
    """The audit trail, oldest first."""
    return site.api.audit(instance, after, 1000).rows


def parts_of(body: bytes) -> list[bytes]:
    """What the parts of a multipart archive hold."""
    return [one.get_payload(decode=True) for one in email.message_from_bytes(body).get_payload()]  # type: ignore[union-attr, misc]


def raw_of(guest: VethGuest, method: str, path: str, timeout: float = 8, **headers: str) -> bytes:
    """All that is sent for a request, until the connection ends."""
    with connect(guest, timeout=timeout) as sock:
        sock.sendall(request(method, path, headers=headers))
        return rest_of(sock)


def rest_of(sock: socket.socket) -> bytes:
    """What comes until the other end closes."""
    found = b""
    while more := sock.recv(65536):
        found += more
    return found


def reset(sock: socket.socket) -> None:
    """End a connection by a TCP RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def leave(guest: VethGuest, path: str, times: int, step: float = 0.0003) -> None:
    """GETs that are given up by a reset, each `step` seconds later than the one before."""
    for number in range(times):
        sock = connect(guest)
        sock.sendall(request("GET", path))
        time.sleep(number * step)
        reset(sock)
