"""The OpenStack face: `/openstack`, as Nova shows it and cloud-init reads it. PURE.

`random_seed` is not served: Nova's is fresh with every request, which a cached answer cannot be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from shim.metadata import compose, facts, leaves
from shim.metadata.network_data import network_data
from shim.metadata.tree import JSON, Directory, Late, Leaf, Node, text
from shim.metadata.view import View

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

BASE = "/openstack/latest"
"""A version's folded path: what is closed in one is in all."""

File = Callable[[View, str], Leaf | Late | None]


def find(view: View, segments: tuple[str, ...]) -> Node | None:
    """The node at `/openstack/` + segments; None for an unknown path or version. Nothing closed is in it."""
    if not segments:
        return text("" if view.is_closed(BASE) else "\n".join((*VERSIONS, LATEST)))
    version, path = segments[0], segments[1:]
    if version != LATEST and version not in VERSIONS:
        return None
    tree = Directory()
    for since, name, file in _FILES:
        if version >= since and (not path or path[0] == name) and not view.is_closed(f"{BASE}/{name}"):
            leaf = file(view, version)
            if leaf is not None:
                tree.children[name] = leaf
    return tree.find(path)


_FIELDS_SINCE = {"project_id": "2015-10-15", "devices": "2016-06-30"}
"""The version that brought a field of meta_data.json, where it was not the first."""


def _json(value: Any) -> Leaf:
    return Leaf(msgspec.json.encode(value), JSON)


def _meta_data(view: View, version: str) -> Leaf:
    found = facts.meta_data(view)
    return _json({name: value for name, value in found.items() if version >= _FIELDS_SINCE.get(name, "")})


def _user_data(view: View, _version: str) -> Late | None:
    return Late(partial(leaves.user_data, view)) if compose.has_user_data(view) else None


def _network_data(view: View, _version: str) -> Leaf | None:
    """None without networks, where Nova answers `{}`: cloud-init takes that for "configure nothing"."""
    networks = view.document.networks
    return _json(network_data(networks)) if networks else None


def _vendor_data(view: View, _version: str) -> Late:
    return Late(partial(leaves.vendor_data, view))


def _vendor_data2(view: View, _version: str) -> Leaf:
    """`{}` when there is none, as Nova answers."""
    value = view.document.vendor_data2
    return _json({} if value is None else value)


_FILES: tuple[tuple[str, str, File], ...] = (
    # The version that brought a file, its name, its content (None: not there).
    ("2012-08-10", "meta_data.json", _meta_data),
    ("2012-08-10", "user_data", _user_data),
    ("2013-04-04", "password", lambda _view, _version: Leaf(b"")),  # none has been posted
    ("2013-10-17", "vendor_data.json", _vendor_data),
    ("2015-10-15", "network_data.json", _network_data),
    ("2016-10-06", "vendor_data2.json", _vendor_data2),
)
