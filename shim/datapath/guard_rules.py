"""The leak guard's rules: what `nft -f -` is given. PURE.

The datapath takes service frames off a tap before a bridge or the host's stack sees them. Whatever service frame of
a tap arrives behind it is therefore a leak: the tap is not enrolled yet, or nothing of metashim runs. The guard
drops it there, by the tap's name alone, so it needs to know nothing of what is enrolled and never changes.

Three tables, which hold one and the same text as far as their family has a use for it:

    bridge   prerouting, before any other's rules     what members of a bridge send
    inet     prerouting, before defragmentation       what the host's own IP stack gets of taps on no bridge
    arp      input                                    the same for ARP

A frame's outermost tag (802.1Q, 802.1ad) stands beside the packet and `meta protocol` is what comes behind it; all
further ones, and 0x9100, stand in the packet, and every chain is there once for each number of them. Header fields
are read by their offsets in bits from the network header, since nft's names know of no tags, and would read others.
Where a field lies behind the frame's end, its rule does not match.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from string import Template

FAMILIES = ("bridge", "inet", "arp")
MARK_SET = "loaded"

TAGS_INSIDE = 4
TAG_BITS = 32
NAME_MAX = 15  # IFNAMSIZ, its NUL aside
SOLICITED_NODE = int(IPv6Address("ff02::1:ff00:0"))
NOBODY_4, NOBODY_6 = int(IPv4Address("127.0.0.1")), int(IPv6Address("::1"))
"""Where a family has no service: no packet on a link is from or to these (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3)."""

_RULESET = Template("""\
table $family $table
delete table $family $table
table $family $table {
	set loaded {
		type mark
		elements = { $mark }
	}
$chains
	chain from_taps {
		type filter hook $hook priority -450; policy accept;
$taps
	}
}
""")

_HOOKS = {"bridge": "prerouting", "inet": "prerouting", "arp": "input"}

_JUDGE = """\
	chain judge {
		meta protocol 0x0800 goto ipv4_0
		meta protocol 0x86dd goto ipv6_0
		meta protocol vmap { 0x0806 : goto arp_0, \
0x8100 : goto tag_1, 0x88a8 : goto tag_1, 0x9100 : goto tag_1 }
	}
"""
_JUDGE_INET = """\
	chain judge {
		meta protocol 0x0800 goto ipv4_0
		meta protocol 0x86dd goto ipv6_0
	}
"""
_JUDGE_ARP = """\
	chain judge {
		goto arp_0
	}
"""

_TAG = """\
	chain tag_$depth {
		@nh,$kind,16 vmap { 0x0800 : goto ipv4_$depth, 0x86dd : goto ipv6_$depth, 0x0806 : goto arp_$depth, \
0x8100 : goto tag_$next, 0x88a8 : goto tag_$next, 0x9100 : goto tag_$next }
	}
"""
_TOO_MANY_TAGS = """\
	chain tag_$depth {
		drop
	}
"""

# RFC 826. Of hardware addresses that are not 6 bytes long, where the IPv4 addresses are would be a guess.
_ARP = """\
	chain arp_$d {
		@nh,$arp_protocol,16 != 0x0800 accept
		@nh,$arp_protocol_size,8 != 4 accept
		@nh,$arp_hardware_size,8 != 6 drop
		@nh,$arp_sender,32 { $service4 } drop
		@nh,$arp_target,32 { $service4 } drop
	}
"""

# RFC 791
_IP4 = """\
	chain ipv4_$d {
		@nh,$source4,32 { $service4 } drop
		@nh,$destination4,32 { $service4 } drop
	}
"""

# RFC 8200, RFC 4861. Behind hop-by-hop options, routing, a fragment header or destination options there may be
# discovery too.
# TCP and UDP between addresses that end otherwise are done with first: they are nearly all that passes here.
_IP6 = """\
	chain behind_ipv6_$d {
		@nh,$following,8 vmap { 58 : goto icmp6_$d, 0 : goto behind_$d, 43 : goto behind_$d, \
44 : goto fragment_$d, 60 : goto behind_$d }
	}
	chain near_ipv6_$d {
		@nh,$source6,128 { $service6 } drop
		@nh,$destination6,128 { $service6 } drop
		goto behind_ipv6_$d
	}
	chain ipv6_$d {
		@nh,$source6_end,32 { $endings6 } goto near_ipv6_$d
		@nh,$destination6_end,32 { $endings6 } goto near_ipv6_$d
		@nh,$following,8 6 accept
		@nh,$following,8 17 accept
		goto behind_ipv6_$d
	}
"""

# Solicitation, advertisement, redirect: its target, or a redirect's destination. One that ends before is dropped.
_DISCOVERY = """\
	chain discovery_$name {
		@$base,$type,8 137 @$base,$redirected,128 { $service6 } drop
		@$base,$target,128 != { $service6 } accept
		drop
	}
	chain icmp6_$name {
		@$base,$type,8 135-137 goto discovery_$name
	}
"""

# The kernel itself has found what lies behind the headers, however many there are, where it could make sense of them.
# (Not `exthdr frag exists`: nft puts a look at the frame's own type before it, which a tag makes another.)
_BEHIND = """\
	chain behind_0 {
		meta l4proto != 58 accept
		@th,0,8 0-255 goto icmp6_behind_0
		@nh,192,128 { $groups } drop
	}
	chain fragment_0 {
		@nh,192,128 { $groups } drop
		goto behind_0
	}
"""

# Behind tags it does not look. One header of eight bytes is looked behind; of others, what a neighbour's stack might
# take for discovery (hop limit 255: RFC 4861, 7.1, and no fragments: RFC 6980) goes no further.
_BEHIND_TAGS = """\
	chain behind_$d {
		@nh,$extension,16 0x3a00 goto icmp6_behind_$d
		@nh,$hop_limit,8 255 drop
		@nh,$destination6,128 { $groups } drop
	}
	chain fragment_$d {
		@nh,$destination6,128 { $groups } drop
		@nh,$extension,16 0x3a00 @nh,$fragment_offset,13 0 goto icmp6_behind_$d
	}
"""

_OFFSETS = {
    "source4": 96,
    "destination4": 128,
    "following": 48,
    "hop_limit": 56,
    "source6": 64,
    "destination6": 192,
    "source6_end": 160,
    "destination6_end": 288,
    "extension": 320,
    "fragment_offset": 336,
    "arp_protocol": 16,
    "arp_hardware_size": 32,
    "arp_protocol_size": 40,
    "arp_sender": 112,
    "arp_target": 192,
}
"""In bits from the network header of a frame without tags in it."""

_ICMP6, _EXTENSION_BITS = 320, 64
_ICMP6_FIELDS = {"type": 0, "target": 64, "redirected": 192}


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is loaded, and what it is known by: the key of the one element of each table's set MARK_SET, and the
    number of rules by family."""

    text: str
    mark: bytes
    counts: Mapping[str, int]


def table_name(name: str) -> str:
    """What the guard's tables are called on a host named so. The name is last: nft wants a letter first."""
    return f"guard-{name}"


def prefix_of(pattern: str) -> str | None:
    """What nft says for a shell pattern: `"tap*"`, or None where it has no words for the very same set of names.

    It knows names and beginnings of names. What matched more than the pattern would cut others' interfaces off.
    """
    plain = pattern.rstrip("*")
    sayable = plain.isascii() and plain.isprintable() and not set(plain) & set(' "\\*?[')
    if not plain or not sayable or len(plain) > NAME_MAX:
        return None
    return f'"{plain}*"' if plain != pattern else f'"{plain}"'


def uncovered(patterns: Iterable[str]) -> list[str]:
    """The patterns whose taps the guard does not look at."""
    return [pattern for pattern in patterns if prefix_of(pattern) is None]


def ruleset(name: str, patterns: Iterable[str], addresses: Iterable[IPv4Address | IPv6Address]) -> Ruleset:
    """All tables as one transaction, which takes the place of what an earlier one loaded.

    `name` is the host's (a-z, 0-9, -), `patterns` shell patterns of taps, `addresses` the service's. Patterns that
    `uncovered` names are left out.
    """
    said = dict.fromkeys(filter(None, map(prefix_of, patterns)))
    taps = "\n".join(f"\t\tiifname {pattern} goto judge" for pattern in said)
    words = _addresses(list(addresses))
    table = table_name(name)
    texts = {
        family: _RULESET.safe_substitute(
            family=family, table=table, hook=_HOOKS[family], taps=taps, chains=_chains(family, words)
        )
        for family in FAMILIES
    }
    text = "".join(texts.values())
    mark = zlib.crc32(text.encode())
    counts = {family: _count(of_family) for family, of_family in texts.items()}
    return Ruleset(text.replace("$mark", f"{mark:#010x}"), mark.to_bytes(4, sys.byteorder), counts)


def _count(text: str) -> int:
    """The rules: one in each line that stands so deep, but for what a set holds and where a chain hooks in."""
    inner = [line.strip() for line in text.splitlines() if line.startswith("\t\t")]
    return sum(not line.startswith(("type ", "elements ")) for line in inner)


def _addresses(addresses: list[IPv4Address | IPv6Address]) -> dict[str, str]:
    four = [int(address) for address in addresses if address.version == 4]
    six = [int(address) for address in addresses if address.version == 6]
    groups = [SOLICITED_NODE | address & 0xFFFFFF for address in six]  # RFC 4291, 2.7.1
    return {
        "service4": _set(four or [NOBODY_4]),
        "service6": _set(six or [NOBODY_6]),
        "endings6": _set(address & 0xFFFFFFFF for address in six or [NOBODY_6]),
        "groups": _set(groups or [NOBODY_6]),
    }


def _set(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:#x}" for number in dict.fromkeys(numbers))


def _chains(family: str, words: dict[str, str]) -> str:
    """Those that others go to first, as nft wants them."""
    arp = _filled(_ARP, words, 0)
    if family == "arp":
        return arp + _JUDGE_ARP
    plain = _ip(words, 0)
    if family == "inet":
        return plain + _JUDGE_INET
    return arp + plain + _tags(words) + _JUDGE


def tagged(addresses: Iterable[IPv4Address | IPv6Address]) -> str:
    """The chains that look behind tags in a packet; `tag_1` is where to go, `drop` is what becomes of the service's."""
    return _tags(_addresses(list(addresses)))


def _tags(words: dict[str, str]) -> str:
    return "".join(_tag(words, depth) for depth in range(TAGS_INSIDE + 1, 0, -1))


def _tag(words: dict[str, str], depth: int) -> str:
    """What is behind the tag that is number `depth` of those in the packet."""
    if depth > TAGS_INSIDE:
        return Template(_TOO_MANY_TAGS).substitute(depth=depth)
    kind = TAG_BITS * depth - 16
    tag = Template(_TAG).substitute(kind=kind, depth=depth, next=depth + 1)
    return _filled(_ARP, words, depth) + _ip(words, depth) + tag


def _ip(words: dict[str, str], depth: int) -> str:
    """The chains for IP behind `depth` tags."""
    at = _ICMP6 + TAG_BITS * depth
    plain = _discovery(words, f"{depth}", "nh", at)
    if depth == 0:
        behind = _discovery(words, "behind_0", "th", 0) + _filled(_BEHIND, words, 0)
    else:
        behind = _discovery(words, f"behind_{depth}", "nh", at + _EXTENSION_BITS)
        behind += _filled(_BEHIND_TAGS, words, depth)
    return _filled(_IP4, words, depth) + plain + behind + _filled(_IP6, words, depth)


def _discovery(words: dict[str, str], name: str, base: str, at: int) -> str:
    """The chains for an ICMPv6 message that begins so many bits behind `base`."""
    fields = {field: at + bits for field, bits in _ICMP6_FIELDS.items()}
    return Template(_DISCOVERY).substitute(words, name=name, base=base, **fields)


def _filled(chain: str, words: dict[str, str], depth: int) -> str:
    offsets = {field: bits + TAG_BITS * depth for field, bits in _OFFSETS.items()}
    return Template(chain).substitute(words, d=depth, **offsets)
