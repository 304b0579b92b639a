"""The embedded backend: whose answer it is, when a kept one counts, and what keeping may cost."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from shim.core.exchange import Caller, Request, Response
from shim.core.policy import Family
from shim.errors import StoreError
from shim.forward.embedded import ANSWERS_PER_INSTANCE, Embedded

A = UUID(int=1)
B = UUID(int=2)


class Site:
    """A store of one number, and answers that say whose they are and of which state."""

    def __init__(self, cache_bytes: int = 1 << 20, size: int = 0) -> None:
        self.state = 0
        self.broken = False
        self.made: Counter[tuple[int, bytes]] = Counter()
        self._size = size
        self.now = 1_000.0
        self.backend = Embedded(self.version, self.render, cache_bytes, clock=lambda: self.now)

    def version(self) -> int:
        if self.broken:
            raise StoreError("gone")
        return self.state

    def render(self, instance: UUID, request: Request) -> Response:
        self.made[instance.int, request.path] += 1
        body = b"%d %d " % (instance.int, self.state) + request.path + b"x" * self._size
        status = {b"POST": 405, b"PUT": 200}.get(request.method, 404 if request.path == b"/none" else 200)
        return Response(status, (), body)

    def ask(
        self, instance: UUID, path: bytes = b"/a", method: bytes = b"GET", later: float = 0.002
    ) -> Response:
        self.now += later
        return self.backend(Caller(1, 1, instance, Family.V4), Request(method, path))


def test_a_kept_answer_is_the_same_and_made_once() -> None:
    site = Site()
    first = site.ask(A)
    assert first.body == b"1 0 /a"
    assert site.ask(A) == site.ask(A, method=b"HEAD") == first
    assert site.made[1, b"/a"] == 1


def test_each_instance_has_its_own() -> None:
    site = Site()
    for _ in range(2):
        assert [site.ask(A).body, site.ask(B).body] == [b"1 0 /a", b"2 0 /a"]
    assert site.ask(A, b"/b").body == b"1 0 /b"


def test_a_change_of_the_store_ends_all_that_is_kept() -> None:
    site = Site()
    site.ask(A)
    site.ask(B)
    site.state = 1
    assert [site.ask(A).body, site.ask(B).body] == [b"1 1 /a", b"2 1 /a"]
    site.state = 0
    assert site.ask(A).body == b"1 0 /a"


def test_the_store_is_asked_every_two_milliseconds() -> None:
    site = Site()
    site.ask(A)
    site.state = 1
    assert site.ask(A, later=0.0015).body == b"1 0 /a"
    assert site.ask(A, later=0.0006).body == b"1 1 /a"


def test_other_methods_and_errors_are_never_kept_nor_answered_from_what_is() -> None:
    site = Site()
    site.ask(A)
    assert site.ask(A, method=b"POST").status == 405
    assert [site.ask(A, b"/p", method=b"PUT").status for _ in range(2)] == [200, 200]
    assert site.made[1, b"/p"] == 2
    for _ in range(2):
        assert site.ask(A, b"/none").status == 404
    assert site.made[1, b"/none"] == 2
    assert site.ask(A).status == 200


def test_an_unreadable_store_gets_503_and_retry_after_even_for_what_was_kept() -> None:
    site = Site()
    site.ask(A)
    site.broken = True
    response = site.ask(A)
    assert response.status == 503
    assert int(dict(response.headers)[b"retry-after"]) > 0
    site.broken = False
    assert site.ask(A).status == 200


def test_a_store_that_fails_in_the_middle_gets_503() -> None:
    def fail(_instance: UUID, _request: Request) -> Response:
        raise StoreError("gone")

    backend = Embedded(lambda: 0, fail)
    assert backend(Caller(1, 1, A, Family.V4), Request(b"GET", b"/")).status == 503


def test_what_is_kept_is_bounded_and_the_least_recent_instance_goes_first() -> None:
    site = Site(cache_bytes=30_000, size=9_000)
    site.ask(A)
    site.ask(B)
    site.ask(UUID(int=3))
    site.ask(A)
    site.ask(UUID(int=4))
    assert site.backend.held <= 30_000
    for instance in (A, B):
        site.ask(instance)
    assert (site.made[1, b"/a"], site.made[2, b"/a"]) == (1, 2)


def test_an_answer_larger_than_all_is_not_kept() -> None:
    site = Site(cache_bytes=5_000, size=9_000)
    for _ in range(2):
        assert site.ask(A).status == 200
    assert site.made[1, b"/a"] == 2
    assert site.backend.held == 0


def test_one_instance_pushes_out_its_own_only() -> None:
    site = Site()
    site.ask(B)
    for number in range(ANSWERS_PER_INSTANCE * 20):
        site.ask(A, b"/%d" % number)
    site.ask(B)
    assert site.made[2, b"/a"] == 1
    assert site.backend.held <= (ANSWERS_PER_INSTANCE + 1) * 700


def test_the_reckoning_comes_back_to_nothing() -> None:
    site = Site(cache_bytes=20_000, size=3_000)
    for number in range(200):
        site.ask(UUID(int=number % 7 + 1), b"/%d" % (number % 5))
        assert 0 < site.backend.held <= 20_000
    site.state = 1
    site.ask(A, b"/none")
    assert site.backend.held == 0
