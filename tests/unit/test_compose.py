"""What user-data and vendor data are composed of, in which order, and what does not fit."""

from __future__ import annotations

import gzip
import json
import random
from typing import Any
from uuid import UUID

import pytest

from shim.core.kv import Value
from shim.core.policy import Composition
from shim.core.source import MERGE_DEFAULT, Kind, Reads, Scope, Source, parse_scope
from shim.metadata import compose
from shim.metadata.compose import Unready
from shim.metadata.document import Document, decode
from shim.metadata.parts import content_type_of
from shim.metadata.view import View

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
CONFIG = b"#cloud-config\npackages: [nginx]\n"
SCRIPT = b"#!/bin/sh\necho hello\n"
MINE = Scope("instance", str(A))


def view(*sources: Source, keys: tuple[Value, ...] = (), **options: Any) -> View:
    fields = {name: options.pop(name) for name in list(options) if name in Document.__struct_fields__}
    document = decode(json.dumps(fields).encode())
    by_name = {key.key: key for key in keys}
    options = {"now": 1000.0} | options
    return View(A, document, load_sources=lambda: list(sources), load_values=lambda: by_name, **options)


def source(where: str, body: bytes = CONFIG, **fields: Any) -> Source:
    scope, _, name = where.rpartition("/")
    return Source(parse_scope(scope), name, body, **fields)


def ids(composed: compose.Composed | None) -> list[str]:
    assert composed is not None
    return [part.id for part in composed.parts]


class TestOneAlone:
    @pytest.mark.parametrize(
        "body",
        [
            CONFIG, SCRIPT, b"\x00\xff\xfe", gzip.compress(CONFIG), b"no kind at all", b"caf\xc3\xa9\r\n", b"", b"\n",
            b"x" * 49_149,
        ],
        ids=["config", "script", "binary", "gzip", "plain", "utf8", "empty", "blank", "at the limit"],
    )  # fmt: skip
    def test_is_passed_through_byte_for_byte(self, body: bytes) -> None:
        composed = compose.user_data(view(source("host/base", body)))
        assert composed is not None
        assert (composed.body, composed.gzipped) == (body, False)
        assert compose.user_data(view(), backend=body).body == body  # type: ignore[union-attr]

    def test_of_the_document(self) -> None:
        assert compose.user_data(view(user_data="#!/bin/sh\n")).body == b"#!/bin/sh\n"  # type: ignore[union-attr]
        composed = compose.user_data(view(user_data_base64="AAH/"))
        assert composed is not None
        assert (composed.body, ids(composed)) == (b"\x00\x01\xff", ["instance/document"])

    def test_beside_what_says_nothing(self) -> None:
        composed = compose.user_data(view(source("host/base"), source("host/zero", b" \n"), user_data=""))
        assert composed is not None
        assert (composed.body, ids(composed)) == (CONFIG, ["host/base"])

    def test_there_is_none(self) -> None:
        assert compose.user_data(view()) is None
        assert compose.user_data(view(source("host/base", kind=Kind.VENDOR))) is None
        assert compose.parts(view(), Kind.USER) == ()


class TestOrder:
    def test_by_order_then_scope_then_name(self) -> None:
        others = [
            source("host/late", order=501), source(f"{A}/b"), source("tag:role=web/x"), source("project:blue/x"),
            source("image:debian/x"), source("host/b"), source("host/a"), source(f"{A}/first", order=0),
        ]  # fmt: skip
        random.Random(1).shuffle(others)
        composed = compose.user_data(view(*others, user_data="#!/bin/sh\n"), backend=SCRIPT)
        assert ids(composed) == [
            "instance/first", "host/a", "host/b", "project/x", "image/x", "tag:role/x", "instance/b",
            "instance/document", "backend/user-data", "host/late",
        ]  # fmt: skip

    def test_of_the_document_among_its_scope_by_name(self) -> None:
        composed = compose.user_data(view(source(f"{A}/zebra"), source(f"{A}/alpha"), user_data="x"))
        assert ids(composed) == ["instance/alpha", "instance/document", "instance/zebra"]

    def test_what_is_over_is_not_there(self) -> None:
        seen = view(source("host/over", until=1000.0), source("host/base", until=1000.5))
        assert ids(compose.user_data(seen)) == ["host/base"]
        assert seen.until == 1000.5


class TestSeveral:
    def test_the_same_parts_are_the_same_bytes_whatever_order_they_are_loaded_in(self) -> None:
        one, two = source("host/a"), source(f"{A}/b", SCRIPT)
        first, second = compose.user_data(view(one, two)), compose.user_data(view(two, one))
        assert first is not None
        assert second is not None
        assert first.body == second.body
        assert first.body.startswith(b'Content-Type: multipart/mixed; boundary="metashim-')
        other = compose.user_data(view(one, source(f"{A}/b", SCRIPT + b"#")))
        assert other is not None
        assert other.body.splitlines()[0] != first.body.splitlines()[0]

    def test_a_part_that_holds_the_boundary_changes_it(self) -> None:
        first = compose.user_data(view(source("host/a"), source("host/b")))
        assert first is not None
        boundary = first.body.split(b'"')[1]
        again = compose.user_data(view(source("host/a"), source("host/b", b"#cloud-config\n# --" + boundary + b"\n")))
        assert again is not None
        assert again.body.split(b'"')[1] != boundary

    def test_a_merge_type_cannot_add_a_header(self) -> None:
        composed = compose.user_data(view(source("host/a", merge="dict()\nX-Evil: 1"), source("host/b", merge="")))
        assert composed is not None
        assert b"Evil" not in composed.body
        assert b"Merge-Type" not in composed.body

    def test_claims_are_of_what_is_read_once_and_in_it(self) -> None:
        once = source("host/secret", SCRIPT, reads=Reads.ONCE, revision=7)
        blank = source("host/void", b"\n", reads=Reads.ONCE, revision=8)
        confirm = source("host/kept", SCRIPT, reads=Reads.CONFIRM, revision=9)
        composed = compose.user_data(view(once, blank, confirm, user_data="x"))
        assert composed is not None
        assert composed.claims == ("source host/secret 7",)
        assert "host/kept" in ids(composed)


class TestSize:
    def test_what_is_too_large_goes_as_gzip_the_same_each_time(self) -> None:
        body = b"#!/bin/sh\n" + b"# filler\n" * 1000
        for sources in ((source("host/a", body),), (source("host/a", body), source("host/b", SCRIPT))):
            whole = compose.user_data(view(*sources))
            small = compose.user_data(view(*sources, limit=1000))
            assert whole is not None
            assert small is not None
            assert (whole.gzipped, small.gzipped) == (False, True)
            assert gzip.decompress(small.body) == whole.body
            assert len(small.body) <= 1000
            assert small.body == compose.user_data(view(*sources, limit=1000)).body  # type: ignore[union-attr]
            assert small.body[4:8] == bytes(4)  # no time

    def test_what_does_not_fit_even_so_is_refused_in_words(self) -> None:
        noise = random.Random(2).randbytes(2000)
        with pytest.raises(Unready) as refused:
            compose.check_fit(view(source("host/a", b"#!" + noise, order=1), limit=1000))
        assert "does not fit: 2002 bytes, gzip'd 20" in str(refused.value)
        assert "sources.limit_bytes is 1000" in str(refused.value)
        packed = gzip.compress(noise)
        with pytest.raises(Unready, match=f"{len(packed)} bytes, sources"):
            compose.check_fit(view(source("host/a", packed), limit=1000))

    def test_at_the_limit(self) -> None:
        assert compose.user_data(view(source("host/a", b"x" * 1000), limit=1000)).gzipped is False  # type: ignore[union-attr]
        assert compose.user_data(view(source("host/a", b"x" * 1001), limit=1000)).gzipped is True  # type: ignore[union-attr]

    def test_gzip_that_unpacks_without_end_is_refused_and_named(self) -> None:
        bomb = gzip.compress(bytes(5 << 20))
        with pytest.raises(Unready, match="host/bomb: its gzip unpacks to more than") as refused:
            compose.user_data(view(source("host/bomb", bomb), source("host/b")))
        assert refused.value.source == "host/bomb"
        assert compose.user_data(view(source("host/bomb", bomb))).body == bomb  # type: ignore[union-attr]

    def test_many_that_unpack_to_much_are_refused(self) -> None:
        large = gzip.compress(b"#!" + bytes(900_000))
        with pytest.raises(Unready, match="host/c: with it the parts have more than 2097152 bytes"):
            compose.user_data(view(*(source(f"host/{name}", large) for name in "abc")))


class TestTemplates:
    TEMPLATE = b"#cloud-config\nhostname: {{ kv['host/role'] }}-{{ instance_id[:4] }}\n"

    def test_is_rendered_for_the_instance(self) -> None:
        seen = view(source("host/base", self.TEMPLATE, template=True), keys=(Value("host/role", b"db"),))
        assert compose.user_data(seen).body == b"#cloud-config\nhostname: db-6f1c\n"  # type: ignore[union-attr]
        (only,) = seen.sources
        assert compose.source_part(seen, only).body == b"#cloud-config\nhostname: db-6f1c\n"

    def test_that_fails_says_which_and_why(self) -> None:
        seen = view(source("host/base", self.TEMPLATE, template=True))
        for composing in (compose.user_data, compose.check_fit, lambda v: compose.parts(v, Kind.USER)):
            with pytest.raises(Unready, match=r"host/base: line 2: .*host/role") as refused:
                composing(seen)  # type: ignore[operator]
            assert refused.value.source == "host/base"
        assert compose.has_user_data(seen)
        assert compose.vendor_data(seen, {"a": 1}) == ({"a": 1}, ())

    def test_a_fault_may_be_noted_instead(self) -> None:
        faults: list[Unready] = []
        seen = view(source("host/base", b"{{", template=True), source("host/good"))
        assert [part.id for part in compose.parts(seen, Kind.USER, None, faults)] == ["host/good"]
        assert [fault.source for fault in faults] == ["host/base"]

    def test_one_that_renders_to_nothing_is_left_out(self) -> None:
        seen = view(source("host/base", b"{% if false %}x{% endif %}\n", template=True), source("host/other"))
        assert compose.user_data(seen).body == CONFIG  # type: ignore[union-attr]

    def test_keys_that_are_read_once_are_not_told_and_keys_are_looked_at_only_if_named(self) -> None:
        asked: list[int] = []

        def load() -> dict[str, Value]:
            asked.append(1)
            return {"host/once": Value("host/once", b"x", reads=Reads.ONCE), "host/raw": Value("host/raw", b"\xff")}

        plain = source("host/base", b"{{ instance_id }}", template=True)
        made = View(A, Document(), now=0.0, load_sources=lambda: [plain], load_values=load)
        assert compose.user_data(made).body == str(A).encode()  # type: ignore[union-attr]
        assert asked == []
        telling = source("host/base", b"{{ kv|length }}", template=True)
        made = View(A, Document(), now=0.0, load_sources=lambda: [telling], load_values=load)
        assert compose.user_data(made).body == b"0"  # type: ignore[union-attr]


class TestHasUserData:
    @pytest.mark.parametrize(
        ("made", "backend", "there"),
        [
            (view(), None, False),
            (view(), b"", True),
            (view(user_data=""), None, True),
            (view(user_data_base64=""), None, True),
            (view(source("host/a")), None, True),
            (view(source("host/a", kind=Kind.VENDOR)), None, False),
            (view(source("host/a"), composition=Composition.VENDOR), None, False),
            (view(source("host/a"), composition=Composition.VENDOR, user_data="x"), None, True),
            (view(source("host/a", until=1.0)), None, False),
        ],
    )
    def test_agrees_with_user_data(self, made: View, backend: bytes | None, there: bool) -> None:
        assert compose.has_user_data(made, backend) is there
        assert (compose.user_data(made, backend) is not None) is there


class TestVendorComposition:
    def test_user_data_is_the_documents_own_and_all_others_are_vendor_data(self) -> None:
        sources = source("host/a"), source("host/b", SCRIPT, kind=Kind.VENDOR)
        made = view(*sources, composition=Composition.VENDOR, user_data="#!/x\n")
        assert compose.user_data(made).body == b"#!/x\n"  # type: ignore[union-attr]
        assert ids(compose.vendor_body(made, None)) == ["host/a", "host/b"]
        assert {part.kind for part in compose.parts(made, Kind.VENDOR)} == {Kind.VENDOR}
        assert compose.user_data(made, backend=b"theirs").parts[1].id == "backend/user-data"  # type: ignore[union-attr]

    def test_without_user_data_of_its_own_there_is_none(self) -> None:
        assert compose.user_data(view(source("host/a"), composition=Composition.VENDOR)) is None


class TestVendorData:
    @pytest.mark.parametrize("value", [None, {}, "text", ["a"], {"cloud-init": "x", "y": 1}, 5, {"cloud-init": {}}])
    def test_without_sources_is_unchanged(self, value: Any) -> None:
        made = view(source("host/user"), vendor_data=value)
        assert compose.vendor_data(made, made.document.vendor_data) == (value, ())
        assert compose.vendor_data(made, value)[0] is value

    def test_one_alone_is_byte_for_byte_and_other_members_are_kept(self) -> None:
        made = view(source("host/v", "#cloud-config\n# é\n".encode(), kind=Kind.VENDOR, reads=Reads.ONCE, revision=3))
        expected = {"static": {"a": 1}, "cloud-init": "#cloud-config\n# é\n"}
        assert compose.vendor_data(made, {"static": {"a": 1}}) == (expected, ("source host/v 3",))
        assert compose.vendor_data(made, None)[0] == {"cloud-init": "#cloud-config\n# é\n"}

    @pytest.mark.parametrize(
        ("value", "own"),
        [
            ("#!/a\n", 1),
            (["#!/a\n", "#!/b\n"], 2),
            ({"cloud-init": "#!/a\n", "x": 1}, 1),
            ({"cloud-init": ["#!/a\n", "", 5, None]}, 1),
            ({"cloud-init": {"a": 1}}, 0),
            ({"x": 1}, 0),
            (7, 0),
        ],
    )
    def test_what_cloud_init_would_read_of_the_documents_own_is_in_it(self, value: Any, own: int) -> None:
        made = view(source("host/v", kind=Kind.VENDOR), vendor_data=value)
        composed = compose.vendor_body(made, made.document.vendor_data)
        assert ids(composed) == ["host/v"] + ["instance/document"] * own
        result, _ = compose.vendor_data(made, made.document.vendor_data)
        kept = {key: one for key, one in value.items() if key != "cloud-init"} if isinstance(value, dict) else {}
        assert {key: one for key, one in result.items() if key != "cloud-init"} == kept
        assert isinstance(result["cloud-init"], str)

    def test_of_a_backend_is_named_so(self) -> None:
        made = view(source("host/v", kind=Kind.VENDOR), vendor_data="#!/mine\n")
        assert ids(compose.vendor_body(made, "#!/theirs\n")) == ["host/v", "backend/vendor-data"]

    def test_is_text_even_where_a_part_is_none(self) -> None:
        packed = gzip.compress(CONFIG)
        for body, lone in ((packed, CONFIG.decode()), (b"\xff\x00", None), (gzip.compress(b"\xff"), None)):
            text = compose.vendor_data(view(source("host/v", body, kind=Kind.VENDOR)), None)[0]["cloud-init"]
            assert text == lone if lone else text.startswith("Content-Type: multipart/mixed")

    def test_that_is_blank_changes_nothing(self) -> None:
        made = view(source("host/v", b"\n", kind=Kind.VENDOR), vendor_data={"cloud-init": "#!/a\n"})
        value = made.document.vendor_data
        assert compose.vendor_data(made, value) == (value, ())

    def test_that_is_too_large_is_refused(self) -> None:
        sources = [source(f"host/{n}", b"#!" + b"x" * 300_000, kind=Kind.VENDOR) for n in "abcd"]
        with pytest.raises(Unready, match="vendor data does not fit"):
            compose.check_fit(view(*sources))

    def test_that_is_a_long_list_is_refused(self) -> None:
        made = view(source("host/v", kind=Kind.VENDOR))
        with pytest.raises(Unready, match="backend/vendor-data: its vendor data is a list of more than 256"):
            compose.vendor_data(made, ["#!"] * 257)
        assert compose.vendor_data(made, ["#!"] * 256)[0]["cloud-init"].count("Content-Type") == 258

    def test_of_a_document_with_half_a_character(self) -> None:
        made = view(source("host/v", kind=Kind.VENDOR))
        assert isinstance(compose.vendor_data(made, {"cloud-init": "\ud800"})[0]["cloud-init"], str)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (CONFIG, "text/cloud-config"),
        (b"\n \t#CLOUD-config\n", "text/cloud-config"),
        (b"\xc2\xa0\xe2\x80\x83#cloud-config", "text/cloud-config"),  # white space of Unicode's
        (b"\n" * 5000 + b"#!/bin/sh", "text/x-shellscript"),
        (b"#cloud-config-archive\n", "text/cloud-config-archive"),
        (b"#cloud-config-jsonp\n", "text/cloud-config-jsonp"),
        (b"#include http://x", "text/x-include-url"),
        (b"#include-once http://x", "text/x-include-once-url"),
        (b"#cloud-boothook", "text/cloud-boothook"),
        (b"#part-handler", "text/part-handler"),
        (b"## template: jinja\n#cloud-config", "text/jinja2"),
        (SCRIPT, "text/x-shellscript"),
        (b"\x1f\x8bwhatever", "application/gzip"),
        (b"Content-Type: multipart/mixed; boundary=x\n\n", "multipart/mixed"),
        (b"MIME-Version: 1.0\r\ncontent-type:\r\n\tMultipart/Alternative; boundary=x\r\n\r\n", "multipart/alternative"),
        (b"From: me\nMime-Version: 1.0\nContent-Type: text/cloud-config\n\n#cloud-config\n", "message/rfc822"),
        (b"MIME-Version: 1.0\n\nContent-Type: multipart/mixed\n", "message/rfc822"),
        (b"#cloud-config\n# mime-version: 1.0\n", "text/cloud-config"),
        (b"\xef\xbb\xbf#cloud-config\n", "text/plain"),
        (b"packages: [nginx]\n", "text/plain"),
        (b"", "text/plain"),
        (b"\x00\xff", "application/octet-stream"),
        (b"#!/bin/sh\n\xff", "text/x-shellscript"),
    ],
)
def test_kinds_by_how_they_begin(body: bytes, kind: str) -> None:
    assert content_type_of(body) == kind


def test_a_source_by_itself() -> None:
    one = source("tag:role=web/base", reads=Reads.ONCE, revision=5, owner="web team", until=2000.0)
    part = compose.source_part(view(one), one)
    assert (part.id, part.owner, part.item, part.scope, part.until) == (
        "tag:role/base", "web team", "source tag:role=web/base 5", "tag:role=web", 2000.0,
    )  # fmt: skip
    assert part.merge == MERGE_DEFAULT
