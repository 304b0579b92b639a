"""What operators are shown of what an instance would be given."""

from __future__ import annotations

import json
import random
from typing import Any
from uuid import UUID

import msgspec
import yaml

from shim.control.live_shapes import PreviewView
from shim.core.policy import Composition
from shim.core.source import MERGE_DEFAULT, Kind, Reads, Source, parse_scope
from shim.metadata import compose
from shim.metadata.document import decode
from shim.metadata.merge import Problem
from shim.metadata.preview import KeyShown, check, preview
from shim.metadata.view import View

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")


def view(*sources: Source, limit: int = 49_149, composition: Composition = Composition.MERGED, **fields: Any) -> View:
    document = decode(json.dumps(fields).encode())
    return View(A, document, now=0.0, load_sources=lambda: list(sources), limit=limit, composition=composition)


def source(where: str, body: bytes, **fields: Any) -> Source:
    scope, _, name = where.rpartition("/")
    return Source(parse_scope(scope), name, body, **fields)


BASE = source("host/base", b"#cloud-config\npackages: [a]\nhostname: one\n", owner="platform", reads=Reads.ONCE)
TEAM = source("tag:team=shop/x", b"#cloud-config\npackages: [{{ tags.team }}]\n", template=True, until=9.5, order=600)


def test_all_of_an_instance() -> None:
    vendor = source("host/v", b"#!/bin/sh\n", kind=Kind.VENDOR)
    seen = view(BASE, TEAM, vendor, user_data="\u00e9", tags={"team": "shop"})
    shown = preview(seen)
    assert (shown.instance, shown.composition, shown.limit) == (A, "merged", 49_149)
    base, own, team = shown.user.parts
    assert (base.id, base.scope, base.name, base.owner, base.reads) == ("host/base", "host", "base", "platform", "once")
    assert (own.id, own.scope, own.name, own.text, own.bytes) == ("instance/document", "", "document", "\u00e9", 2)
    assert (team.id, team.scope, team.template, team.until) == ("tag:team/x", "tag:team=shop", True, 9.5)
    assert team.text == "#cloud-config\npackages: [shop]\n"
    assert (team.type, team.order, team.merge) == ("text/cloud-config", 600, MERGE_DEFAULT)
    assert shown.user.keys == [
        KeyShown("hostname", ["host/base"], []), KeyShown("packages", ["host/base", "tag:team/x"], []),
    ]  # fmt: skip
    assert yaml.safe_load(shown.user.config) == {"packages": ["a", "shop"], "hostname": "one"}
    assert [problem.id for problem in shown.user.problems] == ["instance/document"]
    composed = compose.user_data(seen)
    assert composed is not None
    assert shown.user.bytes == len(composed.body)
    assert [part.id for part in shown.vendor.parts] == ["host/v"]
    assert (shown.vendor.config, shown.vendor.problems, shown.vendor.bytes) == ("", [], 10)


def test_of_nothing() -> None:
    shown = preview(view())
    assert (shown.user.parts, shown.user.bytes, shown.vendor.parts, shown.user.problems) == ([], 0, [], [])


def test_what_fails_is_told_and_the_rest_is_shown() -> None:
    shown = preview(view(BASE, source("host/bad", b"\n{{ nope }}", template=True)))
    assert [part.id for part in shown.user.parts] == ["host/base"]
    assert shown.user.problems == [Problem("host/bad", "line 2: 'nope' is undefined")]
    assert shown.user.bytes == len(BASE.body)


def test_what_does_not_fit_is_told_and_shown_all_the_same() -> None:
    noise = "#!/bin/sh\n" + random.Random(1).randbytes(1000).hex()
    shown = preview(view(source("host/a", noise.encode()), BASE, limit=500))
    assert [problem.id for problem in shown.user.problems] == [""]
    assert "does not fit" in shown.user.problems[0].what
    assert (len(shown.user.parts), shown.user.bytes, shown.user.gzipped) == (2, 0, False)
    small = preview(view(source("host/a", noise.encode()), BASE, limit=1800))
    assert (small.user.gzipped, small.user.problems) == (True, [])
    assert small.user.bytes < 1800


def test_what_is_no_text_has_none() -> None:
    (part,) = preview(view(source("host/a", b"\xff\x00"))).user.parts
    assert (part.text, part.bytes, part.type) == (None, 2, "application/octet-stream")


def test_composition_vendor() -> None:
    shown = preview(view(BASE, composition=Composition.VENDOR, user_data="#!/bin/sh\n"))
    assert [part.id for part in shown.user.parts] == ["instance/document"]
    assert [part.id for part in shown.vendor.parts] == ["host/base"]
    assert yaml.safe_load(shown.vendor.config) == {"packages": ["a"], "hostname": "one"}
    assert shown.composition == "vendor"


def test_of_a_backends() -> None:
    shown = preview(view(BASE), backend=b"#cloud-config\npackages: [z]\n")
    assert [part.id for part in shown.user.parts] == ["host/base", "backend/user-data"]
    assert shown.user.keys[1].parts == ["host/base", "backend/user-data"]


def test_one_alone_is_shown_as_it_goes_without_its_merge_type() -> None:
    only = source("host/a", b"#cloud-config\na: 1\n", merge="list()")
    assert preview(view(only)).user.keys == [KeyShown("a", ["host/a"], [])]
    both = preview(view(only, BASE)).user
    assert "has no dict()" in both.problems[0].what
    assert KeyShown("a", [], ["host/a"]) in both.keys


def test_checking_tells_what_is_grave_alone() -> None:
    include = source("host/i", b"#include http://x\n")
    assert check(view(include, BASE)) == []
    assert preview(view(include, BASE)).user.problems != []
    broken = source("host/v", b"#cloud-config\na: [", kind=Kind.VENDOR)
    assert [problem.id for problem in check(view(include, broken))] == ["host/v"]


def test_yaml_that_refers_to_itself() -> None:
    pairs = zip("bcdefghijk", "abcdefghij", strict=True)
    lines = "".join(f"{one}: &{one} [*{other},*{other}]\n" for one, other in pairs)
    shown = preview(view(source("host/a", b"#cloud-config\na: &a [x]\n" + lines.encode()), BASE))
    assert len(shown.user.config) < 4000
    loop = preview(view(source("host/a", b"#cloud-config\na: &a [*a]\n"), BASE))
    assert yaml.safe_load(loop.user.config)["packages"] == ["a"]


def test_is_what_the_control_api_shows() -> None:
    shown = preview(view(BASE, TEAM, tags={"team": "shop"}))
    taken = msgspec.convert(shown, PreviewView, from_attributes=True)
    assert msgspec.to_builtins(taken.user.parts) == msgspec.to_builtins(shown.user.parts)
    assert msgspec.to_builtins(taken.user.keys) == msgspec.to_builtins(shown.user.keys)
    assert (taken.instance, taken.limit, taken.user.config) == (A, 49_149, shown.user.config)
