"""The nftables datapath as text: what `nft -f -` is given. PURE.

The rules are in rules/nft/; here the settings are put in, and what there is one of for each service address,
verdict, hop limit or tag. What is of one port is in nft_ports.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from string import Template

from shim.core.policy import HOP_LIMIT_DEFAULT
from shim.core.verdict import Verdict
from shim.datapath import abi, guard_rules
from shim.datapath.nft_ports import TRACED

SERVICE_MAC = "02:00:a9:fe:a9:fe"
HOST_MAC = "02:00:00:00:00:01"

OWNER_BITS = 29
OWNER_MASK = (1 << OWNER_BITS) - 1
"""Slot and generation within a mark; the three bits above say which service address, of the first family 0 to 3."""

OPENING_SECONDS, QUIET_SECONDS = 5, 600
"""How long a connection is remembered that the service does not answer, or is closing; and one that is silent."""

TRACE_RATE, TRACE_BURST = 1000, 200
"""Packets of a traced port that are shown a second, and at once."""

PROXY_CONNECTIONS = 1024  # of one guest: what the proxy would hold open, with room

GROUP = int(IPv6Address("ff02::1:ff00:0"))
EXTENSIONS = "0, 43, 50, 51, 60, 135, 139, 140, 253, 254"
WITH_RESET = (Verdict.NO_FLOW, Verdict.DISABLED_RESET)
NOBODYS = (Verdict.REPLY_FOREIGN,)  # dropped where it is found


@dataclass(frozen=True, slots=True)
class Settings:
    """What the rules are made for. Rates are per second and port; `patience` is for how many seconds the service waits
    for the first request of a connection; `group` is the nflog group for events."""

    table: str
    addresses: tuple[str, ...]
    service_ports: tuple[int, ...]
    rate: int
    burst: int
    event_rate: int
    max_ports: int
    patience: int
    group: int

    @property
    def service4(self) -> list[IPv4Address]:
        """The IPv4 service addresses."""
        return [a for a in map(ip_address, self.addresses) if isinstance(a, IPv4Address)]

    @property
    def service6(self) -> list[IPv6Address]:
        """The IPv6 service addresses."""
        return [a for a in map(ip_address, self.addresses) if isinstance(a, IPv6Address)]

    @property
    def flows(self) -> int:
        """The most connections of all ports, if each of them opens as many as it may: so none takes another's."""
        each = self.burst + (2 * OPENING_SECONDS + self.patience) * self.rate + PROXY_CONNECTIONS
        return min(self.max_ports * each, (1 << 31) - 1)


def table_name(name: str) -> str:
    """What the datapath's table is called on a host named so. The name is last: nft wants a letter first."""
    return f"datapath-{name}"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is loaded, how many rules that is, and the name of a set that no other version of it has."""

    text: str
    rules: int
    version: str


def ruleset(settings: Settings, template: str, family: str) -> Ruleset:
    """The whole table; the two texts are rules/nft/datapath.nft and family.nft."""
    values = _values(settings)
    families = "\n".join(Template(family).substitute(values | of) for of in _families(settings))
    text = Template(template).safe_substitute(values, families=families)  # all but the version, which is of the rest
    version = f"rules_{sha256(text.encode()).hexdigest()[:12]}"
    return Ruleset(Template(text).substitute(version=version), _count(text), version)


def _count(text: str) -> int:
    """One rule in each line that stands so deep."""
    return sum(line.startswith("\t\t") and not line.isspace() for line in text.splitlines())


def _values(settings: Settings) -> dict[str, str | int]:
    service4 = settings.service4 or [abi.NO_ADDRESS4]
    service6 = settings.service6 or [abi.NO_ADDRESS6]
    mac = SERVICE_MAC.replace(":", "")
    return {
        "table": settings.table,
        "ports": _ports(settings),
        "flows": settings.flows,
        "opening": f"{OPENING_SECONDS}s",
        "answered": f"{settings.patience}s",
        "quiet": f"{QUIET_SECONDS}s",
        "owner": hex(OWNER_MASK),
        "rate": settings.rate,
        "burst": settings.burst,
        "hop_limit": HOP_LIMIT_DEFAULT,
        "service_mac": SERVICE_MAC,
        "service_mac_first": f"0x{mac[:8]}",
        "service_mac_last": f"0x{mac[8:]}",
        "host_mac": HOST_MAC,
        "service4": _list(service4),
        "service6": _list(service6),
        "service4_numbers": _list(map(_number, service4)),
        "service6_numbers": _list(map(_number, service6)),
        "service_ports": _list(settings.service_ports),
        "groups": _list(sorted({str(_group(a)) for a in service6})),
        "extensions": EXTENSIONS,
        "counters": _lines((_counter_set(settings, verdict) for verdict in Verdict), 1),
        "refusals": "\n".join(_refusal(settings, v) for v in Verdict if v.refusal and v not in (*WITH_RESET, *NOBODYS)),
        "traces": "\n".join(_trace(settings, verdict) for verdict in Verdict if verdict not in NOBODYS),
        **{f"trace_{verdict.label}": _traced(verdict) for verdict in Verdict},
        "report_no_flow": _report(settings, Verdict.NO_FLOW),
        "report_disabled_reset": _report(settings, Verdict.DISABLED_RESET),
        "hops": "\n".join(map(_hop, range(1, HOP_LIMIT_DEFAULT + 1))),
        "tags": _tagged([*settings.service4, *settings.service6]),
        "answers_arp": _lines(
            f"@nh,192,32 {_number(a)} arp daddr ip set arp saddr ip arp saddr ip set {a} fwd to iif" for a in service4
        ),
        "answers_echo4": _lines(_turned("ip", a) for a in service4),
        "answers_echo6": _lines(_turned("ip6", a) for a in service6),
        "next_ackseq": _lines(map(_next_ackseq, range(32))),
        "turns_ports": _lines(
            f"tcp dport {port} tcp dport set tcp sport tcp sport set {port} goto turn_addresses"
            for port in settings.service_ports
        ),
        "answers_nd": _lines(f"@th,64,128 {_number(a)} ip6 saddr set {a} fwd to iif" for a in service6),
    }


def _number(address: IPv4Address | IPv6Address) -> str:
    return f"0x{address.packed.hex()}"


def _group(address: IPv4Address | IPv6Address) -> IPv6Address:
    """The solicited-node group (RFC 4291, 2.7.1)."""
    return IPv6Address(GROUP | int(address) & 0xFFFFFF)


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _lines(lines: Iterable[str], depth: int = 2) -> str:
    return "\n".join("\t" * depth + line for line in lines)


def _turned(ip: str, address: IPv4Address | IPv6Address) -> str:
    """What was sent to a service address goes back to whom it came from."""
    return f"{ip} daddr {address} {ip} daddr set {ip} saddr {ip} saddr set {address} fwd to iif"


def _next_ackseq(ones: int) -> str:
    """Adds one to a number that ends with a zero and so many ones: they all turn over."""
    turned = (2 << ones) - 1
    number = "@th,64,32"
    return f"{number} & {turned:#x} == {turned >> 1:#x} {number} set {number} ^ {turned:#x} goto turn_reset"


def _ports(settings: Settings) -> int:
    """The size of sets of ports: for a moment a slot's former owner is there too."""
    return 2 * settings.max_ports + 2


def _counter_set(settings: Settings, verdict: Verdict) -> str:
    return f"set {verdict.label} {{ type mark; size {_ports(settings)}; flags dynamic; counter; }}"


def _report(settings: Settings, verdict: Verdict) -> str:
    """A log line, while the port's bucket for it lasts; the prefix is the verdict's number."""
    if not settings.event_rate:
        return ""
    limit = f"limit rate {settings.event_rate}/second burst 10 packets"
    log = f'log prefix "{verdict.value}" group {settings.group} snaplen 64'
    return f"update @reports {{ meta mark & {hex(OWNER_MASK)} {limit} }} {log}"


def _traced(verdict: Verdict) -> str:
    """Where a packet of a traced port is shown."""
    return f"meta mark & {hex(OWNER_MASK)} @traced jump trace_{verdict.label}"


def _trace(settings: Settings, verdict: Verdict) -> str:
    """Shows a packet, while the port's bucket for it lasts, and counts it else."""
    owner = f"meta mark & {hex(OWNER_MASK)}"
    limit = f"limit rate {TRACE_RATE}/second burst {TRACE_BURST} packets"
    log = f'log prefix "{TRACED}{verdict.value}" group {settings.group} snaplen {abi.TRACE_BYTES}'
    rules = [f"update @tracings {{ {owner} {limit} }} {log} return", f"add @left_out {{ {owner} counter }}"]
    return f"\tchain trace_{verdict.label} {{\n{_lines(rules)}\n\t}}"


def _refusal(settings: Settings, verdict: Verdict) -> str:
    counted = f"add @{verdict.label} {{ meta mark & {hex(OWNER_MASK)} counter }}"
    rules = [counted, _report(settings, verdict), _traced(verdict), "drop"]
    return f"\tchain refuse_{verdict.label} {{\n{_lines(filter(None, rules))}\n\t}}"


def _hop(limit: int) -> str:
    return f"\tchain hop{limit} {{\n\t\tip ttl set {limit}\n\t\tip6 hoplimit set {limit}\n\t}}"


def _tagged(addresses: Sequence[IPv4Address | IPv6Address]) -> str:
    """Frames with tags in the packet are looked behind as the leak guard does, and refused: nftables can neither take
    tags off nor put them on."""
    return re.sub(r"\bdrop$", "goto refuse_tagged", guard_rules.tagged(addresses), flags=re.MULTILINE)


def _families(settings: Settings) -> list[dict[str, str | int]]:
    """What is different for TCP over IPv4 and over IPv6."""
    return [
        {
            "f": 4,
            "ip": "ip",
            "ttl": "ttl",
            "too_short": "ip length < 40",
            "reply_sound": "ip protocol != tcp",
            "asked_service": _mark_service("ip daddr", settings.service4, 0),
            "answering_service": _mark_service("ip saddr", settings.service4, 0),
        },
        {
            "f": 6,
            "ip": "ip6",
            "ttl": "hoplimit",
            "too_short": "ip6 length < 20",
            "reply_sound": "ip6 nexthdr != tcp",
            "asked_service": _mark_service("ip6 daddr", settings.service6, abi.SERVICES),
            "answering_service": _mark_service("ip6 saddr", settings.service6, abi.SERVICES),
        },
    ]


def _mark_service(field: str, addresses: Sequence[IPv4Address] | Sequence[IPv6Address], first: int) -> str:
    return _lines(
        f"{field} {address} meta mark set meta mark | {number << OWNER_BITS:#x}"
        for number, address in enumerate(addresses, first)
    )
