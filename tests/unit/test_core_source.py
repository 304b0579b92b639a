"""Sources: scopes and names as they are written, what an instance is in, and the order they are composed in."""

from __future__ import annotations

import re
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.ask import Item
from shim.core.source import HOST, Scope, Source, in_order, parse_name, parse_scope, scopes_of

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
SCOPES = st.one_of(
    st.just(HOST),
    st.builds(Scope, st.sampled_from(("project", "image")), WORDS),
    st.builds(lambda key, value: Scope("tag", f"{key}={value}"), WORDS.filter(lambda key: "=" not in key), WORDS),
    st.uuids().map(lambda one: Scope("instance", str(one))),
)


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("host", HOST), ("project:blue", Scope("project", "blue")), ("image:img-1", Scope("image", "img-1")),
        ("tag:role=web", Scope("tag", "role=web")), ("tag:role=", Scope("tag", "role=")),
        ("tag:a=b=c", Scope("tag", "a=b=c")), ("project:a:b", Scope("project", "a:b")),
        (str(A), Scope("instance", str(A))), (str(A).upper(), Scope("instance", str(A))),
        (A.hex, Scope("instance", str(A))), (f"instance:{A.hex.upper()}", Scope("instance", str(A))),
    ],
)  # fmt: skip
def test_a_scope_is_read(text: str, scope: Scope) -> None:
    assert parse_scope(text) == scope


@pytest.mark.parametrize(
    "text",
    [
        "", "hosts", "host:", "host:x", "Host", "project", "project:", "project:a b", "project:ä", "image:", "tag:role",
        "tag:=web", "tag:", "tag", "instance:", "instance:web", "instance", f"urn:uuid:{A}", f"{{{A}}}", "backend:x",
        "document", "project:a\n", "project:" + "x" * 257, f"instance:{A}x", ":x", "project:a\0",
    ],
)  # fmt: skip
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no scope|is not an instance id"):
        parse_scope(text)


@given(SCOPES)
def test_a_scope_is_written_as_it_is_read(scope: Scope) -> None:
    assert parse_scope(scope.text) == scope


@given(st.text(max_size=60) | st.sampled_from(("host", "project", "image", "tag", "instance")).flatmap(
    lambda kind: st.text(max_size=20).map(lambda value: f"{kind}:{value}")))  # fmt: skip
def test_whatever_is_taken_is_written_so_that_it_is_taken_again(text: str) -> None:
    try:
        scope = parse_scope(text)
    except ValueError:
        return
    assert parse_scope(scope.text) == scope and re.fullmatch(r"[!-~]+", scope.text)


def test_a_guest_is_shown_the_key_of_a_tag_alone() -> None:
    shown = [parse_scope(text).label for text in ("host", "project:blue", "image:x", "tag:role=web", str(A))]
    assert shown == ["host", "project", "image", "tag:role", "instance"]


@pytest.mark.parametrize("name", ["a", "0", "base.cfg", "A-b_c.9", "x" * 64])
def test_a_name_stays_as_it_is(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "_a", ".a", "a/b", "a b", "a\n", "ä", "x" * 65, "a:b", "a%"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a source"):
        parse_name(name)


def test_an_instance_is_in_all_of_its_scopes_the_broadest_first() -> None:
    found = scopes_of(A, "blue", "img", {"role": "web", "env": "prod"})
    assert [one.text for one in found] == [
        "host", "project:blue", "image:img", "tag:env=prod", "tag:role=web", f"instance:{A}",
    ]  # fmt: skip
    assert [one.rank for one in found] == sorted(one.rank for one in found)
    assert scopes_of(A, "", "", {}) == (HOST, Scope("instance", str(A)))


def test_two_tags_that_are_written_alike_are_one_scope() -> None:
    found = scopes_of(A, "", "", {"a": "b=c", "a=b": "c"})
    assert [one.text for one in found] == ["host", "tag:a=b=c", f"instance:{A}"]


SOURCES = st.builds(Source, SCOPES, st.sampled_from(("a", "b")), st.just(b""), order=st.integers(498, 502))


@given(st.lists(SOURCES, max_size=8))
def test_sources_are_in_one_order_however_they_come(sources: list[Source]) -> None:
    found = in_order(sources)
    assert found == in_order(reversed(sources)) and sorted(map(id, found)) == sorted(map(id, sources))
    for one, other in pairwise(found):
        assert one.order <= other.order
        if one.order == other.order:
            assert (one.scope.rank, one.scope.text, one.name) <= (other.scope.rank, other.scope.text, other.name)


def test_order_counts_before_scope_and_scope_before_name() -> None:
    own, host = Scope("instance", str(A)), HOST
    wanted = [
        Source(own, "z", b"", order=1), Source(host, "b", b"", order=2), Source(own, "a", b"", order=2),
        Source(own, "b", b"", order=2), Source(host, "a", b"", order=3),
    ]  # fmt: skip
    assert list(in_order(wanted[::-1])) == wanted


def test_an_item_is_another_once_it_is_written_again_and_has_room_in_an_ask() -> None:
    assert Source(HOST, "base", b"", revision=7).item == "source host/base 7"
    longest = Source(Scope("tag", "k=" + "v" * 254), "n" * 64, b"", revision=10**18 - 1)
    (most,) = (meta.max_length for meta in Item.__metadata__)
    assert longest.scope == parse_scope(longest.scope.text) and len(longest.item) <= most
    assert longest.id == "tag:k/" + "n" * 64
