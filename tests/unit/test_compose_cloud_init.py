"""What the real cloud-init makes of what is composed: the lists of all contributors, in order, whatever their form."""

from __future__ import annotations

import email
import gzip
import tempfile
import time
from base64 import b64encode
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cloudinit.sources import convert_vendordata
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.core.source import Kind, Source, parse_scope
from shim.metadata import compose
from shim.metadata.document import Document
from shim.metadata.entities import entities
from shim.metadata.merge import merged
from shim.metadata.parts import content_type_of
from shim.metadata.view import View
from tests.unit.cloud_init import consume

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")


def config(name: str) -> bytes:
    return f"""#cloud-config
packages: [{name}]
users: [{{name: {name}}}]
write_files: [{{path: /{name}, content: "{name} é"}}]
runcmd: [[echo, {name}]]
""".encode()


def plain(name: str) -> bytes:
    return config(name).replace("é".encode(), b"e")


def mime(*parts: tuple[str, str], **headers: str) -> bytes:
    message = MIMEMultipart()
    for kind, text in parts:
        one = MIMEText(text, kind)
        for header, value in headers.items():
            one[header.replace("_", "-")] = value
        message.attach(one)
    return message.as_bytes()


def composed(*bodies: bytes, limit: int = 1 << 20, **fields: Any) -> bytes:
    sources = [Source(parse_scope("host"), f"s{number:02}", body, **fields) for number, body in enumerate(bodies)]
    made = compose.user_data(View(A, Document(), now=0.0, load_sources=lambda: sources, limit=limit))
    assert made is not None
    return made.body


def in_order(names: str, read: Any) -> None:
    assert read.config["packages"] == list(names)
    assert read.config["users"] == [{"name": name} for name in names]
    assert [one["path"] for one in read.config["write_files"]] == [f"/{name}" for name in names]
    assert read.config["runcmd"] == [["echo", name] for name in names]


FORMS = {
    "utf-8": config,
    "ascii": plain,
    "without a line end": lambda name: plain(name).rstrip(),
    "crlf": lambda name: plain(name).replace(b"\n", b"\r\n"),
    "in capitals, late": lambda name: b"\n\n" + plain(name).replace(b"#cloud-config", b"#CLOUD-CONFIG"),
    "gzip": lambda name: gzip.compress(config(name)),
    "two gzips": lambda name: gzip.compress(config(name)[:40]) + gzip.compress(config(name)[40:]),
    "mime": lambda name: mime(("cloud-config", config(name).decode())),
    "mime, plain text": lambda name: mime(("plain", plain(name).decode())),
    "mime in gzip": lambda name: gzip.compress(mime(("cloud-config", config(name).decode()))),
    "mime in mime": lambda name: b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=o\n\n--o\n"
    + mime(("cloud-config", config(name).decode()))
    + b"\n--o--\n",
    "mime of one": lambda name: b"MIME-Version: 1.0\nContent-Type: text/cloud-config\n\n" + plain(name),
    "mime of one, 8-bit": lambda name: b"MIME-Version: 1.0\nContent-Type: text/cloud-config\n\n" + config(name),
    "mime, gzip inside": lambda name: b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n"
    b"Content-Type: application/x-gzip\nContent-Transfer-Encoding: base64\n\n"
    + b64encode(gzip.compress(config(name)))
    + b"\n--b--\n",
    "mime, without its end": lambda name: b"Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\n"
    b"Content-Type: text/cloud-config\n\n" + plain(name),
    "mime, without its version": lambda name: b"Content-Type: multipart/mixed; boundary=b\n\n--b\n"
    b"Content-Type: text/cloud-config\n\n" + plain(name) + b"\n--b--\n",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("limit", [1 << 20, 1200], ids=["as it is", "gzip"])
def test_the_lists_of_all_are_appended_in_order(form: Any, limit: int, tmp_path: Path) -> None:
    body = composed(config("a"), form("b"), config("c"), form("d"), limit=limit)
    assert body.startswith(b"\x1f\x8b") is (limit == 1200)
    in_order("abcd", consume(body, tmp_path))


def test_whichever_form_comes_first(tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"[: len(FORMS)]
    bodies = [form(name) for form, name in zip(FORMS.values(), names, strict=True)]
    in_order(names, consume(composed(*bodies), tmp_path / "1"))
    in_order(names[::-1], consume(composed(*bodies[::-1]), tmp_path / "2"))


def test_a_jinja_template_of_the_guests_has_its_merge_type(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "instance-data-sensitive.json").write_text('{"v1": {"name": "b"}}')
    jinja = b"## template: jinja\n" + plain("'NAME'").replace(b"NAME", b"{{ v1.name }}")
    jinja = jinja.replace(b"/'{{ v1.name }}'", b"/{{ v1.name }}")
    in_order("abc", consume(composed(config("a"), jinja, config("c")), tmp_path))


def test_what_says_itself_how_it_is_merged_is_believed(tmp_path: Path) -> None:
    replacing = b"merge_how: dict(replace)\n"
    assert consume(composed(plain("a"), plain("b") + replacing), tmp_path / "1").config["packages"] == ["b"]
    header = mime(("cloud-config", plain("b").decode()), Merge_Type="list(prepend)+dict(recurse_array)")
    assert consume(composed(plain("a"), header), tmp_path / "2").config["packages"] == ["b", "a"]
    header = mime(("cloud-config", plain("b").decode()), X_Merge_Type="list(prepend)+dict(recurse_array)")
    assert consume(composed(plain("a"), header), tmp_path / "3").config["packages"] == ["b", "a"]


def test_without_a_merge_type_the_last_one_wins(tmp_path: Path) -> None:
    assert consume(composed(plain("a"), plain("b"), merge=""), tmp_path).config["packages"] == ["b"]


DAMAGED = {
    "gzip cut off": gzip.compress(config("x"))[:-9],
    "gzip of nothing that is": b"\x1f\x8b\x08\x00 hello",
    "gzip of no text": gzip.compress(b"\xff\xfe\x00"),
    "mime of what is no gzip": b"MIME-Version: 1.0\nContent-Type: application/gzip\n\nhello",
    "mime of gzip of no text": b"MIME-Version: 1.0\nContent-Type: application/gzip\n"
    b"Content-Transfer-Encoding: base64\n\n"
    + b64encode(gzip.compress(b"\xff\xfe")),
    "mime that is not utf-8": b"MIME-Version: 1.0\nContent-Type: text/plain; \xff\n\n\xff\xfe",
    "mime of a bad base64": b"MIME-Version: 1.0\nContent-Type: text/cloud-config\n"
    b"Content-Transfer-Encoding: base64\n\n%%%",
    "no text": b"\xff\xfe\x00",
    "no kind": b"hello",
    "no yaml": b"#cloud-config\na: [\n",
    "no mapping": b"#cloud-config\n- a\n",
    "a bad merge type": b"#cloud-config\nmerge_how: nonsense\npackages: [x]\n",
    "a part of no kind": b"MIME-Version: 1.0\nContent-Type: application/x-mine\n\nhello",
    "half a boundary": b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="\n\nhello',
    "an archive of nothing": b"#cloud-config-archive\n{",
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_one_that_is_damaged_harms_no_other(body: bytes, tmp_path: Path) -> None:
    in_order("ac", consume(composed(config("a"), body, config("c")), tmp_path))


def test_scripts_run_in_the_order_of_the_parts_and_none_is_lost(tmp_path: Path) -> None:
    def script(number: int) -> bytes:
        return mime(("x-shellscript", f"#!/bin/sh\n{number}\n"), Content_Disposition='attachment; filename="s.sh"')

    sources = [
        Source(parse_scope("tag:z=1"), "a", b"#!/bin/sh\n1\n", order=1),
        Source(parse_scope("host"), "b", script(2), order=2),
        Source(parse_scope("host"), "c", script(3), order=3),
        Source(parse_scope("tag:a-b=1"), "c", b"#!/bin/sh\n4\n", order=4),
        Source(parse_scope("tag:a=1"), "b-c", "#!/bin/sh\n# é\n5\n".encode(), order=5),
        Source(parse_scope("image:1"), "a", mime(("plain", "#!/bin/sh\n6\n")), order=6),
    ]
    made = compose.user_data(View(A, Document(), now=0.0, load_sources=lambda: sources))
    assert made is not None
    scripts = consume(made.body, tmp_path).scripts
    assert [text.split("\n")[-2] for _, text in sorted(scripts.items())] == list("123456")
    assert list(scripts)[1:3] == ["002-s.sh", "003-s.sh"]


def vendor(value: Any, folder: Path, *bodies: bytes) -> Any:
    sources = [Source(parse_scope("host"), f"s{n}", body, kind=Kind.VENDOR) for n, body in enumerate(bodies)]
    view = View(A, Document(vendor_data=value), now=0.0, load_sources=lambda: sources)
    made, _ = compose.vendor_data(view, value)
    return consume(convert_vendordata(made), folder)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_vendor_data_of_all_is_merged_too(form: Any, tmp_path: Path) -> None:
    value = {"cloud-init": config("c").decode(), "other": 1}
    in_order("abc", vendor(value, tmp_path / "1", config("a"), form("b")))
    in_order("bcd", vendor([config("c").decode(), config("d").decode()], tmp_path / "2", form("b")))


# What goes as it is has to be what cloud-init itself can read.
AS_THEY_ARE = {"mime, without its version", "mime of one, 8-bit", "mime, gzip inside"}


@pytest.mark.parametrize("name", [name for name in FORMS if name not in AS_THEY_ARE])
def test_vendor_data_of_one_alone(name: str, tmp_path: Path) -> None:
    in_order("b", vendor(None, tmp_path, FORMS[name]("b")))


BODIES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=200).map(str.encode),
    st.text("ab\n\r\t-#: \x0c\x1c\x85\u2028é", max_size=60).map(str.encode),
    st.sampled_from([b"\n", b"--", b"\r", b"\n\n--\n", b"a\n", b"From me\n", b"\x1f\x8b", b"MIME-Version: 1.0\n\n"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(BODIES.filter(lambda body: bool(body.strip())), min_size=2, max_size=4))
def test_whatever_is_in_a_part_comes_out_as_it_went_in(bodies: list[bytes]) -> None:
    raw = composed(*bodies)
    raw.decode("ascii")
    read = [one for one in email.message_from_string(raw.decode()).walk() if not one.is_multipart()]
    sources = [Source(parse_scope("host"), f"s{n}", body) for n, body in enumerate(bodies)]
    view = View(A, Document(), now=0.0, load_sources=lambda: sources)
    expected = [one for part in compose.parts(view, Kind.USER) for one in entities(part)]
    assert [one.get_payload(decode=True) for one in read] == [one.body for one in expected]
    assert [one.get_content_type() for one in read] == [one.content_type for one in expected]
    opened = ("application/gzip", "multipart/mixed", "message/rfc822")
    untouched = [body for body in bodies if content_type_of(body) not in opened]
    assert [one.body for one in expected if one.body in untouched] == untouched


HEADS = st.sampled_from([
    b"MIME-Version: 1.0\n", b"Content-Type: multipart/mixed; boundary=b\n", b"Content-Type: text/cloud-config\n",
    b'Content-Type: multipart/mixed; boundary="\n', b"--b\n", b"--b--\n", b"Content-Transfer-Encoding: base64\n",
    b"Content-Transfer-Encoding: quoted-printable\n", b"Content-Transfer-Encoding: x-uuencode\n", b"begin 644 x\n",
    b"Content-Type: message/rfc822\n", b"Content-Type: application/gzip\n", b"Merge-Type: dict()\n", b"\xff: \xfe\n",
    b"Content-Disposition: attachment; filename*=utf-8''%ff%00\n", b'Content-Disposition: a; filename*0="a\n', b"=\n",
    b'Content-Type: text/x-shellscript; charset="nonsense"\n', b"#cloud-config\na: [1]\n", b"\r\n", b":\n", b" x\n",
    b"X-\xc3\xa9: a\n", b"\n", b"Launch-Index: 0\n",
])  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(HEADS, max_size=12).map(b"".join))
def test_no_message_breaks_the_others(message: bytes) -> None:
    body = b"MIME-Version: 1.0\n" + message
    with tempfile.TemporaryDirectory() as folder:
        read = consume(composed(config("a"), body, config("c")), Path(folder))
    assert [name for name in read.config["packages"] if name in "ac"] == ["a", "c"]


MULTIPART = b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n"
COSTLY = {
    "multiparts": b"MIME-Version: 1.0\n"
    + b"".join(b"content-type: \n multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(1000)),
    "messages": b"MIME-Version: 1.0\n" + b"Content-Type: message/rfc822\n\n" * 2000,
    "parts": MULTIPART + b"--b\n\n" * 300,
    "more parts": MULTIPART + b"--b\n\n" * 15_000,
    "lines": MULTIPART + b"\r" * 60_000,
    "parameters": b"MIME-Version: 1.0\nContent-Type: multipart/mixed" + b';"' * 30_000 + b"\n\n",
    "parameters, a line each": b"MIME-Version: 1.0\nContent-Disposition: attachment" + b';\n a="' * 4_000 + b"\n\n",
    "gzip": gzip.compress(MULTIPART + b"\n" * 1_000_000),
}


@pytest.mark.parametrize("message", COSTLY.values(), ids=COSTLY)
def test_a_message_that_would_take_long_to_take_apart_is_refused_soon(message: bytes) -> None:
    began = time.process_time()
    with pytest.raises(compose.Unready, match=r"host/s01: it is a MIME message (of more|with|that is nested)"):
        composed(config("a"), message)
    assert time.process_time() - began < 1.5  # 0.1 s, where nothing else runs


KEYS = st.sampled_from(["packages", "users", "hostname", "nested", "merge_how", "merge_type"])
VALUES = st.recursive(
    st.one_of(st.integers(0, 3), st.booleans(), st.none(), st.text("ab", max_size=2)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)),
    max_leaves=6,
)
HOWS = st.sampled_from([
    "", "list(append)+dict(recurse_array)+str()", "dict(replace)", "list(prepend)+dict(recurse_list)+str(append)",
    "dict(recurse_str,recurse_array)+list(replace,recurse_dict)+str(append)", "dict(allow_delete,no_replace)", "list()",
    "nonsense", "dict(recurse_array)+list(no_replace)",
])  # fmt: skip
CONFIGS = st.dictionaries(KEYS, st.one_of(VALUES, HOWS), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CONFIGS, HOWS), min_size=1, max_size=4))
def test_the_preview_shows_what_cloud_init_ends_with(made: list[tuple[dict[str, Any], str]]) -> None:
    import yaml

    sources = [
        Source(parse_scope("host"), f"s{n}", b"#cloud-config\n" + yaml.safe_dump(one).encode(), merge=merge)
        for n, (one, merge) in enumerate(made)
    ]
    view = View(A, Document(), now=0.0, load_sources=lambda: sources)
    whole = compose.user_data(view)
    assert whole is not None
    outcome = merged(compose.parts(view, Kind.USER))
    with tempfile.TemporaryDirectory() as folder:
        read = consume(whole.body, Path(folder))
    assert outcome.config == (read.config or {})
    assert set(outcome.winners) == set(outcome.config)
    left_out = {problem.id for problem in outcome.problems if problem.grave}
    warned = sum(text.startswith("Failed at merging") for text in read.warnings)
    assert len(left_out) >= warned
