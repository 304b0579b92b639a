"""Whether what was made from the store still counts.

Asking the store takes longer than answering from memory, so it is asked at most every two milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

CHECK_SECONDS = 0.002
"""How long an answer may be behind the store."""


class Freshness:
    """Of one cache. `version` is another value after any change of the store, and raises StoreError when it cannot
    be read."""

    __slots__ = ("_check_at", "_clock", "_seen", "_version")

    def __init__(self, version: Callable[[], Hashable], clock: Callable[[], float] = time.monotonic) -> None:
        self._version = version
        self._clock = clock
        self._seen: Hashable = None
        self._check_at = float("-inf")

    def is_over(self) -> bool:
        """Whether the store has changed since this was last asked. Raises StoreError."""
        now = self._clock()
        if now < self._check_at:
            return False
        version = self._version()
        self._check_at = now + CHECK_SECONDS
        changed = version != self._seen
        self._seen = version
        return changed

    def is_due(self) -> bool:
        """Whether the store will be asked."""
        return self._clock() >= self._check_at

    @property
    def version(self) -> Hashable:
        """The version as of the last look."""
        return self._seen

    def doubt(self) -> None:
        """Look at the store the next time, however soon that is."""
        self._check_at = float("-inf")
