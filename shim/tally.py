"""What a worker counts of the requests that it answered, for the agent's metrics. PURE.

Counted are sums since the worker began, of all guests together and of each owner of a slot; what was counted since
the agent was last told is remembered by slot, so that telling costs nothing for those who asked nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from shim.core.exchange import Caller
from shim.feed import BUCKETS, CODES, COUNTS, OWNERS_PER_LINE, SPENT, TOKENS, Totals, Usage

_OTHER = CODES.index("other")
_CODE = {int(name[0]): place for place, name in enumerate(CODES) if name != "other"}
_TOKEN = {name: COUNTS.index(name) for name in TOKENS}
_BYTES, _LIMITED = COUNTS.index("bytes"), COUNTS.index("limited")
_GENERATION = len(COUNTS)  # behind the counts of an owner
_MICROSECONDS, _BUCKET = len(CODES), len(CODES) + 1


class Tally:
    """One per worker. It holds one row of numbers a slot that has an owner who asked something."""

    def __init__(self) -> None:
        self._host = [0] * len(COUNTS)
        self._malformed = 0
        self._backends: dict[str, list[int]] = {}
        self._owners: dict[int, list[int]] = {}
        self._nobody = [0] * (len(COUNTS) + 1)
        self._changed: set[int] = set()
        self._is_new = False

    def request(self, caller: Caller, status: int, size: int, seconds: float, backend: str, token: str = "") -> None:
        """Count one answer: its status (0: cut off), the bytes of its body that were sent, the time it took, who
        made it ("" for the proxy itself), and the outcome of its session token, one of TOKENS ("": nobody looked)."""
        code = _CODE.get(status // 100, _OTHER)
        owner = self._owners.get(caller.slot)
        if owner is None or owner[_GENERATION] != caller.generation:
            owner = self._owner(caller)
        spent = self._backends.get(backend) or self._backend(backend)
        spent[code] += 1
        spent[_MICROSECONDS] += int(seconds * 1e6)
        spent[_BUCKET + bisect_left(BUCKETS, seconds)] += 1
        host = self._host
        host[code] += 1
        host[_BYTES] += size
        owner[code] += 1
        owner[_BYTES] += size
        if token:
            place = _TOKEN[token]
            host[place] += 1
            owner[place] += 1
        if status == 429:
            host[_LIMITED] += 1
            owner[_LIMITED] += 1
        self._changed.add(caller.slot)
        self._is_new = True

    def malformed(self) -> None:
        """Count what was no request of HTTP; its answer is counted too, as that of a request is."""
        self._malformed += 1
        self._is_new = True

    def forget(self, slot: int, generation: int) -> None:
        """The slot is nobody's any more, or another owner's."""
        owner = self._owners.get(slot)
        if owner is not None and owner[_GENERATION] == generation:
            del self._owners[slot]

    def again(self) -> None:
        """Who is told next knows nothing yet: `changed` yields all."""
        self._changed.update(self._owners)
        self._is_new = True

    def changed(self) -> Iterator[Totals | Usage]:
        """What changed since the last call, a line each. Who gives up in between calls `again` before the next one."""
        if self._is_new:
            self._is_new = False
            spent = {name: tuple(row) for name, row in self._backends.items()}
            yield Totals(tuple(self._host), self._malformed, spent)
        slots = list(self._changed)
        self._changed = set()
        for start in range(0, len(slots), OWNERS_PER_LINE):
            rows = [self._row(slot) for slot in slots[start : start + OWNERS_PER_LINE] if slot in self._owners]
            if rows:
                yield Usage(rows)

    def _row(self, slot: int) -> tuple[int, int, tuple[int, ...]]:
        owner = self._owners[slot]
        return slot, owner[_GENERATION], tuple(owner[:_GENERATION])

    def _owner(self, caller: Caller) -> list[int]:
        """A row for a slot's owner. What a former one of the slot was still sent counts for nobody."""
        known = self._owners.get(caller.slot)
        if known is not None and known[_GENERATION] > caller.generation:
            return self._nobody
        self._owners[caller.slot] = owner = [0] * len(COUNTS) + [caller.generation]
        return owner

    def _backend(self, name: str) -> list[int]:
        self._backends[name] = spent = [0] * SPENT
        return spent
