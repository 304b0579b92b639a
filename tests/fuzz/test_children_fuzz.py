# Invariants: whatever bytes a child writes, a line is a message that obeys every bound or it is refused by a
# ValueError, and a message is taken over as a whole or not at all. Whatever JSON a server of OVSDB answers, following
# it raises nothing but what ends the connection, and what is told of it then are messages that the agent takes.
"""Fuzzing of what comes from outside by the identity sources' children."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import ovs.jsonrpc
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.core.names import parse_netns, parse_project, parse_tap
from shim.identity.ovs import Telling
from shim.identity.ovsdb import MONITOR, STRANGE, Follower
from shim.identity.said import TEXT_MAX, Claim, Said, applied, decode, encode, parse_mac, plain

UUIDS = ["6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60", "C0FFEE00111142228333444455556666", "", "x", "{" + "0" * 32 + "}"]
KNOWN = st.sampled_from(["", "tap1", "tap2", "rack1", "10.0.0.5", "fe80::1%1", "x" * 300, "\ud800", *UUIDS])
TEXTS = st.one_of(KNOWN, KNOWN, st.text(max_size=20))
GOOD = st.builds(
    Claim, tap=st.sampled_from(["tap1", "tap2", "tap3"]), instance=st.sampled_from(UUIDS[:2]),
    netns=st.sampled_from(["", "rack1"]),
)  # fmt: skip
CLAIMS = st.builds(
    lambda claim, field, text: msgspec.structs.replace(claim, **{field: text}),
    GOOD, st.sampled_from(Claim.__struct_fields__), TEXTS,
)  # fmt: skip
SAYINGS = st.builds(
    Said,
    whole=st.booleans(), claims=st.lists(st.one_of(GOOD, CLAIMS), max_size=4).map(tuple),
    gone=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple), trouble=st.text(max_size=50),
)  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)
NAMES = ["whole", "claims", "gone", "trouble", "tap", "instance", "netns"]
NEAR = st.recursive(
    JSON, lambda one: st.dictionaries(st.sampled_from(NAMES), st.one_of(one, st.lists(one, max_size=3))), max_leaves=8
)


def checked(mapping: Any) -> None:
    """All that a mapping holds is as its readers may expect."""
    for (netns, tap), subject in mapping.items():
        assert (parse_netns(netns), parse_tap(tap)) == (netns, tap)
        assert parse_project(subject.project) == subject.project
        assert parse_mac(subject.mac) == subject.mac
        for text in (subject.name, subject.flavor, subject.port):
            assert text == plain(text)
            assert len(text) <= TEXT_MAX


def taken(known: Any, line: bytes) -> Any:
    """The mapping after a line, which is that before it where the line is refused."""
    before = dict(known)
    try:
        now = applied(known, decode(line))
    except ValueError:
        now = known
    assert known == before
    checked(now)
    return now


@given(st.lists(st.one_of(st.binary(max_size=200), NEAR.map(lambda said: json.dumps(said).encode())), max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_lines(lines):
    known: Any = {}
    for line in lines:
        known = taken(known, line)


@given(st.lists(SAYINGS, max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_messages(sayings):
    known: Any = {}
    for said in sayings:
        try:
            line = encode(said)
        except ValueError:  # no child says that
            continue
        now = taken(known, line)
        if now is not known:
            claimed = {claim.key for claim in said.claims}
            assert now.keys() == claimed | (set() if said.whole else known.keys() - set(said.gone))
        known = now


PAIRS = st.lists(st.tuples(st.one_of(TEXTS, st.sampled_from(["vm-uuid", "iface-id"])), TEXTS), max_size=3)
MAPS = st.one_of(JSON, st.tuples(st.just("map"), PAIRS))
ROWS = st.one_of(JSON, st.builds(lambda name, ids: {"new": {"name": name, "external_ids": ids}}, TEXTS, MAPS))
INTERFACES = st.dictionaries(st.sampled_from("abc"), ROWS, max_size=3)
TABLES = st.one_of(JSON, INTERFACES.map(lambda rows: {"Interface": rows}))
SHORT = st.one_of(JSON, st.lists(JSON, max_size=1))
ANSWERS = st.one_of(
    JSON,
    st.fixed_dictionaries({"id": st.just(1), "error": st.none(), "result": TABLES}),
    st.fixed_dictionaries({"id": st.just(1), "error": JSON, "result": st.none()}),
    st.fixed_dictionaries(
        {"id": st.none(), "method": st.just("update"), "params": st.one_of(SHORT, st.tuples(st.just(MONITOR), TABLES))}
    ),
)


@given(st.lists(ANSWERS, max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_answers_of_a_database(answers):
    """What the library lets through of each, as if it came on a connection on which the table was asked for as 1."""
    follower, known = Follower("unix:/nowhere"), {}
    follower._asked = 1
    follower._take(ovs.jsonrpc.Message.create_reply({}, 1))
    telling = Telling(follower)
    for answer in json.loads(json.dumps(answers)):
        message = ovs.jsonrpc.Message.from_json(answer)
        if isinstance(message, str):
            continue  # it ends the connection
        try:
            follower._take(message)
        except STRANGE:
            follower.read = False
        said = telling.next()
        if said is not None:
            known = applied(known, decode(encode(said)))
            checked(known)
