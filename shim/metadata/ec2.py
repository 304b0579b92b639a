"""The EC2 face: the instance metadata tree as Amazon's and Nova's services show it. PURE.

What is not known of an instance is not there at all, and no listing names it: cloud-init crawls the whole
tree and gives everything up at the first listed name that it cannot get.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial
from uuid import UUID

import msgspec

from shim.core.closure import fold
from shim.metadata import compose, leaves
from shim.metadata.document import Document
from shim.metadata.network import Network
from shim.metadata.tree import Directory, Late, Leaf, Node, text
from shim.metadata.view import View

VERSIONS = (
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2016-09-02",
    "2018-09-24",
    "2020-11-01",
    "2021-01-03",
    "2021-03-23",
)
"""What `/` lists: Nova's versions, then those that clients of today ask for. Any later date is served too."""

LATEST = "latest"  # sorts after every date, and so has every key

Fact = Callable[[UUID, Document], str | None]


def find(view: View, segments: tuple[str, ...]) -> Node | None:
    """The node at `/` + segments; None for an unknown path or version. Nothing closed is in it."""
    if not segments:
        return text("\n".join(versions(view)))
    version, path = segments[0], segments[1:]
    if not served(version):
        return None
    tree = Directory()
    for name, make in _TOPS.items():
        if not path or path[0] == name:
            node = make(view, version, path[1] if len(path) > 1 else "")
            if node is not None:
                tree.children[name] = node
    if view.closed:
        tree.hide(fold(f"/{version}"), view.is_closed)
    return tree.find(path)


def versions(view: View) -> list[str]:
    """What `/` lists."""
    return [one for one in (*VERSIONS, LATEST) if not view.closed or not view.is_closed(fold(f"/{one}"))]


def served(version: str) -> bool:
    """Whether this names a version: a listed one, `latest`, or any date since the first."""
    if version in VERSIONS or version == LATEST:
        return True
    return _is_date(version) and version > VERSIONS[1]


def _is_date(version: str) -> bool:
    # fromisoformat also takes 20210323 and 2021-W12-2, which are no versions.
    try:
        return date.fromisoformat(version).isoformat() == version
    except ValueError:
        return False


def _user_data(view: View, _version: str, _name: str) -> Late | None:
    return Late(partial(leaves.user_data, view)) if compose.has_user_data(view) else None


def _dynamic(view: View, version: str, _name: str) -> Directory | None:
    if version < "2009-04-04":
        return None
    identity = Late(partial(_identity, view.instance, view.document))
    return Directory({"instance-identity": Directory({"document": identity})})


def _meta_data(view: View, version: str, name: str) -> Directory:
    """Keys that were added to EC2 after that version are left out; and all but `name`, if there is one."""
    instance, document = view.instance, view.document
    tree = Directory()
    for since, head, path, fact in _FACTS:
        if version >= since and (not name or name == head):
            value = fact(instance, document)
            if value is not None:
                tree.plant(path, text(value))
    for since, head, branch in _BRANCHES:
        if version >= since and (not name or name == head):
            node = branch(document, version)
            if node is not None:
                tree.children[head] = node
    return tree


_TOPS: dict[str, Callable[[View, str, str], Node | None]] = {
    "meta-data": _meta_data,
    "user-data": _user_data,
    "dynamic": _dynamic,
}
"""All that a version serves; None: this one does not, or the instance has none."""


def _public_keys(document: Document, _version: str) -> Directory | None:
    """`0=name` is listed for the directory `0`, which holds `openssh-key`."""
    keys = document.public_keys
    return _directory(
        {
            str(number): Directory({"openssh-key": text(key.strip())}, label=f"{number}={name}")
            for number, (name, key) in enumerate(keys.items())
        }
    )


def _tags(document: Document, _version: str) -> Directory | None:
    if not document.tags or not document.tags_in_metadata:
        return None
    return Directory({"instance": Directory({key: text(value) for key, value in document.tags.items()})})


def _network(document: Document, version: str) -> Directory | None:
    macs = _directory(
        {
            network.link_mac: _interface(number, network, document, version)
            for number, network in enumerate(_interfaces(document))
        }
    )
    return Directory({"interfaces": Directory({"macs": macs})}) if macs is not None else None


def _directory(children: dict[str, Node]) -> Directory | None:
    """None where it would be empty."""
    return Directory(children) if children else None


def _interfaces(document: Document) -> list[Network]:
    """EC2 knows interfaces but not VLANs upon them."""
    return [network for network in document.networks if network.vlan is None]


def _interface(number: int, network: Network, document: Document, version: str) -> Directory:
    facts: dict[str, str | None] = {
        "device-number": str(number),
        "mac": network.link_mac,
        "local-hostname": document.full_host,
        "owner-id": document.project_id,
    }
    if v4 := network.interfaces(4):
        facts["local-ipv4s"] = "\n".join(str(one.ip) for one in v4)
        facts["subnet-ipv4-cidr-block"] = str(v4[0].network)
    if (v6 := network.interfaces(6)) and version >= "2016-06-30":
        facts["ipv6s"] = "\n".join(str(one.ip) for one in v6)
        facts["subnet-ipv6-cidr-blocks"] = "\n".join(dict.fromkeys(str(one.network) for one in v6))
    return Directory({name: text(value) for name, value in facts.items() if value is not None})


def _first_address(document: Document, version: int) -> str | None:
    found = (one for network in document.networks for one in network.interfaces(version))
    return next((str(one.ip) for one in found), None)


def _identity(instance: UUID, document: Document) -> Leaf:
    """The instance identity document, unsigned; what is unknown is null, as Amazon writes it."""
    facts = {
        "accountId": document.project_id,
        "architecture": None,
        "availabilityZone": document.availability_zone,
        "billingProducts": None,
        "devpayProductCodes": None,
        "imageId": document.image_id,
        "instanceId": str(instance),
        "instanceType": document.instance_type,
        "kernelId": None,
        "pendingTime": None,
        "privateIp": _first_address(document, 4),
        "ramdiskId": None,
        "region": document.region,
        "version": "2017-09-30",
    }
    return Leaf(msgspec.json.format(msgspec.json.encode(facts), indent=2))


_FACTS_OF: tuple[tuple[str, str, Fact], ...] = (
    # The version that brought a key, its path, its value (None: not known, so not there).
    ("1.0", "ami-id", lambda _, d: d.image_id),
    ("1.0", "ami-launch-index", lambda _, d: str(d.launch_index)),
    ("1.0", "hostname", lambda _, d: d.full_host),
    ("1.0", "instance-id", lambda i, _: str(i)),
    ("1.0", "local-ipv4", lambda _, d: _first_address(d, 4)),
    # EC2 numbers a launch, which may have started several instances; here each is its own.
    ("1.0", "reservation-id", lambda i, _: f"r-{i.hex[:8]}"),
    ("2007-01-19", "local-hostname", lambda _, d: d.full_host),
    ("2007-01-19", "public-hostname", lambda _, d: d.full_host),
    ("2007-08-29", "instance-type", lambda _, d: d.instance_type),
    ("2008-02-01", "placement/availability-zone", lambda _, d: d.availability_zone),
    ("2008-09-01", "instance-action", lambda _i, _d: "none"),
    ("2011-01-01", "mac", lambda _, d: next((one.link_mac for one in _interfaces(d)), None)),
    ("2020-08-24", "placement/region", lambda _, d: d.region),
    ("2021-01-03", "ipv6", lambda _, d: _first_address(d, 6)),
)
_FACTS = tuple((since, path.partition("/")[0], path, fact) for since, path, fact in _FACTS_OF)

_BRANCHES: tuple[tuple[str, str, Callable[[Document, str], Directory | None]], ...] = (
    # The same of what is a directory.
    ("1.0", "public-keys", _public_keys),
    ("2011-01-01", "network", _network),
    ("2021-03-23", "tags", _tags),
)
