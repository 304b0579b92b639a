"""Which paths are closed for an instance: by prefix or by topic, whatever version or face they are asked of. PURE.

A path is folded first: `/2009-04-04/user-data` and `/latest/user-data` are one, and so are the versions of `/openstack`
and of `/computeMetadata`. Nova answers `/ec2/latest/user-data` as it does `/latest/user-data`, so these are one too.
A topic is a word for what several faces show of one thing: who closes `user-data` closes it on all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WHOLE = "/"

TOPICS: dict[str, tuple[str, ...]] = {
    "user-data": (
        "/latest/user-data",
        "/openstack/latest/user_data",
        "/computeMetadata/v1/instance/attributes/user-data",
        "/metashim/v1/user-data",
        "/metashim/v1/sources",
    ),
    "vendor-data": (
        "/openstack/latest/vendor_data.json",
        "/openstack/latest/vendor_data2.json",
        "/metashim/v1/vendor-data",
        "/metashim/v1/sources",
    ),
    "keys": (
        "/latest/meta-data/public-keys",
        "/computeMetadata/v1/instance/attributes/ssh-keys",
        "/computeMetadata/v1/instance/attributes/sshKeys",
        "/openstack/latest/meta_data.json",
    ),
    "kv": ("/metashim/v1/kv", "/computeMetadata/v1/instance/guest-attributes"),
}
"""Topic to folded prefixes."""

# What stands for a version, and how it is folded. Content (of Nova's) has none.
_FOLDS = (
    (re.compile(r"/openstack/(?!content(?:/|\Z))[^/]+"), "/openstack/latest"),
    (re.compile(r"/computeMetadata/[^/]+"), "/computeMetadata/v1"),
    (re.compile(r"/ec2\Z|/(?:ec2/)?(?:1\.0|latest|[0-9]{4}-[0-9]{2}-[0-9]{2})(?=/|\Z)"), "/latest"),
)
_PREFIX = re.compile(r"/(?:[A-Za-z0-9._~:@+=,-]+/)*(?:[A-Za-z0-9._~:@+=,-]+/?)?")
PREFIX_BYTES = 256


def parse_prefix(text: str) -> str:
    """A prefix (folded, without its last slash; `/` is all) or a topic, of at most PREFIX_BYTES: what this gives is
    what it takes. Raises ValueError, in our own words."""
    if text in TOPICS:
        return text
    if not _PREFIX.fullmatch(text) or {".", ".."} & set(text.split("/")):
        raise ValueError(f"no prefix: write / or a path such as /latest/user-data, or one of {', '.join(TOPICS)}")
    folded = fold(text)
    if max(len(text), len(folded)) > PREFIX_BYTES:
        raise ValueError(f"no prefix: it has more than {PREFIX_BYTES} bytes")
    return folded


_PARAMETERS = re.compile(r";[^/]*")
"""Of a segment (RFC 3986, 3.3): there are servers to which they are no part of its name."""


def fold(path: str) -> str:
    """A decoded path as closures are compared with it: its version as `latest` or `v1`, no parameters (`;x`), no slash
    at its end."""
    path = (_PARAMETERS.sub("", path) if ";" in path else path).rstrip("/")
    for version, folded in _FOLDS:
        found = version.match(path)
        if found is not None:
            return folded + path[found.end() :]
    return path or WHOLE


def prefixes(closed: Iterable[str]) -> tuple[str, ...]:
    """The folded prefixes that prefixes and topics stand for."""
    return tuple(dict.fromkeys(one for each in closed for one in TOPICS.get(each, (each,))))


def closing(folded: str, closed: Iterable[str]) -> str | None:
    """The first of the prefixes and topics that a folded path is closed by."""
    return next((one for one in closed if is_closed(folded, TOPICS.get(one, (one,)))), None)


def is_closed(folded: str, prefixes: Iterable[str]) -> bool:
    """Whether a folded path is at or below one of the prefixes."""
    return any(prefix == WHOLE or folded == prefix or folded.startswith(prefix + "/") for prefix in prefixes)
