"""The file of token keys: made, kept, changed daily, never lost and never replaced silently."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from shim import keys
from shim.core.exchange import Caller
from shim.core.policy import Family
from shim.errors import StoreError
from shim.forward.token import KEY_BYTES, TTL_MAX, Keys, mint, verify
from shim.keys import DAY_SECONDS, KEEP_SECONDS, LEAD_SECONDS, KeyFile

NOW = 1_764_000_000.0
MINUTE = 60.0
CALLER = Caller(1, 1, UUID("c0ffee00-1111-4222-8333-444455556666"), Family.V4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token.keys"


def names(path: Path) -> list[str]:
    """What is in its folder."""
    return [found.name for found in path.parent.iterdir()]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 10 bytes: as a full disk, writing one fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_made_at_first_and_found_again(path: Path) -> None:
    ring = KeyFile(path, NOW).ring(NOW)
    assert len(ring) == 1
    assert len(ring[0][1]) == KEY_BYTES
    assert KeyFile(path, NOW + 5).ring(NOW + 5) == ring
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path) == [path.name]


def test_two_hosts_have_different_keys(tmp_path: Path) -> None:
    rings = [KeyFile(tmp_path / str(number), NOW).ring(NOW) for number in range(20)]
    assert len({ring[0][1] for ring in rings}) == 20


def test_private_whatever_the_umask(path: Path) -> None:
    old = os.umask(0)
    try:
        KeyFile(path, NOW).rotate(NOW)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_days_life(path: Path) -> None:
    """Minute by minute: when keys come, sign and go. A token is good to its end, though news come late."""
    file = KeyFile(path, NOW)
    first = file.ring(NOW)[0]
    signed, rings = {}, {}
    for minute in range(3 * 1440):
        now = NOW + minute * MINUTE
        file.turn(now)
        rings[minute] = file.ring(now)
        signed[minute] = rings[minute][0][0]
        assert len(rings[minute]) <= 3
    assert len(set(signed.values())) == 3
    assert [minute for minute in signed if minute and signed[minute] != signed[minute - 1]] == [1440, 2880]
    assert first in rings[1440 + 361] and first not in rings[1440 + 363]
    for minute in range(0, 2 * 1440, 7):
        before = Keys(rings[max(0, minute - 1)])  # who signs may be behind by a minute, and so may who verifies
        token = mint(before, CALLER, NOW + minute * MINUTE, TTL_MAX)
        assert token is not None
        for later in (0, 1, 180, 359, 360):
            then = minute + later
            for ring in (rings[then], rings[max(0, then - 1)]):
                assert verify(Keys(ring), CALLER, NOW + then * MINUTE - 1, token)
    assert KeyFile(path, now).ring(now) == rings[3 * 1440 - 1]


def test_turn_says_whether_it_wrote(path: Path) -> None:
    file = KeyFile(path, NOW)
    assert not file.turn(NOW)
    assert not file.turn(NOW + DAY_SECONDS - LEAD_SECONDS - 1)
    assert file.turn(NOW + DAY_SECONDS)
    assert not file.turn(NOW + DAY_SECONDS + 1)
    assert file.turn(NOW + DAY_SECONDS + LEAD_SECONDS + KEEP_SECONDS)
    assert len(file.ring(NOW + 2 * DAY_SECONDS)) == 1


def test_after_a_week_off_the_old_key_still_holds_for_what_it_just_signed(path: Path) -> None:
    old = KeyFile(path, NOW).ring(NOW)[0]
    week = NOW + 7 * DAY_SECONDS
    file = KeyFile(path, week)
    assert file.turn(week)
    assert file.ring(week)[0] == old  # no worker knows the new one yet
    assert file.ring(week + LEAD_SECONDS)[0] != old
    file.turn(week + KEEP_SECONDS)
    assert old in file.ring(week + KEEP_SECONDS)


def test_rotation_by_hand(path: Path) -> None:
    file = KeyFile(path, NOW)
    old = file.ring(NOW)[0]
    file.rotate(NOW + 5)
    assert file.ring(NOW + 5)[0] == old and len(file.ring(NOW + 5)) == 2
    after = NOW + 5 + LEAD_SECONDS
    assert file.ring(after)[0] != old and old in file.ring(after)
    assert KeyFile(path, after).ring(after) == file.ring(after)


def test_rotation_in_an_emergency(path: Path) -> None:
    file = KeyFile(path, NOW)
    file.rotate(NOW)
    old = file.ring(NOW)
    file.rotate(NOW + 5, drop_old=True)
    assert len(file.ring(NOW + 5)) == 1
    assert not {key for _, key in old} & {key for _, key in file.ring(NOW + 5)}
    assert KeyFile(path, NOW).ring(NOW + 5) == file.ring(NOW + 5)


def test_rotation_again_and_again_does_not_grow_the_file_for_ever(path: Path) -> None:
    file = KeyFile(path, NOW)
    for _ in range(100):
        file.rotate(NOW)
    assert len(file.ring(NOW)) <= 64
    assert KeyFile(path, NOW).ring(NOW) == file.ring(NOW)


def test_a_clock_that_was_years_ahead(path: Path) -> None:
    """Its key does not sign on for years once the clock is right."""
    file = KeyFile(path, NOW + 1e9)
    ahead = file.ring(NOW)[0]
    assert file.turn(NOW)
    assert not file.turn(NOW + 1)
    assert file.ring(NOW + LEAD_SECONDS)[0] != ahead
    file.turn(NOW + KEEP_SECONDS + 2 * LEAD_SECONDS)
    assert ahead not in file.ring(NOW + KEEP_SECONDS + 2 * LEAD_SECONDS)


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    file = KeyFile(path, NOW)
    raw, ring = path.read_bytes(), file.ring(NOW)
    later = NOW + DAY_SECONDS
    with full_disk():
        for attempt in (file.turn, file.rotate, partial(file.rotate, drop_old=True)):
            with pytest.raises(StoreError, match=str(path)) as caught:
                attempt(later)
            assert "full" in caught.value.hint
    assert (path.read_bytes(), file.ring(later)) == (raw, ring)
    assert names(path) == [path.name]
    assert file.turn(later)


def test_a_full_disk_at_first_leaves_nothing(path: Path) -> None:
    with full_disk(), pytest.raises(StoreError):
        KeyFile(path, NOW)
    assert names(path) == []


def test_a_crash_while_writing_is_no_matter(path: Path) -> None:
    file = KeyFile(path, NOW)
    beside = path.with_name("token.keys.new")
    beside.write_bytes(b"{half")
    assert KeyFile(path, NOW).ring(NOW) == file.ring(NOW)
    file.rotate(NOW)
    assert not beside.exists()


def test_a_link_in_its_way_is_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    file = KeyFile(path, NOW)
    path.with_name("token.keys.new").symlink_to(victim)
    file.rotate(NOW)
    assert victim.read_bytes() == b"precious"
    path.rename(victim)
    path.symlink_to(victim)
    with pytest.raises(StoreError, match=str(path)):
        KeyFile(path, NOW)


def damaged(raw: bytes) -> list[bytes]:
    short = msgspec.json.encode({"version": 1, "keys": [{"id": 1, "key": b"short", "begins": 0.0}]})
    twice = msgspec.json.encode({"version": 1, "keys": [{"id": 1, "key": b"k" * 32, "begins": 0.0}] * 2})
    newer = raw.replace(b'"version":1', b'"version":2')
    return [b"", b"{", raw[:-3], b"null", b'{"version":1,"keys":[]}', short, twice, newer, b"\xff" + raw, raw + b"x"]


@pytest.mark.parametrize("number", range(10))
def test_a_damaged_file_is_told_of_and_left(path: Path, number: int) -> None:
    KeyFile(path, NOW)
    raw = damaged(path.read_bytes())[number]
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=str(path)) as caught:
        KeyFile(path, NOW)
    assert "delete it" in caught.value.hint
    assert caught.value.__cause__ is None
    assert path.read_bytes() == raw


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_that_others_could_read_is_not_used(path: Path, mode: int) -> None:
    KeyFile(path, NOW)
    path.chmod(mode)
    with pytest.raises(StoreError, match=f"{mode:04o}") as caught:
        KeyFile(path, NOW)
    assert "delete it" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_nor_one_that_another_owns(path: Path) -> None:
    KeyFile(path, NOW)
    os.chown(path, 12345, -1)
    with pytest.raises(StoreError, match="owner 12345"):
        KeyFile(path, NOW)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file(path: Path, make: object) -> None:
    make(path)  # type: ignore[operator]
    with pytest.raises(StoreError, match=str(path)):
        KeyFile(path, NOW)


def test_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        KeyFile(tmp_path / "gone" / "token.keys", NOW)


def test_keys_do_not_show_in_logs(path: Path) -> None:
    file = KeyFile(path, NOW)
    secret = file.ring(NOW)[0][1]
    shown = repr(file) + repr(file._keys) + repr(keys._File(1, file._keys))
    assert repr(secret)[2:-1] not in shown
    assert msgspec.json.encode(secret).decode().strip('"') not in shown
