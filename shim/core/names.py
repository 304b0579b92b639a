"""What the kernel lets an interface and iproute2 lets a network namespace be called. PURE."""

from __future__ import annotations

NETNS_NAME_MAX = 255  # a file name under /run/netns
TAP_NAME_MAX = 15  # IFNAMSIZ, its NUL aside


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


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
