"""What guests did, as the store keeps it: what they used up, what they closed, what they reported; and the audit trail
of what anybody did."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

from shim.core.closure import parse_prefix
from shim.core.source import Reads
from shim.errors import InputError
from shim.metadata.schema import explained
from shim.metadata.store_file import StoreFile

LATCHES_MAX = 32
AUDITS_KEPT = 100_000
GUESTS_KEPT = 2_000
GUEST = "guest"
TEXT_MAX = 1_000
"""Characters of a text in the audit trail; what is longer is cut."""
ONES_USED = (Reads.ONCE.value, Reads.CONFIRM.value)

_ITEM = re.compile(r"(source|kv) ([!-~]+) ([0-9]{1,18})")  # Source.item, Value.item
_SPENT = "EXISTS (SELECT 1 FROM spent s WHERE s.instance = ? AND s.revision = t.revision)"
_SOURCE = f"SELECT revision, reads, until, {_SPENT} FROM sources t WHERE scope = ? AND name = ? AND revision = ?"
_KEY = f"SELECT revision, reads, until, {_SPENT} FROM kv t WHERE instance = ? AND key = ? AND revision = ?"
_SPENT_BY = "SELECT revision FROM spent WHERE instance = ? AND lease = ?"
_UNSPEND = "DELETE FROM spent WHERE instance = ? AND revision = ? AND lease = ?"

_GUESTS = f"FROM audit WHERE instance = ? AND who GLOB '{GUEST}*'"
_FORGET_A_GUESTS = f"DELETE {_GUESTS} AND seq <= (SELECT seq {_GUESTS} ORDER BY seq DESC LIMIT 1 OFFSET ?)"

Report = Literal["ready", "read"]


class _Thing(NamedTuple):
    """What an item is of."""

    revision: int
    reads: str
    until: float | None
    spent: bool


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One thing that somebody did: `time` in Unix seconds; `instance` None: it concerns the host, or several."""

    seq: int
    time: float
    who: str
    instance: UUID | None
    what: str
    detail: str


class MarkStore(StoreFile):
    """See Store."""

    def spend(self, instance: UUID, items: Iterable[str], lease: int = 0) -> tuple[str, ...]:
        """Mark items (Source.item, Value.item) as used up by an instance; those that are so only now. `lease` is of the
        one reader who gets them, 0 for what the guest confirms to have.

        Left out are those that are used up already, that are not there any more or were written again, that can be
        read many times, or that are another instance's. One whose deadline has passed meanwhile is marked.
        """
        new = []
        with self.transaction(), explained(self.path):
            for item in dict.fromkeys(items):
                thing = self._thing(instance, item)
                if thing is not None and thing.reads in ONES_USED and not thing.spent:
                    row = str(instance), thing.revision, self._clock(), lease
                    self._write("INSERT INTO spent (instance, revision, at, lease) VALUES (?, ?, ?, ?)", *row)
                    new.append(item)
            if new:
                self._note(f"instance:{instance}")
        return tuple(new)

    def spent_by(self, instance: UUID, items: Iterable[str], lease: int) -> bool:
        """Whether all of these items were used up by that very reader."""
        things = [self._thing(instance, item) for item in items]
        if not _is_lease(lease) or None in things:
            return False
        mine = {revision for (revision,) in self._read(_SPENT_BY, (str(instance), lease))}
        return all(thing is not None and thing.revision in mine for thing in things)

    def unspend(self, instance: UUID, items: Iterable[str], lease: int) -> tuple[str, ...]:
        """Take that back of those that this lease's reader used up, as they were not read after all; which these are.
        What was confirmed is never taken back."""
        back = []
        with self.transaction(), explained(self.path):
            for item in dict.fromkeys(items) if _is_lease(lease) else ():
                thing = self._thing(instance, item)
                if thing is not None and self._write(_UNSPEND, str(instance), thing.revision, lease):
                    back.append(item)
            if back:
                self._note(f"instance:{instance}")
        return tuple(back)

    def unspent(self, instance: UUID, items: Iterable[str]) -> tuple[str, ...]:
        """Those of the items that the instance could read now."""
        now = self._clock()
        return tuple(
            item
            for item in dict.fromkeys(items)
            if (thing := self._thing(instance, item)) is not None
            and not thing.spent
            and (thing.until is None or thing.until > now)
        )

    def _thing(self, instance: UUID, item: str) -> _Thing | None:
        parts = _ITEM.fullmatch(item)
        if parts is None:
            return None
        kind, key, revision = parts[1], parts[2], int(parts[3])
        if kind == "kv":
            rows = self._read(_KEY, (str(instance), str(instance), key, revision))
        else:
            scope, _, name = key.rpartition("/")
            if scope.startswith("instance:") and scope != f"instance:{instance}":
                return None
            rows = self._read(_SOURCE, (str(instance), scope, name, revision))
        return _Thing(*rows[0]) if rows else None

    def latch(self, instance: UUID, prefix: str) -> bool:
        """Close a prefix or topic (see shim.core.closure) for good; False if the guest did so before.

        Raises InputError for what is none, and for more than LATCHES_MAX.
        """
        prefix = _prefix(prefix)
        with self.transaction(), explained(self.path):
            rows = self._read("SELECT prefix FROM latches WHERE instance = ?", (str(instance),))
            if (prefix,) in rows:
                return False
            if len(rows) >= LATCHES_MAX:
                raise InputError(f"at most {LATCHES_MAX} prefixes can be locked", "lock / for all")
            self._write("INSERT INTO latches VALUES (?, ?, ?)", str(instance), prefix, self._clock())
            self._note(f"instance:{instance}")
        return True

    def unlatch(self, instance: UUID, prefix: str | None) -> tuple[str, ...]:
        """Open what the guest closed (None: all of it); what that was. Raises InputError for what is no prefix."""
        wanted = None if prefix is None else _prefix(prefix)
        with self.transaction(), explained(self.path):
            rows = self._read(
                "DELETE FROM latches WHERE instance = ?1 AND prefix = coalesce(?2, prefix) RETURNING prefix",
                (str(instance), wanted),
            )
            if rows:
                self._note(f"instance:{instance}")
        return tuple(sorted(one for (one,) in rows))

    def latches(self) -> dict[UUID, tuple[str, ...]]:
        """What guests closed, by instance, in the order of the alphabet."""
        found: dict[UUID, tuple[str, ...]] = {}
        with explained(self.path):
            for instance, prefix in self._read("SELECT instance, prefix FROM latches ORDER BY instance, prefix"):
                found[UUID(instance)] = (*found.get(UUID(instance), ()), prefix)
        return found

    def report(self, instance: UUID, kind: Report) -> bool:
        """The guest is `ready`, or has `read` its user-data; whether that is the first time."""
        with self.transaction(), explained(self.path):
            return self._write("INSERT OR IGNORE INTO reports VALUES (?, ?, ?)", str(instance), kind, self._clock()) > 0

    def reports(self, instance: UUID) -> dict[str, float]:
        """When it first reported what, in Unix seconds."""
        return dict(self._read("SELECT kind, at FROM reports WHERE instance = ?", (str(instance),)))

    def forget_reports(self, instance: UUID) -> None:
        """Let the next report be the first again."""
        with self.transaction(), explained(self.path):
            self._write("DELETE FROM reports WHERE instance = ?", str(instance))

    def audit(self, who: str, what: str, instance: UUID | None = None, detail: str = "") -> None:
        """Add to the trail, of which the newest AUDITS_KEPT rows stay; and of what one guest did (`who` begins with
        GUEST) the newest GUESTS_KEPT, so that it cannot push out what others did."""
        texts = [text[:TEXT_MAX].encode(errors="replace").decode() for text in (who, what, detail)]
        whose = str(instance) if instance is not None else None
        with self.transaction(), explained(self.path):
            self._write(
                "INSERT INTO audit (at, who, instance, what, detail) VALUES (?, ?, ?, ?, ?)",
                self._clock(), texts[0], whose, texts[1], texts[2],
            )  # fmt: skip
            self._write("DELETE FROM audit WHERE seq <= (SELECT max(seq) FROM audit) - ?", AUDITS_KEPT)
            if whose is not None and who.startswith(GUEST):
                self._write(_FORGET_A_GUESTS, whose, whose, GUESTS_KEPT)

    def audits(
        self, instance: UUID | None = None, after: int | None = 0, limit: int = 1_000
    ) -> list[AuditRow]:
        """The first `limit` rows (of an instance) with a sequence above `after`, oldest first; None: the last ones."""
        where, values = ("", ()) if instance is None else ("AND instance = ?", (str(instance),))
        order = "seq" if after is not None else "seq DESC"
        bounds = _within(after or 0), *values, _within(limit)
        rows = self._read(
            f"SELECT seq, at, who, instance, what, detail FROM audit WHERE seq > ? {where} ORDER BY {order} LIMIT ?",
            bounds,
        )
        with explained(self.path):
            found = [AuditRow(seq, at, who, UUID(one) if one else None, what, d) for seq, at, who, one, what, d in rows]
        return found if after is not None else found[::-1]


def _is_lease(number: int) -> bool:
    """Whether a worker may have been given that one."""
    return 0 < number < 1 << 63


def _within(number: int) -> int:
    """A number that SQLite takes, and no negative one."""
    return max(0, min(number, 1 << 62))


def _prefix(text: str) -> str:
    try:
        return parse_prefix(text)
    except ValueError as error:
        raise InputError(str(error), "see what can be closed in docs/live.md") from None
