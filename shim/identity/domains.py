"""What is known of all running domains, by a connection and by state files, and what is to be said of it. PURE.

The files are libvirtd's own, under the domains' names. They tell of a domain as soon as its taps are there, about half
a second before its processors run and an event comes, and they are there when libvirtd is not. So both count at all
times: what the connection says of an instance or of a tap wins, a file tells of those that it does not know (yet).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from shim.identity.domain import claims_of
from shim.identity.said import CLAIMS_MAX, TROUBLE_MAX, Claim, Key, Said, plain

FAULTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reading:
    """One domain as it was read: its claims, or the fault that costs it all of them."""

    claims: tuple[Claim, ...] = ()
    fault: str = ""

    @property
    def instance(self) -> str:
        """Whose taps they are; empty where there are none."""
        return self.claims[0].instance if self.claims else ""


def read(what: str, xml: str) -> Reading:
    """What a domain's XML says; `what` names it in a fault."""
    try:
        return Reading(tuple(claims_of(xml)))
    except ValueError as error:
        return Reading(fault=f"{what}: {error}")


class Domains:
    """`lost` is called where there is no connection, or no longer: what was known by it holds, unless files tell of the
    same instance. `unread` is called when the files cannot be read: those that were hold."""

    def __init__(self) -> None:
        self._asked: dict[str, Reading] = {}
        self._files: Mapping[str, Reading] = {}
        self._connected = False
        self._why = ""
        self._files_why = "there are no state files"
        self._said: dict[Key, Claim] = {}
        self._trouble = ""
        self._begun = False

    def connected(self, found: Mapping[str, Reading]) -> None:
        """All running domains as the connection has them, by uuid."""
        self._asked, self._connected, self._why = dict(found), True, ""

    def changed(self, instance: str, reading: Reading | None) -> None:
        """One domain as the connection has it now; None: it runs no more."""
        if reading is None:
            self._asked.pop(instance, None)
        else:
            self._asked[instance] = reading

    def lost(self, why: str) -> None:
        """There is no connection, for that reason."""
        self._connected, self._why = False, why
        self._yield_to_files()

    def filed(self, found: Mapping[str, Reading]) -> None:
        """All state files, by name."""
        self._files, self._files_why = found, ""
        if not self._connected:
            self._yield_to_files()

    def unread(self, why: str) -> None:
        """The files cannot be read, for that reason."""
        self._files_why = why

    def _yield_to_files(self) -> None:
        for reading in self._files.values():
            self._asked.pop(reading.instance, None)

    def news(self) -> Said | None:
        """The next message, None when there is nothing to be said. The first that is whole comes as soon as it is known
        what there is: by the connection, or without one by the files."""
        now, faults = self._standing()
        whole = not self._begun and (self._connected or (self._why != "" and not self._files_why))
        before = {} if whole else self._said
        claims = tuple(claim for key, claim in now.items() if before.get(key) != claim)
        gone = tuple(key for key in before if key not in now)
        trouble = self._words(faults)
        if not (whole or claims or gone) and trouble == self._trouble:
            return None
        self._said, self._trouble, self._begun = now, trouble, self._begun or whole
        return Said(whole, claims, gone, trouble)

    def _standing(self) -> tuple[dict[Key, Claim], list[str]]:
        """Who is behind which tap, and what is wrong with domains."""
        by_files = {name: one for name, one in self._files.items() if one.instance not in self._asked}
        known: dict[Key, Claim] = {}
        faults = [one.fault for one in self._asked.values() if one.fault]
        if not self._connected:
            faults += [one.fault for one in by_files.values() if one.fault]
        refused: set[Key] = set()
        for readings in (self._asked, by_files):
            found, twice = _merged(readings.values())
            refused |= twice - known.keys()
            known = found | known
        for key in refused:
            known.pop(key, None)
        faults += [f"{tap} is the tap of two domains: it is nobody's" for _, tap in sorted(refused)]
        if len(known) > CLAIMS_MAX:
            faults.insert(0, f"there are more than {CLAIMS_MAX} taps: the others are not known")
            known = dict(islice(known.items(), CLAIMS_MAX))
        return known, faults

    def _words(self, faults: list[str]) -> str:
        shown = sorted(faults)[:FAULTS_SHOWN]
        more = f"and {len(faults) - len(shown)} more" if len(faults) > len(shown) else ""
        files = self._files_why or "its state files tell of domains meanwhile"
        return plain("; ".join(filter(None, (self._why, files if self._why else "", *shown, more))), TROUBLE_MAX)


def _merged(readings: Iterable[Reading]) -> tuple[dict[Key, Claim], set[Key]]:
    """Who is behind which tap by one origin, and the taps that two instances claim."""
    found: dict[Key, Claim] = {}
    twice: set[Key] = set()
    for reading in readings:
        for claim in reading.claims:
            if found.setdefault(claim.key, claim).instance != claim.instance:
                twice.add(claim.key)
    return found, twice
