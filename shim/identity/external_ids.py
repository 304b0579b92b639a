"""What Open vSwitch's database tells of its interfaces, as claims. PURE.

An interface of Open vSwitch is a link of the same name in the agent's own network namespace. Who plugs a guest in
writes into its `external_ids` (vswitchd.conf.db(5) lists them):

    vm-uuid         the instance, as Nova's os-vif writes it
    vm-id           the same, as libvirt does it (<virtualport type='openvswitch'>)
    iface-id        the port, Neutron's mostly
    attached-mac    the guest's MAC
    project-id, neutron:project-id   the project, for who writes that

With Nova's hybrid plug the interface is not the guest's tap: that is in a bridge of its own, which a veth pair joins
to Open vSwitch (tapX, qbrX, qvbX and qvoX; X are the first 11 characters of the port's id). What an interface that is
named so says is said of that tap, and of it alone: one guest on two links would be two ports, and what libvirt says
of the tap a disagreement.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from shim.core.instance import parse_instance
from shim.core.names import parse_project, parse_tap
from shim.identity.said import CLAIMS_MAX, Claim, Key, parse_mac, plain

INSTANCE_KEYS = ("vm-uuid", "vm-id")
PROJECT_KEYS = ("project-id", "neutron:project-id")
PORT_KEY, MAC_KEY = "iface-id", "attached-mac"
COLUMNS = ("name", "external_ids")

PORT_CHARACTERS = 64  # a uuid has 36
SHOWN_CHARACTERS = 60
TROUBLES_SHOWN = 5

HYBRID, TAP, HYBRID_CHARACTERS = "qvo", "tap", 11


class _Row(msgspec.Struct, frozen=True):
    """A row by our columns. A map is `["map", [["key", "value"], ...]]` in OVSDB (RFC 7047, 5.1)."""

    name: str
    external_ids: tuple[Literal["map"], list[tuple[str, str]]]


class _Change(msgspec.Struct, frozen=True):
    """What a row is now; without `new`, it is gone (RFC 7047, 4.1.6)."""

    new: _Row | UnsetType = UNSET


class Reading(NamedTuple):
    """What one interface says: a claim if it names an instance, and what is wrong with it and what to do. The tap of a
    claim may be `derived` from the port's id: then it is not the interface itself."""

    claim: Claim | None = None
    trouble: str = ""
    derived: bool = False


NOTHING = Reading()


def claim_of(name: str, ids: Mapping[str, str]) -> Reading:
    """What an interface's `external_ids` say. What is wrong beside the instance is left out of the claim.

    A name that no link can have (a patch port's, say) claims nothing: no guest is behind it.
    """
    named = {key: ids[key] for key in INSTANCE_KEYS if ids.get(key)}
    if not named or not _may_be_link(name):
        return NOTHING
    try:
        instance = _instance(named)
    except ValueError as error:
        return Reading(None, f"interface {name}: {error}: it is nobody's until that is corrected")
    wrong: list[str] = []
    tap = _tap_of(name, ids.get(PORT_KEY, ""))
    project_key = next((key for key in PROJECT_KEYS if ids.get(key)), PROJECT_KEYS[0])
    claim = Claim(
        tap=tap,
        instance=instance,
        project=_kept(parse_project, project_key, ids.get(project_key, ""), wrong),
        port=plain(ids.get(PORT_KEY, ""), PORT_CHARACTERS),
        mac=_kept(parse_mac, MAC_KEY, ids.get(MAC_KEY, "").lower(), wrong),
    )
    trouble = f"interface {name}: {'; '.join(wrong)}: left out until corrected" if wrong else ""
    return Reading(claim, trouble, derived=tap != name)


def _tap_of(name: str, port: str) -> str:
    """The guest's tap behind an interface: itself, unless the hybrid plug put it between."""
    start = port[:HYBRID_CHARACTERS]
    return TAP + start if len(start) == HYBRID_CHARACTERS and name == HYBRID + start else name


def _may_be_link(name: str) -> bool:
    try:
        return parse_tap(name) == plain(name)
    except ValueError:
        return False


def _instance(named: Mapping[str, str]) -> str:
    """The one instance that all of them name. Raises ValueError."""
    found: dict[str, str] = {}
    for key, value in named.items():
        try:
            found[key] = str(parse_instance(value))
        except ValueError:
            raise ValueError(f"{key} is {_shown(value)}, which is no uuid") from None
    if len(set(found.values())) > 1:
        raise ValueError(" and ".join(f"{key} is {value}" for key, value in found.items()))
    return next(iter(found.values()))


def _kept(parse: Callable[[str], str], key: str, value: str, wrong: list[str]) -> str:
    try:
        return parse(value)
    except ValueError:
        wrong.append(f"{key} is {_shown(value)}, which cannot be")
        return ""


def _shown(value: str) -> str:
    return ascii(value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "...")


@dataclass
class Interfaces:
    """The table Interface as far as it was read, by the rows' uuids, and what was told of it."""

    _troubles: dict[str, str] = field(default_factory=dict)  # by row, or by tap
    _taps: dict[str, str] = field(default_factory=dict)  # by row: for which it has a claim
    _claims: dict[str, dict[str, tuple[bool, Claim]]] = field(default_factory=dict)  # by tap and row: derived, claim
    _told: dict[str, Claim] = field(default_factory=dict)  # by tap
    _touched: set[str] = field(default_factory=set)
    _left_out: int = 0

    def replace(self, table: Any) -> None:
        """These are all rows, as OVSDB's `monitor` answers (RFC 7047, 4.1.5). Raises ValueError."""
        read = _rows(table)
        for row in list(self._taps.keys() | self._troubles.keys()):
            self._take_out(row)
        self._put(read)

    def update(self, table: Any) -> None:
        """These rows changed, as OVSDB's `update` says (RFC 7047, 4.1.6). Raises ValueError.

        What a row had goes before anything comes: in one transaction, a name may go from one row to another.
        """
        read = _rows(table)
        for row in table:
            self._take_out(row)
        self._put(read)

    def _put(self, read: Mapping[str, Reading]) -> None:
        for row, (claim, trouble, derived) in read.items():
            if trouble:
                self._troubles[row] = trouble
            if claim is not None:
                self._taps[row] = claim.tap
                self._claims.setdefault(claim.tap, {})[row] = derived, claim
                self._touched.add(claim.tap)

    def _take_out(self, row: str) -> None:
        self._troubles.pop(row, None)
        tap = self._taps.pop(row, None)
        if tap is None:
            return
        claims = self._claims[tap]
        del claims[row]
        if not claims:
            del self._claims[tap]
        self._touched.add(tap)

    def news(self) -> tuple[tuple[Claim, ...], tuple[Key, ...]]:
        """What to tell, once: the claims that are new or changed since the last call, and whose taps have none now."""
        found = {tap: self._settled(tap) for tap in sorted(self._touched)}
        gone = [tap for tap, claim in found.items() if claim is None and tap in self._told]
        for tap in gone:
            del self._told[tap]
        claims, left = [], set()
        for tap, claim in found.items():
            if claim is None or claim == self._told.get(tap):
                continue
            if tap not in self._told and len(self._told) >= CLAIMS_MAX:
                left.add(tap)
                continue
            self._told[tap] = claim
            claims.append(claim)
        self._touched, self._left_out = left, len(left)
        return tuple(claims), tuple(("", tap) for tap in gone)

    def _settled(self, tap: str) -> Claim | None:
        """The one claim that counts: of the interface named so, or else the one on which all others agree."""
        claims = self._claims.get(tap, {}).values()
        sure = [claim for derived, claim in claims if not derived] or [claim for _, claim in claims]
        instances = sorted({claim.instance for claim in sure})
        if len(instances) > 1:
            self._troubles[tap] = f"tap {tap}: interfaces of {' and '.join(instances)} claim it: it is nobody's"
        else:
            self._troubles.pop(tap, None)
        return min(sure, key=msgspec.json.encode) if len(instances) == 1 else None

    @property
    def trouble(self) -> str:
        """What is wrong with rows, in words that name the interfaces; empty when nothing is."""
        left_out = [f"more than {CLAIMS_MAX} taps: {self._left_out} are left out"] if self._left_out else []
        shown = left_out + heapq.nsmallest(TROUBLES_SHOWN, self._troubles.values())
        more = len(self._troubles) - TROUBLES_SHOWN
        return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")

    def __len__(self) -> int:
        """How many taps were told."""
        return len(self._told)


def _rows(table: Any) -> dict[str, Reading]:
    """What the rows that are there say, as far as they say anything. Raises ValueError for what is no such table."""
    rows = {row: change.new for row, change in msgspec.convert(table, dict[str, _Change]).items()}
    read = {row: claim_of(new.name, dict(new.external_ids[1])) for row, new in rows.items() if new}
    return {row: reading for row, reading in read.items() if reading != NOTHING}
