"""What GCE's face shows of an instance: a tree of plain values, whose directories are dicts. PURE.

    str, int    a leaf, text or a number
    Words       a leaf of several words
    Held        a leaf of any bytes, which reading may use up
    Branch      a directory; Numbered, Named: see there
    a callable  what is there is told when it is looked at: None is nothing, and it may raise compose.Unready
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TypeAlias

from shim.metadata import leaves
from shim.metadata.compose import Unready
from shim.metadata.document import Document
from shim.metadata.network import Network, link_ids
from shim.metadata.parts import is_text
from shim.metadata.tree import by_value
from shim.metadata.view import View

BASE = "/computeMetadata/v1"
"""A version's folded path: what is closed in one is in all."""
ATTRIBUTES = f"{BASE}/instance/attributes"
USER_DATA = "user-data"
ENCODING = "user-data-encoding"
GUEST_ATTRIBUTES = "guest-attributes"

_NO_USER_NAME = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class Words:
    """A line each, or a JSON array; `json`: that is how they are shown to who does not say."""

    words: tuple[str, ...]
    json: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """`tag` is its entity tag, empty for that of its bytes. What is `apart` is in no recursive answer, as all is that
    reading uses up. `encoded`: it is base64 of what it is."""

    body: bytes
    tag: str = ""
    claims: tuple[str, ...] = ()
    apart: bool = False
    encoded: bool = False


class Branch(dict[str, "Thing | Callable[[], Thing | None]"]):
    """A directory whose names are GCE's own: `mac-address` is `macAddress` in JSON."""


class Numbered(Branch):
    """One of `0/`, `1/`, …: an array in JSON."""


class Named(Branch):
    """One whose names an operator or the guest chose: they stay as they are."""


Thing: TypeAlias = str | int | Words | Held | Branch


def tree(view: View) -> Branch:
    """All below `/computeMetadata/v1/`. Nothing closed is in it."""
    found = Branch(instance=_instance(view), project=_project(view))
    if view.closed:
        _hide(found, BASE, view.is_closed)
    return found


def allows_guest_attributes(document: Document) -> bool:
    """Whether the guest may read and write its attributes, as GCE's switch for that says."""
    return document.meta.get("enable-guest-attributes", "").strip().upper() == "TRUE"


def children(branch: Branch) -> list[tuple[str, Thing]]:
    """What there is in a directory, by name; numbers by value. What is not ready is left out."""
    found = []
    for name in sorted(branch, key=by_value):
        try:
            thing = made(branch[name])
        except Unready:
            continue
        if thing is not None:
            found.append((name, thing))
    return found


def made(thing: Thing | Callable[[], Thing | None] | None) -> Thing | None:
    """What is there. Raises compose.Unready."""
    return thing() if callable(thing) else thing


def _hide(branch: Branch, base: str, is_closed: Callable[[str], bool]) -> None:
    for name, thing in list(branch.items()):
        path = f"{base}/{name}"
        if is_closed(path):
            del branch[name]
        elif isinstance(thing, Branch):
            _hide(thing, path, is_closed)


def _number(text: str) -> int:
    """GCE's ids are numbers: 63 bits that follow from the text, never 0."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1 or 1


def _project_number(view: View) -> int:
    project = view.project
    if project.isascii() and project.isdigit() and 0 < int(project[:20]) < 2**63 and len(project) < 20:
        return int(project)
    return _number(project) if project else 0


def _project(view: View) -> Branch:
    found = Branch(attributes=Named())
    if view.project:
        found["project-id"] = view.project
        found["numeric-project-id"] = _project_number(view)
    return found


def _instance(view: View) -> Branch:
    """GCE has a name, a zone and a host name for each, and its clients want them, so where nothing is known these are
    the id and `unknown`. What else is not known is not there."""
    document = view.document
    project = f"projects/{_project_number(view)}"
    name = document.host or str(view.instance)
    found = Branch(
        {
            "attributes": _attributes(view),
            "description": "",
            "hostname": document.full_host or name,
            "id": _number(str(view.instance)),
            "maintenance-event": "NONE",
            "name": name,
            "network-interfaces": _interfaces(document, project),
            "preempted": "FALSE",
            "service-accounts": Named(),
            "tags": Words(_tags(document), json=True),
            "virtual-clock": Branch({"drift-token": "0"}),
            "zone": f"{project}/zones/{document.availability_zone or document.region or 'unknown'}",
        }
    )
    if document.instance_type:
        found["machine-type"] = f"{project}/machineTypes/{document.instance_type}"
    if document.image_id:
        found["image"] = document.image_id
    if allows_guest_attributes(document):
        # Keys are looked at only if they are asked for, so what is closed there is left out as they are planted.
        found[GUEST_ATTRIBUTES] = Kept(partial(_guest_attributes, view))
    return found


def _tags(document: Document) -> tuple[str, ...]:
    """GCE's are words without a value."""
    if not document.tags_in_metadata:
        return ()
    return tuple(f"{key}={value}" if value else key for key, value in document.tags.items())


def _interfaces(document: Document, project: str) -> Numbered:
    """GCE knows interfaces but not VLANs upon them."""
    named = zip(link_ids(document.networks), document.networks, strict=True)
    plain = [(name, network) for name, network in named if network.vlan is None]
    return Numbered({str(number): _interface(*one, project) for number, one in enumerate(plain)})


def _interface(name: str, network: Network, project: str) -> Branch:
    v4, v6 = network.interfaces(4), network.interfaces(6)
    facts: dict[str, Thing | None] = {
        "access-configs": Numbered(),
        "dns-servers": Words(network.dns),
        "forwarded-ips": Numbered(),
        "gateway": network.gateway4,
        "gateway-ipv6": network.gateway6,
        "ip": str(v4[0].ip) if v4 else None,
        "ip-aliases": Numbered({str(number): f"{one.ip}/32" for number, one in enumerate(v4[1:])}),
        "ipv6s": Words(tuple(str(one.ip) for one in v6)) if v6 else None,
        "mac": network.link_mac,
        "mtu": network.mtu,
        "network": f"{project}/networks/{name}",
        "subnetmask": str(v4[0].netmask) if v4 else None,
        "target-instance-ips": Numbered(),
    }
    return Branch({key: value for key, value in facts.items() if value is not None})


def _attributes(view: View) -> Named:
    """The document's `meta`, and what GCE keeps there, unless `meta` has it itself."""
    document = view.document
    found = Named()
    if document.public_keys:
        found["ssh-keys"] = "\n".join(f"{_user(name)}:{key.strip()}" for name, key in document.public_keys.items())
    found.update({name: value for name, value in document.meta.items() if _is_name(name)})
    if USER_DATA not in document.meta:
        found.pop(ENCODING, None)
        found[USER_DATA] = user_data = Kept(partial(_user_data, view))
        found[ENCODING] = partial(_encoding, user_data)
    if view.is_closed(f"{ATTRIBUTES}/{USER_DATA}"):
        found.pop(ENCODING, None)  # old cloud-inits decode what is not there
    return found


def _user(name: str) -> str:
    """A key's name as that of a user, who it is for in GCE's eyes."""
    return _NO_USER_NAME.sub("-", name).lstrip("-.") or "user"


def _is_name(name: str) -> bool:
    """Whether `meta`'s name can be one of a path and a listing."""
    return name not in ("", ".", "..") and name.isprintable() and "/" not in name


class Kept:
    """What is made when it is first looked at, and not again; that it cannot be made now is kept too."""

    def __init__(self, make: Callable[[], Thing | None]) -> None:
        self._make: Callable[[], Thing | None] | None = make
        self._thing: Thing | None = None
        self._fault: Unready | None = None

    def __call__(self) -> Thing | None:
        """The thing. Raises compose.Unready."""
        if self._make is not None:
            make, self._make = self._make, None
            try:
                self._thing = make()
            except Unready as fault:
                self._fault = fault
        if self._fault is not None:
            raise self._fault
        return self._thing


def _user_data(view: View) -> Held | None:
    """What is no text is in base64, as cloud-init expects of GCE."""
    leaf = leaves.user_data(view)
    if leaf is None:
        return None
    encoded = not is_text(leaf.body)
    return Held(b64encode(leaf.body) if encoded else leaf.body, leaf.tag, leaf.claims, encoded=encoded)


def _encoding(user_data: Kept) -> Held | None:
    """How that is encoded, where that is to be said."""
    held = user_data()
    return Held(b"base64", apart=bool(held.claims)) if isinstance(held, Held) and held.encoded else None


def _guest_attributes(view: View) -> Named:
    """`guest/NS/KEY`, by namespace."""
    found = Named()
    for key, value in view.values.items():
        root, *path = key.split("/")
        if root != "guest" or len(path) < 2 or view.is_closed(f"{BASE}/instance/{GUEST_ATTRIBUTES}/{'/'.join(path)}"):
            continue
        branch: Branch = found
        for name in path[:-1]:
            inner = branch.setdefault(name, Named())
            if not isinstance(inner, Branch):
                break
            branch = inner
        else:
            leaf = leaves.key(value)
            branch[path[-1]] = Held(leaf.body, leaf.tag, leaf.claims)
    return found
