"""Who reads what can be read once: one at a time, in the order that they came. PURE.

A lease is of one reader's, over some items of one instance. Whoever asks for an item that is under another's lease
waits for the end of that; then it is asked again what is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from uuid import UUID

from shim.core.ask import Outcome

NOTHING_LEFT = Outcome("done")


@dataclass(frozen=True, slots=True)
class Lease:
    """What `reader` holds: a worker, or whatever ends all of its leases when it ends."""

    number: int
    reader: Hashable
    instance: UUID
    items: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Claim:
    reader: Hashable
    items: tuple[str, ...]
    tell: Callable[[Outcome], None]


class Leases:
    """`left` says which of an instance's items can still be had; it may raise, which becomes `failed`'s outcome.
    `number` makes numbers that nobody had before, of this run or another."""

    def __init__(
        self,
        left: Callable[[UUID, tuple[str, ...]], tuple[str, ...]],
        failed: Callable[[Exception], Outcome],
        number: Callable[[], int],
    ) -> None:
        self._left = left
        self._failed = failed
        self._number = number
        self._held: dict[int, Lease] = {}
        self._items: dict[tuple[UUID, str], int] = {}
        self._waiting: dict[UUID, deque[_Claim]] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._held)

    def claim(
        self, reader: Hashable, instance: UUID, items: tuple[str, ...], tell: Callable[[Outcome], None]
    ) -> None:
        """Have `tell` called with a lease over those items that can be had, once nobody else holds any of them; or with
        no items, where nothing is left."""
        self._waiting.setdefault(instance, deque()).append(_Claim(reader, items, tell))
        self._serve(instance)

    def may_spend(self, number: int, instance: UUID, items: Iterable[str]) -> bool:
        """Whether these items are that lease's; or nobody's, as when it was given by an agent that died since."""
        return all(self._items.get((instance, item), number) == number for item in items)

    def end(self, number: int) -> None:
        """A lease is over, whatever became of its items."""
        lease = self._held.pop(number, None)
        if lease is not None:
            for item in lease.items:
                del self._items[lease.instance, item]
            self._serve(lease.instance)

    def owner(self, reader: Hashable, number: int) -> UUID | None:
        """Whose items a lease of this reader's is over; None if it has no such lease."""
        lease = self._held.get(number)
        return lease.instance if lease is not None and lease.reader == reader else None

    def gone(self, reader: Hashable) -> None:
        """A reader has ended: nobody hears it any more."""
        for instance, claims in list(self._waiting.items()):
            left = deque(one for one in claims if one.reader != reader)
            if left:
                self._waiting[instance] = left
            else:
                del self._waiting[instance]
        for lease in [one for one in self._held.values() if one.reader == reader]:
            self.end(lease.number)
        for instance in list(self._waiting):  # who stood behind it may be first now
            self._serve(instance)

    def _serve(self, instance: UUID) -> None:
        """Those at the front of an instance's queue whose turn it is. Who is told may claim again meanwhile."""
        while claims := self._waiting.get(instance):
            if any((instance, item) in self._items for item in claims[0].items):
                return
            claim = claims.popleft()
            if not claims:
                del self._waiting[instance]
            claim.tell(self._grant(instance, claim))

    def _grant(self, instance: UUID, claim: _Claim) -> Outcome:
        try:
            items = self._left(instance, claim.items)
        except Exception as error:  # noqa: BLE001 - the boundary of one claim
            return self._failed(error)
        if not items:
            return NOTHING_LEFT
        lease = Lease(self._number(), claim.reader, instance, frozenset(items))
        self._held[lease.number] = lease
        self._items.update(dict.fromkeys(((instance, item) for item in items), lease.number))
        return Outcome("done", lease=lease.number, items=items)
