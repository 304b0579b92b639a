"""What a request's target says: the segments of its path, the parameters of its query. PURE."""

from __future__ import annotations

import re

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile("[\x00-\x1f\x7f]")

Parameters = dict[str, list[str]]


def split(path: bytes) -> tuple[str, ...]:
    """The segments of an absolute path, percent-decoded once; a trailing slash makes no difference.

    An empty or dotted segment stays as it is: nothing has such a name, so it is not found. Raises
    ValueError for a bad escape, what is not UTF-8, and control characters.
    """
    if not path.startswith(b"/"):
        raise ValueError("not an absolute path")
    if path == b"/":
        return ()
    raw = path[1:-1] if path.endswith(b"/") else path[1:]
    if b"%" in raw:
        return tuple(_decoded(segment) for segment in raw.split(b"/"))
    return tuple(_checked(raw.decode()).split("/"))


def parameters(query: bytes) -> Parameters:
    """The parameters of a query by name, each with its values in their order. What is badly escaped stays as it is,
    and what is not UTF-8 is replaced: no query is wrong as such."""
    found: Parameters = {}
    for pair in query.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            found.setdefault(_lenient(name), []).append(_lenient(value))
    return found


def says(query: Parameters, name: str, value: str) -> bool:
    """Whether a parameter is there with this value (in lower case; it may come in any)."""
    return value in (one.lower() for one in query.get(name, ()))


def _decoded(segment: bytes) -> str:
    if _BAD_ESCAPE.search(segment):
        raise ValueError("bad escape")
    return _checked(_unescaped(segment).decode())


def _checked(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("control character")
    return text


def _lenient(raw: bytes) -> str:
    return _unescaped(raw.replace(b"+", b" ")).decode(errors="replace")


def _unescaped(raw: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), raw)
