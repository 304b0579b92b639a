"""The backends of a worker: what they need of the host is read as root, then they are made within the loop.

A backend that cannot be made (its secret cannot be read, its certificate is none) is left out: requests routed to it
get 503, and all others are served.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shim.core.address import Address
from shim.errors import ConfigError
from shim.forward.http import Http
from shim.forward.nova import Nova
from shim.forward.upstream import Endpoint, Upstream
from shim.http.client import Client
from shim.settings import Backend as Settings
from shim.settings import Forward
from shim.settings import Http as HttpSettings
from shim.settings import Nova as NovaSettings

logger = logging.getLogger("shim.backends")

SECRET_BYTES = 4096

# A check ends by its own deadline, which is shorter. Each has a connection of its own: a kept one may be closed in
# the instant that it is used, and that is no reason to think the backend dead.
PROBE_SECONDS = 2.0
PROBE_IDLE_SECONDS = 0.2

Made = Nova | Http


@dataclass(frozen=True)
class Credentials:
    """What a backend is spoken to with."""

    secret: bytes
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return "<credentials>"  # never logged


def credentials(name: str, settings: Settings) -> Credentials:
    """Reads a backend's secret and certificates. Raises ConfigError: which file, why, what to do."""
    tls = any(address.tls for address in settings.parsed_addresses)
    return Credentials(_secret(name, Path(settings.secret_file)), _tls(name, settings) if tls else None)


def _secret(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            secret = file.read(SECRET_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(f"{name}.secret_file: {path}: {error.strerror}", "write the shared secret there") from None
    if not secret or len(secret) > SECRET_BYTES:
        raise ConfigError(f"{name}.secret_file: {path} is empty or too long", "write the shared secret there, alone")
    return secret


def _tls(name: str, settings: Settings) -> ssl.SSLContext:
    where = settings.ca_file or "the system's certificates"
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.certificate_file:
            where = f"{settings.certificate_file}, {settings.key_file}"
            context.load_cert_chain(settings.certificate_file, settings.key_file, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        hint = "PEM files, the key without a password"
        raise ConfigError(f"{name}: {where}: {getattr(error, 'strerror', None) or error}", hint) from None
    return context


class Backends:
    """`read` as root, `open` within the loop."""

    def __init__(self, forward: Forward, nova: NovaSettings, http: HttpSettings) -> None:
        self._forward = forward
        self._settings: dict[str, NovaSettings | HttpSettings] = {"nova": nova, "http": http}
        self._credentials: dict[str, Credentials] = {}
        self.upstreams: list[Upstream] = []

    @property
    def most_connections(self) -> int:
        """How many connections there may be to all of them, those that check among them."""
        return sum(len(settings.addresses) for settings in self._settings.values()) * (self._forward.connections + 1)

    def read(self) -> None:
        """Read what is root's. A fault is logged, and its backend left out."""
        for name, settings in self._settings.items():
            if settings.addresses:
                try:
                    self._credentials[name] = credentials(name, settings)
                except ConfigError as error:
                    logger.error("backend %s answers 503: %s (%s)", name, error, error.hint)

    def open(self) -> Mapping[str, Made]:
        """Make them, and begin to check their health."""
        made: dict[str, Callable[[Credentials], Made]] = {"nova": self._nova, "http": self._http}
        by_name = {name: made[name](known) for name, known in self._credentials.items()}
        for upstream in self.upstreams:
            upstream.start()
        return by_name

    async def close(self) -> None:
        """End the checks and all connections."""
        for upstream in self.upstreams:
            await upstream.close()

    def _nova(self, known: Credentials) -> Nova:
        return Nova(self._upstream("nova", known, "/"), known.secret)

    def _http(self, known: Credentials) -> Http:
        settings = self._settings["http"]
        assert isinstance(settings, HttpSettings)
        return Http(self._upstream("http", known, settings.health_path), settings.headers, known.secret)

    def _upstream(self, name: str, known: Credentials, health_path: str) -> Upstream:
        endpoints = [self._endpoint(name, one, known) for one in self._settings[name].parsed_addresses]
        self.upstreams.append(Upstream(name, endpoints, health_path.encode()))
        return self.upstreams[-1]

    def _endpoint(self, name: str, address: Address, known: Credentials) -> Endpoint:
        forward = self._forward
        make = partial(Client, address, tls=known.tls if address.tls else None, name=name)
        client = make(
            connect_seconds=forward.connect_seconds,
            read_seconds=forward.read_seconds,
            connections=forward.connections,
        )
        probe = make(
            connect_seconds=PROBE_SECONDS, read_seconds=PROBE_SECONDS, connections=1, idle_seconds=PROBE_IDLE_SECONDS
        )
        return Endpoint(address, client, probe)
