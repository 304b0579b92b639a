"""A hypervisor's ports, as its agent has them."""

from __future__ import annotations

from uuid import UUID

from shim.control.live_client import LiveClient
from shim.control.shapes import PortView
from tests.lab.namespace import wait_until


def port_of(api: LiveClient, tap: str) -> PortView | None:
    """The port of a tap, if it is guarded."""
    return next((port for port in api.ports() if port.tap == tap), None)


def await_port(api: LiveClient, tap: str, instance: UUID | None, seconds: float) -> PortView:
    """Wait until a tap is the instance's, or nobody's."""

    def found() -> bool:
        port = port_of(api, tap)
        return port is not None and port.instance == instance and port.state != "failed"

    wait_until(found, f"{tap} to be {instance}'s", seconds)
    port = port_of(api, tap)
    assert port is not None
    return port
