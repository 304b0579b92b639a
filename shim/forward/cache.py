"""Answers of the embedded backend that were made before, until something of theirs changes.

Operators write seldom and guests read the same few paths again and again. What is kept is bounded in bytes, and in
answers per instance, so that one which asks for ever new spellings of paths pushes out its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import inf
from uuid import UUID

from shim.core.exchange import Rendered

CACHE_BYTES = 8 << 20
ANSWERS_PER_INSTANCE = 64

_OVERHEAD = 700  # bytes that an answer takes beside its path and body: objects, and the dict's share


class Cache:
    """By instance and path. Whoever keeps an answer sees to it that the path alone decides what it is."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._answers: OrderedDict[int, dict[bytes, Rendered]] = OrderedDict()  # UUID's own hash runs Python code
        self.held = 0
        """Bytes that the kept answers take, as reckoned."""

    def get(self, instance: UUID, path: bytes, now: Callable[[], float]) -> Rendered | None:
        """The answer that holds at `now()` (Unix seconds)."""
        key = instance.int
        answers = self._answers.get(key)
        kept = answers.get(path) if answers is not None else None
        if kept is None or (kept.until != inf and kept.until <= now()):
            return None
        self._answers.move_to_end(key)
        return kept

    def keep(self, instance: UUID, path: bytes, rendered: Rendered) -> None:
        """Keep an answer, if there is room for it at all."""
        cost = _cost(path, rendered)
        if cost > self._most_bytes:
            return
        key = instance.int
        answers = self._answers.setdefault(key, {})
        if path in answers:
            self.held -= _cost(path, answers.pop(path))
        if len(answers) >= ANSWERS_PER_INSTANCE:
            self._drop(key)
        while self.held + cost > self._most_bytes:
            self._drop(next(iter(self._answers)))
        self._answers.setdefault(key, {})[path] = rendered
        self._answers.move_to_end(key)
        self.held += cost

    def drop(self, instance: UUID) -> None:
        """Forget the answers of one instance."""
        self._drop(instance.int)

    def _drop(self, key: int) -> None:
        self.held -= sum(_cost(path, rendered) for path, rendered in self._answers.pop(key, {}).items())

    def clear(self) -> None:
        """Forget all."""
        self._answers.clear()
        self.held = 0


def _cost(path: bytes, rendered: Rendered) -> int:
    return _OVERHEAD + len(path) + len(rendered.response.body)
