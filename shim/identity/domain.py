"""A libvirt domain's XML, as far as it says who is behind which tap. PURE.

https://libvirt.org/formatdomain.html; the metadata that Nova adds is made by nova/virt/libvirt/config.py
(LibvirtConfigGuestMetaNovaInstance): its namespace ends in 1.0, or since Ussuri in 1.1, which has the ports too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from shim.core.instance import parse_instance
from shim.core.names import parse_ip
from shim.identity.said import TEXT_MAX, Claim, plain, subject_of

XML_MAX = 1 << 22
"""Characters of a domain's XML; libvirt's own limit for an answer is 32 MiB."""

INTERFACES_MAX = 512

_NOVA = "{http://openstack.org/xmlns/libvirt/nova/"
_PORT_IN_TAP = 11
"""Nova names a tap by what it is for and the first characters of the port's uuid: tap6e2bf5d4-22."""


def claims_of(xml: str) -> list[Claim]:
    """One claim for each interface that has a tap, none where the domain does not run (it has no id). `xml` is
    `<domain>`, or `<domstatus>` around it.

    Raises ValueError, and nothing else, for what is no domain, or has what no claim may hold.
    """
    domain = _parsed(xml)
    if domain.get("id") is None:
        return []
    instance = str(parse_instance(domain.findtext("uuid") or ""))
    nova = next((e for e in domain.findall("metadata/*") if e.tag.startswith(_NOVA) and _is(e, "instance")), None)
    name, flavor, project = _about(domain, nova)
    interfaces = [e for e in domain.findall("devices/interface") if _attribute(e, "target", "dev")]
    if len(interfaces) > INTERFACES_MAX:
        raise ValueError(f"it has more than {INTERFACES_MAX} interfaces")
    claims = []
    for interface, port, address in _with_ports(interfaces, _ports(nova)):
        claim = Claim(
            tap=_attribute(interface, "target", "dev"),
            instance=instance,
            project=project,
            address=address,
            name=name,
            flavor=flavor,
            port=plain(port),
            mac=_attribute(interface, "mac", "address").lower(),
        )
        subject_of(claim)
        claims.append(claim)
    taps = [claim.tap for claim in claims]
    if twice := [tap for tap in taps if taps.count(tap) > 1]:
        raise ValueError(f"{twice[0]!r} is there twice")
    return claims


def _parsed(xml: str) -> Element:
    # No entity can be declared without one, so none can grow; libvirt writes none. Text of its own has &lt; there.
    if "<!DOCTYPE" in xml:
        raise ValueError("it has a document type")
    if len(xml) > XML_MAX:
        raise ValueError(f"it has more than {XML_MAX} characters")
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, UnicodeError) as error:
        raise ValueError(f"it is no XML: {error}") from None
    domain = root.find("domain") if root.tag == "domstatus" else root
    if domain is None or domain.tag != "domain":
        raise ValueError(f"it is no domain but <{plain(root.tag, 40)}>")
    return domain


def _about(domain: Element, nova: Element | None) -> tuple[str, str, str]:
    """(name, flavor, project): by Nova, or the domain's own name."""
    own = plain(domain.findtext("name") or "")
    if nova is None:
        return own, "", ""
    owner = next(_children(nova, "owner"), None)
    project = next(_children(owner, "project"), None)
    flavor = next(_children(nova, "flavor"), None)
    named = next(_children(nova, "name"), None)
    return (
        plain((named.text if named is not None else None) or "") or own,
        plain(flavor.get("name", "")) if flavor is not None else "",
        project.get("uuid", "")[:TEXT_MAX] if project is not None else "",
    )


def _ports(nova: Element | None) -> list[tuple[str, str]]:
    """(uuid, first fixed address) of each of Nova's ports: IPv4 if there is one."""
    ports = [port for all_of_them in _children(nova, "ports") for port in _children(all_of_them, "port")]
    return [(port.get("uuid", ""), _address(port)) for port in ports[:INTERFACES_MAX]]


def _address(port: Element) -> str:
    fixed = [ip for ip in _children(port, "ip") if ip.get("type") == "fixed"]
    for ip in sorted(fixed, key=lambda ip: ip.get("ipVersion") != "4"):
        try:
            return parse_ip(ip.get("address", ""))
        except ValueError:
            continue  # told to backends only: one that is none is worth no guest's service
    return ""


def _with_ports(interfaces: Sequence[Element], ports: Sequence[tuple[str, str]]) -> Iterator[tuple[Element, str, str]]:
    """Each interface with its port's uuid and address, as far as they are known.

    The interface names its port (Open vSwitch's interfaceid), or the tap's name does. Where no interface is known in
    either way, and there are as many of them as ports, their order counts, which is the same in Nova.
    """
    known = [_port_of(interface, ports) for interface in interfaces]
    if not any(port for port, _ in known) and len(interfaces) == len(ports):
        known = list(ports)
    for interface, (port, address) in zip(interfaces, known, strict=True):
        yield interface, port, address


def _port_of(interface: Element, ports: Sequence[tuple[str, str]]) -> tuple[str, str]:
    named = _attribute(interface, "virtualport/parameters", "interfaceid")
    if named:
        return named, next((address for port, address in ports if port == named), "")
    tap = _attribute(interface, "target", "dev")
    return next((one for one in ports if len(one[0]) == 36 and tap.endswith(one[0][:_PORT_IN_TAP])), ("", ""))


def _children(parent: Element | None, name: str) -> Iterator[Element]:
    """Nova's elements of that name, whichever version of its namespace they are in."""
    return (e for e in (parent if parent is not None else ()) if e.tag.startswith(_NOVA) and _is(e, name))


def _is(element: Element, name: str) -> bool:
    return element.tag.rpartition("}")[2] == name


def _attribute(element: Element, path: str, name: str) -> str:
    found = element.find(path)
    return (found.get(name, "") if found is not None else "").strip()
