"""How much one instance may ask, over IPv4 and IPv6 together. PURE: clock readings are arguments, in seconds."""

from __future__ import annotations

from uuid import UUID

from shim.core.exchange import Response

TOO_MANY = Response(429, ((b"content-type", b"text/plain"), (b"retry-after", b"1")), b"too many requests\n", close=True)
"""What an instance over its allowance gets."""

_ROUNDING = 0.01  # of a request: what sums of floats may be off, else a burst is one short now and then


class Allowance:
    """A token bucket for each instance: `burst` requests at once, `rate` a second. Both are 1 or more.

    A bucket is one number: when it will be full again (the generic cell rate algorithm, ITU-T I.371). Buckets
    live in two halves, by when they were last drawn from. Once the younger half is as old as a bucket takes to
    fill, all of the elder is full, and so is forgotten: nothing is ever searched, and a worker remembers only
    those who asked of late.
    """

    __slots__ = ("_elder", "_interval", "_slack", "_turn_at", "_younger")

    def __init__(self, rate: float, burst: int) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("an allowance is of at least one request, and a rate above 0")
        self._interval = 1 / rate
        self._slack = (burst - 1 + _ROUNDING) / rate
        self._turn_at = float("-inf")
        self._younger: dict[int, float] = {}  # by UUID.int: UUID's own hash runs Python code
        self._elder: dict[int, float] = {}

    def __len__(self) -> int:
        """How many buckets are remembered."""
        return len(self._younger) + len(self._elder)

    def take(self, instance: UUID, now: float) -> bool:
        """Whether the instance may ask now. One that may not has nothing taken from it."""
        if now >= self._turn_at:
            self._turn(now)
        key = instance.int
        full_at = self._younger.get(key)
        if full_at is None:
            full_at = self._elder.get(key, now)
        if full_at < now:
            full_at = now
        elif full_at - now > self._slack:
            return False
        self._younger[key] = full_at + self._interval
        return True

    def has(self, instance: UUID, now: float) -> bool:
        """Whether `take` would say yes. Nothing is taken."""
        key = instance.int
        return self._younger.get(key, self._elder.get(key, now)) - now <= self._slack

    def _turn(self, now: float) -> None:
        filling = self._slack + self._interval
        self._elder = self._younger if now < self._turn_at + filling else {}
        self._younger = {}
        self._turn_at = now + filling


class Concurrency:
    """How many requests of one instance are under way at a time: at most `limit`."""

    __slots__ = ("_limit", "_under_way")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: dict[int, int] = {}

    def __len__(self) -> int:
        """How many instances have a request under way."""
        return len(self._under_way)

    def enter(self, instance: UUID) -> bool:
        """Whether one more may begin; then `leave` must follow once it has ended."""
        key = instance.int
        begun = self._under_way.get(key, 0)
        if begun >= self._limit:
            return False
        self._under_way[key] = begun + 1
        return True

    def has_room(self, instance: UUID) -> bool:
        """Whether one more might begin."""
        return self._under_way.get(instance.int, 0) < self._limit

    def leave(self, instance: UUID) -> None:
        """One has ended."""
        key = instance.int
        left = self._under_way[key] - 1
        if left:
            self._under_way[key] = left
        else:
            del self._under_way[key]
