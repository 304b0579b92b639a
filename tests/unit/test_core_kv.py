"""Keys of the store: how they may be spelt, which cannot be beside each other, and their tags."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.kv import KEY_BYTES, SEGMENTS_MAX, Value, clash, etag, parse_key
from shim.core.source import Reads

SEGMENTS = st.text("abzAZ09._~:@+=,-", min_size=1, max_size=6).filter(lambda one: one not in (".", ".."))
KEYS = st.tuples(st.sampled_from(("host", "guest")), st.lists(SEGMENTS, min_size=1, max_size=SEGMENTS_MAX)).map(
    lambda parts: "/".join((parts[0], *parts[1]))
)
PLAIN = re.compile(r"(?:host|guest)(?:/[A-Za-z0-9._~:@+=,-]+)+")


@pytest.mark.parametrize(
    "key",
    [
        "host/a", "guest/a/b", "guest/ssh_host/key.pub@x:1+2=3,4~-", "guest/...", "guest/" + "x" * 128,
        "guest/" + "/".join("abcdefgh"), f"guest/{'x' * 128}/{'y' * 121}",
    ],
)  # fmt: skip
def test_a_key_stays_as_it_is(key: str) -> None:
    assert parse_key(key) == key


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "begins with"), ("a", "begins with"), ("guest", "begins with"), ("Guest/a", "begins with"),
        ("/guest/a", "begins with"), ("guests/a", "begins with"), ("kv/guest/a", "begins with"),
        ("guest/", "segments are"), ("guest//a", "segments are"), ("guest/a/", "segments are"),
        ("guest/.", "segments are"), ("guest/../host", "segments are"), ("guest/a b", "segments are"),
        ("guest/a\n", "segments are"), ("guest/ä", "segments are"), ("guest/a%2fb", "segments are"),
        ("guest/a\0", "segments are"), ("guest/" + "x" * 129, "segments are"),
        (f"guest/{'x' * 128}/{'y' * 122}", "at most 256 bytes"),
        ("guest/" + "/".join("abcdefghi"), "8 segments"),
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused_in_our_own_words(key: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_key(key)
    assert len(str(caught.value)) < 100


@given(KEYS)
def test_every_key_that_is_well_formed_is_taken(key: str) -> None:
    assert parse_key(key) == key


@given(st.text(max_size=300) | st.text("guesthost/.a \n%", max_size=40) | KEYS.map(lambda key: key + "/" + key))
def test_whatever_is_taken_is_well_formed(text: str) -> None:
    try:
        key = parse_key(text)
    except ValueError:
        return
    assert PLAIN.fullmatch(key) and key.isascii() and len(key) <= KEY_BYTES
    assert not {".", ".."} & set(key.split("/")) and key.count("/") <= SEGMENTS_MAX


@given(KEYS, KEYS)
def test_two_clash_if_one_is_a_folder_of_the_other(one: str, other: str) -> None:
    folder = one != other and one.split("/") == other.split("/")[: one.count("/") + 1]
    folder = folder or (one != other and other.split("/") == one.split("/")[: other.count("/") + 1])
    assert clash(one, [other]) == (other if folder else None)
    assert (clash(other, [one]) is None) == (not folder)


def test_the_first_that_clashes_is_named() -> None:
    assert clash("guest/a/b", ["guest/ab", "guest/a/bc", "guest/a", "guest/a/b/c"]) == "guest/a"
    assert clash("guest/a", ["guest/a", "guest/a.b", "host/a/b"]) is None
    assert clash("guest/a", []) is None


def test_a_tag_is_of_the_bytes_alone() -> None:
    assert etag(b"") != etag(b"\0") and re.fullmatch(r"[0-9a-f]{16}", etag(b"x"))
    assert Value("guest/a", b"x", revision=1).etag == Value("host/b", b"x", Reads.ONCE, revision=2).etag == etag(b"x")


def test_an_item_is_another_once_it_is_written_again() -> None:
    assert Value("guest/a/b", b"", revision=7).item == "kv guest/a/b 7"
