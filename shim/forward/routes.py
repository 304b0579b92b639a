"""Which backend answers a path. PURE.

Theory of operation. A backend reads a path again, by its own rules, after the route was chosen here. If the two
read it differently, a guest reaches through one route what belongs to another. So a path is decoded once (RFC 3986,
2.1), and one that some server would read in another way still is refused, whoever would have answered it: empty and
dotted segments (`/a/../b`, which also `..;` is to Tomcat), escaped separators, escapes within escapes, controls, and
what is not UTF-8. Whatever is left has one reading, and spellings of one path take one route.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from shim.core.exchange import Response
from shim.core.policy import Routes as Own
from shim.settings import EMBEDDED

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
# In a decoded path: `//`, a segment of one or two dots (parameters after `;` not counted), `\`, an escape, a control.
_AMBIGUOUS = re.compile(rb"/(?:\.{0,2}(?:;|/)|\.{1,2}\Z)|\\|%[0-9A-Fa-f]{2}|[\x00-\x1f\x7f]")

_TEXT = ((b"content-type", b"text/plain"),)
REFUSED = Response(400, _TEXT, b"ambiguous path\n")
NO_ROUTE = Response(404, _TEXT, b"not found\n")

OWN = b"/metashim"
"""Of metashim's own face, which no other backend has: embedded, unless a route says otherwise."""

_MEMO = 2048
_MEMO_BYTES = 256  # of a path; longer ones are rare, and a guest could fill the memory with them


def decode(path: bytes) -> bytes:
    """An absolute path percent-decoded, without its last slash (so `/` is empty). Raises ValueError if ambiguous."""
    if b"%" in path:
        path = _ESCAPE.sub(_decoded, path)
        path.decode()  # UnicodeDecodeError is a ValueError
    if not path.startswith(b"/"):
        raise ValueError("not an absolute path")
    if _AMBIGUOUS.search(path):
        raise ValueError("a path that two servers may read differently")
    return path.removesuffix(b"/")


def _decoded(escape: re.Match[bytes]) -> bytes:
    if escape[1] is None:
        raise ValueError("bad escape")
    byte = bytes((int(escape[1], 16),))
    if byte in b"/?#":
        raise ValueError("escaped separator")
    return byte


@lru_cache(maxsize=1024)
def compiled(routes: Own) -> dict[bytes, str]:
    """Backends by decoded prefix. Raises ValueError, which names the prefix, if one cannot be or is there twice."""
    table: dict[bytes, str] = {OWN: EMBEDDED}
    given = set()
    for prefix, backend in routes:
        try:
            path = decode(prefix.encode())
        except ValueError as error:
            raise ValueError(f"{prefix!r}: {error}") from None
        if path in given:
            raise ValueError(f"{prefix!r}: this prefix is there twice")
        given.add(path)
        table[path] = backend
    return table


class Routes:
    """The host's routes, path prefix to backend. Raises ValueError as `compiled`."""

    def __init__(self, host: Mapping[str, str]) -> None:
        self._host = compiled(tuple(host.items()))
        self._known: dict[tuple[bytes, Own | None], str | Response] = {}

    def backend(self, path: bytes, own: Own | None = None) -> str | Response:
        """The backend of the longest prefix of `path` (as sent) in whole segments, or what the guest gets instead.

        `own`: an instance's own routes, which take the place of the host's. Raises ValueError as `compiled`.
        """
        key = path, own
        known = self._known.get(key)
        if known is None:
            known = find(path, self._host if own is None else compiled(own))
            if len(path) <= _MEMO_BYTES:
                if len(self._known) >= _MEMO:
                    del self._known[next(iter(self._known))]
                self._known[key] = known
        return known

    def prefix(self, path: bytes, own: Own | None = None) -> str:
        """The prefix that this is by, empty where there is none."""
        found = longest(path, self._host if own is None else compiled(own))
        return "" if isinstance(found, Response) else found.decode() or "/"


def find(path: bytes, table: dict[bytes, str]) -> str | Response:
    """The backend of a path's longest prefix in a table as `compiled` makes it, or what the guest gets instead."""
    prefix = longest(path, table)
    return prefix if isinstance(prefix, Response) else table[prefix]


def longest(path: bytes, table: dict[bytes, str]) -> bytes | Response:
    """A path's longest prefix in such a table, or what the guest gets instead."""
    try:
        prefix = decode(path)
    except ValueError:
        return REFUSED
    while prefix not in table:
        if not prefix:
            return NO_ROUTE
        prefix = prefix[: prefix.rfind(b"/")]
    return prefix
