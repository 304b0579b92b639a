"""Answers that are kept: whose they are, until when they count, and what keeping may cost."""

from __future__ import annotations

from math import inf
from uuid import UUID

from shim.core.exchange import Rendered, Response
from shim.forward.cache import ANSWERS_PER_INSTANCE, Cache

A = UUID(int=1)
B = UUID(int=2)
NOW = 1_000.0


def made(text: bytes = b"x", until: float = inf) -> Rendered:
    return Rendered(Response(200, (), text), "tag", (), until)


def body(cache: Cache, instance: UUID, path: bytes = b"/a", now: float = NOW) -> bytes | None:
    kept = cache.get(instance, path, lambda: now)
    return None if kept is None else kept.response.body


def test_each_instance_has_its_own() -> None:
    cache = Cache()
    cache.keep(A, b"/a", made(b"1"))
    cache.keep(B, b"/a", made(b"2"))
    assert [body(cache, A), body(cache, B), body(cache, A, b"/b")] == [b"1", b"2", None]


def test_one_is_dropped_and_the_others_stay() -> None:
    cache = Cache()
    cache.keep(A, b"/a", made(b"1"))
    cache.keep(B, b"/a", made(b"2"))
    cache.drop(A)
    cache.drop(UUID(int=3))
    assert [body(cache, A), body(cache, B)] == [None, b"2"]
    cache.clear()
    assert body(cache, B) is None and cache.held == 0


def test_what_holds_until_a_time_does_not_count_then() -> None:
    cache = Cache()
    cache.keep(A, b"/a", made(until=NOW + 1))
    assert body(cache, A) == b"x"
    assert body(cache, A, now=NOW + 1) is None


def test_the_last_one_kept_counts() -> None:
    cache = Cache()
    cache.keep(A, b"/a", made(b"first, and long"))
    held = cache.held
    cache.keep(A, b"/a", made(b"second"))
    assert body(cache, A) == b"second" and cache.held < held


def test_what_is_kept_is_bounded_and_the_least_recent_instance_goes_first() -> None:
    cache = Cache(30_000)
    for number in (1, 2, 3):
        cache.keep(UUID(int=number), b"/a", made(b"x" * 9_000))
    assert body(cache, A)
    cache.keep(UUID(int=4), b"/a", made(b"x" * 9_000))
    assert cache.held <= 30_000
    assert body(cache, A) and not body(cache, B)


def test_an_answer_larger_than_all_is_not_kept() -> None:
    cache = Cache(5_000)
    cache.keep(A, b"/a", made(b"x" * 9_000))
    assert body(cache, A) is None and cache.held == 0


def test_one_instance_pushes_out_its_own_only() -> None:
    cache = Cache()
    cache.keep(B, b"/a", made())
    for number in range(ANSWERS_PER_INSTANCE * 20):
        cache.keep(A, b"/%d" % number, made())
    assert body(cache, B) == b"x"
    assert cache.held <= (ANSWERS_PER_INSTANCE + 1) * 800


def test_the_reckoning_comes_back_to_nothing() -> None:
    cache = Cache(20_000)
    for number in range(200):
        cache.keep(UUID(int=number % 7 + 1), b"/%d" % (number % 5), made(b"x" * 3_000))
        assert 0 < cache.held <= 20_000
    for number in range(7):
        cache.drop(UUID(int=number + 1))
    assert cache.held == 0
