"""Which paths are closed for an instance: by prefix or by topic, whatever version or face they are asked of. PURE.

A path is folded first: `/2009-04-04/user-data` and `/latest/user-data` are one, and so are the versions of `/openstack`
and of `/computeMetadata`. A topic is a word for what several faces show of one thing: who closes `user-data` closes
it on all of them.
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

_VERSION = re.compile(r"/(?:1\.0|latest|\d{4}-\d{2}-\d{2})(?=/|$)")
_OPENSTACK = re.compile(r"/openstack/[^/]+")
_GCE = re.compile(r"/computeMetadata/[^/]+")
_PREFIX = re.compile(r"/(?:[A-Za-z0-9._~:@+=,-]+/)*(?:[A-Za-z0-9._~:@+=,-]+/?)?")
PREFIX_BYTES = 256


def parse_prefix(text: str) -> str:
    """A prefix (folded, without its last slash; `/` is all) or a topic. Raises ValueError, in our own words."""
    if text in TOPICS:
        return text
    if len(text) > PREFIX_BYTES or not _PREFIX.fullmatch(text) or {".", ".."} & set(text.split("/")):
        raise ValueError(f"no prefix: write / or a path such as /latest/user-data, or one of {', '.join(TOPICS)}")
    return fold(text)


def fold(path: str) -> str:
    """A decoded path as closures are compared with it: its version as `latest` or `v1`, no slash at its end."""
    path = path.rstrip("/")
    if path.startswith("/openstack/"):
        return _OPENSTACK.sub("/openstack/latest", path, count=1)
    if path.startswith("/computeMetadata/"):
        return _GCE.sub("/computeMetadata/v1", path, count=1)
    if _VERSION.match(path):
        return _VERSION.sub("/latest", path, count=1)
    return path or WHOLE


def prefixes(closed: Iterable[str]) -> tuple[str, ...]:
    """The folded prefixes that prefixes and topics stand for."""
    return tuple(dict.fromkeys(one for each in closed for one in TOPICS.get(each, (each,))))


def is_closed(folded: str, prefixes: Iterable[str]) -> bool:
    """Whether a folded path is at or below one of the prefixes."""
    return any(prefix == WHOLE or folded == prefix or folded.startswith(prefix + "/") for prefix in prefixes)
