"""How much one instance may ask."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.forward.allowance import TOO_MANY, Allowance, Concurrency

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
B = UUID("c0ffee00-1111-4222-8333-444455556666")


def taken(allowance: Allowance, instance: UUID, now: float, tries: int = 1000) -> int:
    return sum(allowance.take(instance, now) for _ in range(tries))


def test_a_burst_then_the_rate() -> None:
    allowance = Allowance(rate=10, burst=5)
    assert taken(allowance, A, 100.0) == 5
    assert taken(allowance, A, 100.05) == 0
    assert taken(allowance, A, 100.11) == 1
    assert taken(allowance, A, 100.32) == 2
    assert taken(allowance, A, 200.0) == 5


def test_one_instance_takes_nothing_of_anothers() -> None:
    allowance = Allowance(rate=10, burst=5)
    assert taken(allowance, A, 1.0) == 5
    assert taken(allowance, B, 1.0) == 5


@given(st.integers(1, 1000), st.integers(1, 200), st.floats(0, 1e7))
def test_a_burst_is_whole_at_any_time(rate: int, burst: int, now: float) -> None:
    assert taken(Allowance(rate, burst), A, now) == burst


def test_who_is_refused_is_not_set_back() -> None:
    patient, hasty = Allowance(1, 1), Allowance(1, 1)
    assert patient.take(A, 0.0) and hasty.take(A, 0.0)
    assert not any(hasty.take(A, tick / 100) for tick in range(1, 100))
    assert hasty.take(A, 1.0) == patient.take(A, 1.0) is True


def test_who_waits_saves_up_no_more_than_a_burst() -> None:
    allowance = Allowance(rate=1, burst=20)
    assert allowance.take(A, 0.0)
    assert taken(allowance, A, 15.0) == 20


def test_a_bucket_is_not_forgotten_while_it_fills() -> None:
    """At the turns of the halves, which come every `burst / rate` seconds."""
    allowance = Allowance(rate=2, burst=4)
    allowed = sum(allowance.take(A, tick / 100) for tick in range(10_000))
    assert 200 <= allowed <= 204


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from([A, B]), st.floats(0, 3)), max_size=80),
)
def test_is_a_token_bucket(rate: int, burst: int, asked: list[tuple[UUID, float]]) -> None:
    """As a plain one, which forgets nothing, would decide; but where rounding decides."""
    allowance, plain, now = Allowance(rate, burst), dict.fromkeys((A, B), (float(burst), 0.0)), 0.0
    for instance, pause in asked:
        now += pause
        level, since = plain[instance]
        level = min(burst, level + (now - since) * rate)
        got = allowance.take(instance, now)
        if abs(level - 1) > 0.02:
            assert got == (level >= 1)
        plain[instance] = (level - got, now)


def test_full_buckets_are_forgotten() -> None:
    allowance = Allowance(rate=10, burst=10)
    for number in range(10_000):
        allowance.take(UUID(int=number), now=number / 1000)
    assert 1000 <= len(allowance) <= 2001
    allowance.take(A, 1000.0)
    assert len(allowance) == 1


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_no_allowance_at_all_is_a_mistake(rate: float, burst: int) -> None:
    with pytest.raises(ValueError):
        Allowance(rate, burst)


def test_what_a_guest_is_told() -> None:
    assert (TOO_MANY.status, TOO_MANY.close, dict(TOO_MANY.headers)[b"retry-after"]) == (429, True, b"1")


def test_requests_under_way() -> None:
    under_way = Concurrency(2)
    assert under_way.enter(A) and under_way.enter(A) and under_way.enter(B)
    assert not under_way.enter(A)
    under_way.leave(A)
    assert under_way.enter(A) and not under_way.enter(A)
    for instance in (A, A, B):
        under_way.leave(instance)
    assert len(under_way) == 0
    with pytest.raises(KeyError):
        under_way.leave(A)
