"""The OpenStack face: `/openstack`, as Nova shows it and cloud-init reads it. PURE.

`random_seed` is not served: Nova's is fresh with every request, which a cached answer cannot be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec

from shim.metadata.document import Document
from shim.metadata.network_data import network_data
from shim.metadata.tree import BINARY, JSON, Directory, Leaf, Node, text

VERSIONS = (
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
    "2025-04-04",
)

LATEST = "latest"  # sorts after every date, and so has every file

File = Callable[[UUID, Document, str], Leaf | None]


def find(instance: UUID, document: Document, segments: tuple[str, ...]) -> Node | None:
    """The node at `/openstack/` + segments; None for an unknown path or version."""
    if not segments:
        return text("\n".join((*VERSIONS, LATEST)))
    if segments[0] != LATEST and segments[0] not in VERSIONS:
        return None
    return version_tree(instance, document, segments[0]).find(segments[1:])


def version_tree(instance: UUID, document: Document, version: str) -> Directory:
    """The files of one version that this instance has."""
    tree = Directory()
    for since, name, file in _FILES:
        leaf = file(instance, document, version) if version >= since else None
        if leaf is not None:
            tree.plant(name, leaf)
    return tree


def _json(value: Any) -> Leaf:
    return Leaf(msgspec.json.encode(value), JSON)


def _meta_data(instance: UUID, document: Document, version: str) -> Leaf:
    facts: dict[str, Any] = {"uuid": str(instance), "launch_index": document.launch_index}
    optional: dict[str, Any] = {
        "name": document.name,
        "hostname": document.full_host,
        "availability_zone": document.availability_zone,
        "meta": document.meta or None,
        "project_id": document.project_id if version >= "2015-10-15" else None,
        "devices": [] if version >= "2016-06-30" else None,
    }
    facts |= {name: value for name, value in optional.items() if value is not None}
    return _json(facts | _keys(document.public_keys))


def _keys(public_keys: dict[str, str]) -> dict[str, Any]:
    if not public_keys:
        return {}
    keys = {name: key.strip() for name, key in public_keys.items()}
    return {
        "public_keys": keys,
        "keys": [{"name": name, "type": "ssh", "data": data} for name, data in keys.items()],
    }


def _user_data(_i: UUID, document: Document, _v: str) -> Leaf | None:
    raw = document.user_bytes
    return Leaf(raw, BINARY) if raw is not None else None


def _network_data(_i: UUID, document: Document, _v: str) -> Leaf | None:
    """None without networks, where Nova answers `{}`: cloud-init takes that for "configure nothing"."""
    return _json(network_data(document.networks)) if document.networks else None


def _vendor_data(value: Any) -> Leaf:
    """`{}` when there is none, as Nova answers."""
    return _json({} if value is None else value)


_FILES: tuple[tuple[str, str, File], ...] = (
    # The version that brought a file, its name, its content (None: not there).
    ("2012-08-10", "meta_data.json", _meta_data),
    ("2012-08-10", "user_data", _user_data),
    ("2013-04-04", "password", lambda _i, _d, _v: Leaf(b"")),  # none has been posted
    ("2013-10-17", "vendor_data.json", lambda _i, d, _v: _vendor_data(d.vendor_data)),
    ("2015-10-15", "network_data.json", _network_data),
    ("2016-10-06", "vendor_data2.json", lambda _i, d, _v: _vendor_data(d.vendor_data2)),
)
