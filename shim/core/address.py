"""Where a backend listens, or where metrics are served, as operators write it. PURE.

    http://HOST[:PORT]   https://HOST[:PORT]   unix:/PATH
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNIX_PATH_MAX = 107  # bytes of sockaddr_un.sun_path, its NUL aside: unix(7)

_URL = re.compile(r"(https?)://(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?/?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """One address: TCP (`host` a name or an IP address without brackets), or the Unix socket `path`."""

    text: str
    host: str = ""
    port: int = 0
    tls: bool = False
    path: str = ""

    @property
    def authority(self) -> bytes:
        """What a request's Host header says: the port is left out where it is the scheme's own (RFC 9110, 7.2)."""
        if self.path:
            return b"localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        own = _DEFAULT_PORTS["https" if self.tls else "http"]
        return (host if self.port == own else f"{host}:{self.port}").encode()


def parse_address(text: str) -> Address:
    """The address that `text` is. Raises ValueError, which says what it must look like."""
    if text.startswith("unix:"):
        return _unix(text, text.removeprefix("unix:"))
    found = _URL.fullmatch(text)
    port = int(found[4] or _DEFAULT_PORTS[found[1]]) if found else 0
    if not found or not 0 < port < 65536:
        raise ValueError(f"{text!r} is not http://HOST:PORT, https://HOST:PORT or unix:/PATH")
    return Address(text, found[2] or found[3], port, found[1] == "https")


def _unix(text: str, path: str) -> Address:
    if not path.startswith("/") or "\0" in path or len(path.encode()) > UNIX_PATH_MAX:
        raise ValueError(f"{text!r} is not unix: and the absolute path of a socket, at most {UNIX_PATH_MAX} bytes")
    return Address(text, path=path)
