"""The part of `metashim check` that is about backends: their secrets and certificates, and whether they can be
reached right now; and about the keys of session tokens."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shim.backends import credentials
from shim.config import Config
from shim.core.address import Address
from shim.errors import ConfigError
from shim.finding import Finding
from shim.settings import FORWARDED, Backend

CONNECT_SECONDS = 1.0


def backends(config: Config) -> Iterator[Finding]:
    """Each configured backend, then the keys."""
    for name in FORWARDED:
        settings: Backend = getattr(config, name)
        if settings.addresses:
            yield from _credentials(name, settings)
            yield from _reached(name, settings, config.proxy.user)
    yield from _token_keys(config.token_keys)


def _credentials(name: str, settings: Backend) -> Iterator[Finding]:
    if os.geteuid() != 0:
        yield Finding("warn", f"{name}: its secret was not looked at", "that needs root")
        return
    try:
        credentials(name, settings)
    except ConfigError as error:
        yield Finding("fail", str(error), error.hint)
    else:
        yield Finding("ok", f"{name}: its secret{' and certificates' if settings.certificate_file else ''}")
    for setting in ("secret_file", "key_file"):
        yield from _is_private(f"{name}.{setting}", getattr(settings, setting))


def _is_private(setting: str, path: str) -> Iterator[Finding]:
    with contextlib.suppress(OSError):  # that it cannot be read was said
        if path and (mode := stat.S_IMODE(Path(path).stat().st_mode)) & 0o077:
            yield Finding("warn", f"{setting}: {path} has mode {mode:04o}: others may read it", f"chmod 600 {path}")


def _reached(name: str, settings: Backend, user: str) -> Iterator[Finding]:
    """Connects to every address, to those of TCP at once."""
    addresses = settings.parsed_addresses
    with ThreadPoolExecutor(len(addresses)) as pool:
        tried = {one: pool.submit(_connect, one) for one in addresses if not one.path}
        faults = {one: attempt.result() for one, attempt in tried.items()}
    with _as_user(user):  # a Unix socket asks who connects
        faults |= {one: _connect(one) for one in addresses if one.path}
    for address in addresses:
        if fault := faults[address]:
            hint = f"is it running, and is {name}.addresses right? Guests get 503 while no address answers"
            yield Finding("warn", f"{name}: {address.text} cannot be reached: {fault}", hint)
        else:
            yield Finding("ok", f"{name}: {address.text} can be reached")


@contextlib.contextmanager
def _as_user(name: str) -> Iterator[None]:
    """As that user, where there is such a one and root can become it."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:  # which is said elsewhere
        user = None
    if user is None or os.geteuid() != 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _connect(address: Address) -> str:
    """Why nobody can be connected to there, empty if somebody can."""
    try:
        if address.path:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(CONNECT_SECONDS)
                sock.connect(address.path)
        else:
            socket.create_connection((address.host, address.port), CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _token_keys(path: Path) -> Iterator[Finding]:
    """The agent does not take keys that others could have read or written."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        yield Finding("warn", f"{path}: {error.strerror}", "that needs root")
        return
    mode = stat.S_IMODE(about.st_mode)
    if stat.S_ISREG(about.st_mode) and about.st_uid == 0 and not mode & 0o077:
        yield Finding("ok", f"{path}: for root alone")
    else:
        what = f"{path}: mode {mode:04o}, owner {about.st_uid}: not a file of root's alone, so no session token holds"
        yield Finding("fail", what, f"rm {path}: the agent makes new keys, and guests ask for new tokens")
