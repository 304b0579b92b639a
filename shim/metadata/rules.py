"""What the single values of a document may be. PURE.

Every check takes the place of the value in the document (`networks[0].mac`), for the message, and raises
InputError that says what is allowed and what to do. Shapes and ranges are msgspec's matter; here is what
a type cannot say.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Hashable, Iterable
from typing import NoReturn

from shim.errors import InputError

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

USER_DATA_BASE64_BYTES = 65_535
"""Nova's limit (the column that holds it): bytes of user-data after base64."""

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
# What EC2 allows once tags are served as metadata: a key is a path segment there.
_TAG_KEY = re.compile(r"[A-Za-z0-9+\-=.,_:@]{1,128}")
_TAG_KEY_TAKEN = frozenset({".", "..", "_index"})
# cloud-init reads a listed `5=x` as a public key's entry and asks for `5/openssh-key`.
_TAG_KEY_LIKE_A_KEY_INDEX = re.compile(r"[+-]?[0-9_]+=")


def refuse(where: str, what: str, hint: str = "") -> NoReturn:
    """Raise the InputError of one field."""
    raise InputError(f"{where}: {what}", hint)


def line(where: str, value: str) -> None:
    """One printable line: guests split what they read at line ends."""
    if not value:
        refuse(where, "is empty", "leave the field out instead")
    if not value.isprintable():
        refuse(where, "holds a control character or a line end", "write one line of printable text")
    if value != value.strip():
        refuse(where, "begins or ends with a space", "remove it")


def is_host_name(value: str) -> bool:
    """Whether this is a name as RFC 1123 section 2.1 has it, of one label or more."""
    return len(value) <= 253 and all(_LABEL.fullmatch(label) for label in value.split("."))


def host_name(where: str, value: str) -> None:
    """A host name with or without its domain."""
    if not is_host_name(value):
        refuse(
            where,
            f"{value!r} is not a host name",
            "use letters, digits and inner hyphens, at most 63 between dots, as in web-1.example.org",
        )


def mac(where: str, value: str) -> None:
    """A unicast Ethernet address, colons between its six bytes."""
    if not _MAC.fullmatch(value):
        refuse(where, f"{value!r} is not a MAC address", "write it as in fa:16:3e:00:00:01")
    if int(value[:2], 16) & 1:
        refuse(where, f"{value} is a multicast address", "an interface's first byte is even")


def link_id(where: str, value: str) -> None:
    """The name of a link: cloud-init builds interface names from it, so no spaces."""
    line(where, value)
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", value):
        refuse(where, f"{value!r} is not a link's id", "use at most 64 letters, digits, and . _ : -")


def interface(where: str, value: str) -> Interface:
    """An interface's address with its prefix length, as in 192.0.2.10/24."""
    address, slash, prefix = value.partition("/")
    try:
        if not (slash and prefix.isascii() and prefix.isdigit()):
            raise ValueError
        parsed = ipaddress.ip_interface(value)
    except ValueError:
        refuse(
            where,
            f"{value!r} is not an address with a prefix length",
            "write it as in 192.0.2.10/24 or 2001:db8::5/64",
        )
    _usable(where, address, parsed.ip)
    _not_the_subnet_itself(where, parsed)
    return parsed


def address(where: str, value: str) -> Address:
    """A unicast address without a prefix length."""
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        refuse(where, f"{value!r} is not an IP address", "write it as in 192.0.2.1 or 2001:db8::1")
    _usable(where, value, parsed)
    return parsed


def subnet(where: str, value: str) -> Subnet:
    """A destination of a route, host bits zero."""
    try:
        if "/" not in value:
            raise ValueError
        return ipaddress.ip_network(value)
    except ValueError:
        hint = "write it as in 198.51.100.0/24, with no bit set beyond its length"
        refuse(where, f"{value!r} is not a subnet", hint)


def _usable(where: str, text: str, parsed: Address) -> None:
    if "%" in text or (isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped):
        refuse(where, f"{text} has a zone or an IPv4 address inside", "write a plain IPv6 address")
    if parsed.is_multicast or parsed.is_unspecified or parsed.is_loopback or parsed == _BROADCAST:
        refuse(where, f"{text} is no unicast address", "write an address that one host can have")


_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def _not_the_subnet_itself(where: str, parsed: Interface) -> None:
    net = parsed.network
    if net.prefixlen >= net.max_prefixlen - 1:
        return
    if parsed.ip == net.network_address:
        refuse(where, f"{parsed.ip} names the subnet, not a host in it", "write the host's own address")
    if net.version == 4 and parsed.ip == net.broadcast_address:
        refuse(where, f"{parsed.ip} is the subnet's broadcast address", "write the host's own address")


def unique(where: str, values: Iterable[Hashable]) -> None:
    """No value twice."""
    seen = set()
    for value in values:
        if value in seen:
            refuse(where, f"{value} is there twice", "keep one of the two")
        seen.add(value)


def tag(where: str, key: str, value: str) -> None:
    """A tag by EC2's rules for tags in instance metadata."""
    if not _TAG_KEY.fullmatch(key) or key in _TAG_KEY_TAKEN:
        refuse(
            where,
            f"the key {key[:140]!r} is not allowed",
            "use 1 to 128 letters, digits, and + - = . , _ : @ (no space, no slash; not . or .. or _index)",
        )
    if _TAG_KEY_LIKE_A_KEY_INDEX.match(key):
        refuse(where, f"the key {key!r} starts with a number and =", "guests take that for a public key")
    if len(value) > 256:
        refuse(where, f"the value of {key!r} has {len(value)} characters", "256 is the most")
    if value and not value.isprintable():
        refuse(where, f"the value of {key!r} holds a control character", "write one line of printable text")


def public_key(where: str, name: str, key: str) -> None:
    """A public key in OpenSSH's one-line form, and a name that a listing can hold."""
    line(where, name)
    if "/" in name:
        refuse(where, f"the key's name {name!r} holds a slash", "guests take that for a directory; rename it")
    place = f"{where}.{name}"
    if "PRIVATE KEY" in key:
        refuse(place, "this is a private key", "write the public one, from a file like id_ed25519.pub")
    words = key.split(maxsplit=2)
    if len(key.strip().splitlines()) != 1 or len(words) < 2 or not _is_key_blob(words[0], words[1]):
        refuse(place, "is not a public key", "write one line as in a .pub file: ssh-ed25519 AAAA... comment")


def _is_key_blob(kind: str, encoded: str) -> bool:
    """Whether the blob begins with its own kind as a string with a length (RFC 4253 section 6.6)."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    name = kind.encode()
    return blob.startswith(len(name).to_bytes(4, "big") + name) and len(blob) > len(name) + 4


def user_data_base64(where: str, value: str) -> bytes:
    """The bytes behind base64, whose line ends (as `base64` writes them) do not count."""
    try:
        raw = base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        refuse(where, "is not base64", "encode the file with `base64`, or put text into user_data")
    user_data_size(where, raw)
    return raw


def user_data_size(where: str, raw: bytes) -> None:
    """Within what Nova would take."""
    encoded = -(-len(raw) // 3) * 4
    if encoded > USER_DATA_BASE64_BYTES:
        refuse(
            where,
            f"takes {encoded} bytes as base64; {USER_DATA_BASE64_BYTES} are the most",
            "compress it with gzip into user_data_base64, or let it #include the rest from elsewhere",
        )
