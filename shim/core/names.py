"""What names may look like: of interfaces and network namespaces as the kernel and iproute2 take them, of projects,
and the addresses of instances. PURE.
"""

from __future__ import annotations

import ipaddress
import re

NETNS_NAME_MAX = 255  # a file name under /run/netns
TAP_NAME_MAX = 15  # IFNAMSIZ, its NUL aside

_PROJECT = re.compile(r"[!-~]{1,64}")  # what a header's value and one word of an alias can hold


def parse_tap(text: str) -> str:
    """The name of an interface, unchanged. Raises ValueError where the kernel's dev_valid_name() says no."""
    bad = any(c in "/:\0" or c.isspace() for c in text)
    if not text or text in (".", "..") or bad or _size(text) > TAP_NAME_MAX:
        raise ValueError(f"{text!r} is not the name of an interface: 1 to 15 bytes without space, / or :")
    return text


def parse_netns(text: str) -> str:
    """A namespace as `ip netns` lists it, unchanged; empty is the agent's own. Raises ValueError."""
    bad = any(c == "/" or ord(c) < 32 for c in text)
    if text in (".", "..") or bad or _size(text) > NETNS_NAME_MAX:
        raise ValueError(f"{text!r} is not the name of a network namespace: see `ip netns list`")
    return text


def parse_project(text: str) -> str:
    """A project's id, unchanged; empty where there is none. Raises ValueError."""
    if text and not _PROJECT.fullmatch(text):
        raise ValueError(f"{text!r} is not a project's id: 1 to 64 printable ASCII characters without space")
    return text


def parse_ip(text: str) -> str:
    """An instance's IP address in its usual spelling; empty where there is none. Raises ValueError."""
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or getattr(address, "scope_id", None):
        raise ValueError(f"{text!r} is not an IP address: write one, as in 10.0.0.5 or 2001:db8::5")
    return str(address)


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
