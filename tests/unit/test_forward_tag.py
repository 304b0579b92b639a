"""What backends are told: header hygiene, Nova's headers, the generic ones and their signature."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.exchange import Subject
from shim.forward.tag import NONCE_BYTES, Identity, check_template, clean, nova_headers
from shim.http.head import Refused, read_head
from shim.http.limits import Limits

ROOT = Path(__file__).parents[2]
ID = "c0ffee00-1111-4222-8333-444455556666"
INSTANCE = UUID(ID)
PROJECT = "6f1c5a0e8f434c0a9d1e2b7c3d4e5f60"
SUBJECT = Subject(INSTANCE, PROJECT, "10.0.0.7")
SECRET = b"peer-shared-secret"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DEFAULTS = {"X-Metashim-Instance": "{instance}", "X-Metashim-Project": "{project}"}


def kept(*headers: tuple[bytes, bytes]) -> list[bytes]:
    return [name for name, _ in clean(headers)]


_NEVER = """
    X-Instance-ID X-Instance-ID-Signature X-Instance-Anything X-Tenant-ID X-Project-Id X-Metadata-Provider
    X-Metadata-Provider-Signature X-Metashim-Signature X-Metashim-Instance X-Forwarded X-Forwarded-For
    X-Forwarded-Host X-Forwarded-Proto X-Forwarded-Prefix X-Forwarded-Anything X-ForwardedFor X-Forward-For Forwarded
    Forwarded-For X-Real-IP X-Client-IP Client-IP True-Client-IP CF-Connecting-IP CF-Connecting-IPv6 Fastly-Client-IP
    X-Cluster-Client-IP X-Originating-IP X-Remote-IP X-Remote-Addr X-Remote-User Remote-User WL-Proxy-Client-IP
    X-Azure-ClientIP X-AppEngine-User-IP X-Envoy-External-Address X-ProxyUser-Ip Cdn-Src-Ip X-Server-Name
    X-User X-User-Id X-Roles X-Domain-Id X-Identity-Status X-Service-Roles X-Authenticated-User X-WebAuth-User
    X-Auth-Request-Email X-Consumer-Username X-Goog-IAP-JWT-Assertion X-Goog-Authenticated-User-Email
    X-Amzn-Oidc-Identity X-MS-Client-Principal-Id Client-Cert Client-Cert-Chain SSL-Client-Verify X-SSL-Client-DN
    X-Client-Cert X-aws-ec2-metadata-token X-aws-ec2-metadata-token-ttl-seconds X-ARR-ClientCert
    X-Original-URL X-Original-URI X-Original-Host X-Original-Method X-Rewrite-URL X-HTTP-Method X-HTTP-Method-Override
    X-Method-Override X-Host X-HTTP-Host-Override X-HTTP-Destinationurl X-HTTP-Path-Override X-Script-Name
    X-Sendfile-Type X-Accel-Mapping X-Accel-Redirect X-Envoy-Original-Path Proxy Proxy-Host Via Max-Forwards
    Connection Keep-Alive Proxy-Connection Proxy-Authorization Proxy-Authenticate TE Trailer Transfer-Encoding Upgrade
    HTTP2-Settings Host Content-Length Expect
"""
NEVER = _NEVER.split()

_KEPT = """
    Metadata-Flavor Metadata Authorization Accept Accept-Encoding Accept-Language Range If-None-Match If-Modified-Since
    If-Range User-Agent Content-Type Content-Encoding Cookie Cache-Control Origin Referer X-Google-Metadata-Request
    X-Request-Id X-Aliyun-ECS-Metadata-Token X-Auth-Token X-Amz-Security-Token X-Amz-Date Baggage Priority
"""
KEPT = _KEPT.split()


@pytest.mark.parametrize("name", NEVER)
def test_never_reaches_a_backend(name: str) -> None:
    for spelling in (name, name.lower(), name.upper(), name.swapcase()):
        assert kept((spelling.encode(), b"x"), (b"accept", b"*/*")) == [b"accept"]


@pytest.mark.parametrize("name", KEPT)
def test_passes(name: str) -> None:
    lowered = name.lower().encode()
    assert clean(((lowered, b"one"), (lowered, b"two"))) == ((lowered, b"one"), (lowered, b"two"))


@pytest.mark.parametrize("mark", "_.!#$%&'*+^`|~")
def test_no_spelling_that_a_server_may_fold(mark: str) -> None:
    """CGI and its heirs make `_` of every character that is no letter or digit."""
    for name in ("x-instance-id", *(name.lower() for name in NEVER if "-" in name)):
        assert kept((name.replace("-", mark).encode(), b"x")) == []
        assert kept((name.replace("-", mark, 1).encode(), b"x")) == []


def cgi(name: bytes) -> bytes:
    return re.sub(rb"[^A-Z0-9]", b"_", name.upper())


TOKENS = st.text("abixX-_.!~|^*IDinstance09", min_size=1, max_size=20).map(str.encode)


@given(TOKENS, TOKENS)
def test_what_passes_reads_as_itself_alone(one: bytes, other: bytes) -> None:
    passed = kept((one, b"1"), (other, b"2"))
    assert all(cgi(a) != cgi(b) or a == b for a in passed for b in passed)


@given(st.lists(st.tuples(TOKENS, st.binary(max_size=4)), max_size=5).map(tuple))
def test_cleaning_is_done_once_and_adds_nothing(headers: Any) -> None:
    cleaned = clean(headers)
    assert clean(cleaned) == cleaned
    assert set(cleaned) <= {(name.lower(), value) for name, value in headers}


@pytest.mark.parametrize("name", [b"X-Instance-ID ", b" X-Instance-ID", b"X-Instance-ID\t", b"X-Instance-ID\x0b", b""])
def test_white_space_about_a_name_is_no_request(name: bytes) -> None:
    with pytest.raises(Refused):
        read_head(b"GET / HTTP/1.1\r\nHost: x\r\n" + name + b": 1\r\n\r\n", Limits())


def test_the_parsers_lower_case_is_what_is_matched() -> None:
    head = read_head(b"GET / HTTP/1.1\r\nHost: x\r\nX-INSTANCE-id:a\r\nX_Tenant_ID:b\r\nAccept:*/*\r\n\r\n", Limits())
    assert clean(head.request.headers) == ((b"accept", b"*/*"),)


def test_what_connection_names_is_dropped() -> None:
    named = (b"connection", b"close, X-Secret ,\tx-other"), (b"connection", b"X-Third")
    assert kept(*named, (b"x-secret", b""), (b"x-other", b""), (b"x-third", b""), (b"x-fourth", b"")) == [b"x-fourth"]


def test_order_and_copies_are_kept() -> None:
    headers = (b"accept", b"1"), (b"cookie", b"a"), (b"accept", b"2")
    assert clean(headers) == headers


def test_configured_names_are_dropped() -> None:
    identity = Identity({"Tenant": "{project}", "Machine-Id": "{instance}"}, SECRET)
    guest = (b"tenant", b"evil"), (b"machine-id", b"evil"), (b"accept", b"*/*")
    assert clean(guest, identity.names) == ((b"accept", b"*/*"),)
    assert clean(guest) == guest  # another backend, which is not told by these
    assert clean(((b"MACHINE-ID", b"evil"), (b"machine_id", b"evil")), identity.names) == ()


def test_connection_cannot_take_off_what_is_added_after() -> None:
    own = nova_headers(SUBJECT, SECRET)
    assert own is not None
    sent = clean(((b"connection", b"x-instance-id"), (b"x-instance-id", b"evil"))) + own
    assert sent == own


def test_one_guests_flood_of_headers_is_not_remembered_whole() -> None:
    from shim.forward import tag

    for number in range(2000):
        clean(((b"x-flood", b"%d" % number),))
    clean(((b"x-flood", bytes(5000)),))
    assert len(tag._known) <= 512
    assert all(len(value) < 1025 for headers, _ in tag._known for _, value in headers)


@pytest.mark.parametrize(
    "headers",
    [
        ((b"traceparent", TRACE),),
        ((b"traceparent", TRACE), (b"tracestate", b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")),
        ((b"traceparent", TRACE), (b"tracestate", b"a=1"), (b"tracestate", b"b=2 , fw529a3039@dt=x")),
        ((b"traceparent", TRACE), (b"tracestate", b"")),
        ((b"traceparent", b"cc" + TRACE[2:] + b"-more"),),
    ],
)
def test_a_sound_trace_passes(headers: Any) -> None:
    assert clean(headers) == headers


@pytest.mark.parametrize(
    "parent",
    [
        b"", b"00", TRACE.upper(), TRACE[:-1], TRACE + b"-more", TRACE + b" ", b"ff" + TRACE[2:],
        TRACE.replace(b"-", b"_"),
        b"00-" + b"0" * 32 + TRACE[35:], TRACE[:36] + b"0" * 16 + b"-01", b"cc" + TRACE[2:] + b".more",
    ],
)  # fmt: skip
def test_a_malformed_parent_takes_the_state_with_it(parent: bytes) -> None:
    assert kept((b"traceparent", parent), (b"tracestate", b"a=1"), (b"accept", b"x")) == [b"accept"]


@pytest.mark.parametrize(
    "state",
    [b"a", b"=1", b"A=1", b"a=", b"a=1,a=2", b"a=1=2", b"a=\x80", b"a b=1", b",".join(b"k%d=1" % n for n in range(33))],
)
def test_a_malformed_state_drops_both(state: bytes) -> None:
    assert kept((b"traceparent", TRACE), (b"tracestate", state)) == []


def test_two_parents_or_none_are_no_trace() -> None:
    assert kept((b"traceparent", TRACE), (b"traceparent", TRACE)) == []
    assert kept((b"tracestate", b"a=1")) == []


def test_nova_is_told_and_signed_for() -> None:
    assert nova_headers(SUBJECT, SECRET) == (
        (b"X-Instance-ID", ID.encode()),
        (b"X-Instance-ID-Signature", b"bc12d5dd1b5fb591a5bf734982039439f3edd7c3e99e95632ccc19437a699a91"),
        (b"X-Tenant-ID", PROJECT.encode()),
        (b"X-Forwarded-For", b"10.0.0.7"),
    )
    assert dict(nova_headers(SUBJECT, b"another") or ())[b"X-Instance-ID-Signature"] != b"bc12d5dd"


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60", PROJECT),
        ("6F1C5A0E-8F43-4C0A-9D1E-2B7C3D4E5F60", PROJECT),
        ("my-dashed-project", "my-dashed-project"),
        ("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60-x", "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60-x"),
    ],
)
def test_the_project_as_keystone_writes_it(project: str, said: str) -> None:
    headers = nova_headers(Subject(INSTANCE, project), SECRET)
    assert dict(headers or ())[b"X-Tenant-ID"] == said.encode()
    assert b"X-Forwarded-For" not in dict(headers or ())


@pytest.mark.parametrize("project", ["", " ", "a\r\nX-Instance-ID: b", "a\nb", "a\0b", "pröjekt", " a", "\x7f"])
def test_a_project_that_no_header_can_say_is_not_known(project: str) -> None:
    assert nova_headers(Subject(INSTANCE, project), SECRET) is None
    identity = Identity(DEFAULTS, SECRET)
    assert identity.headers(Subject(INSTANCE, project)) == ((b"X-Metashim-Instance", ID.encode()),)


@pytest.mark.parametrize("address", ["10.0.0.7\r\nA: 1", "fe80::1%a\r\nA: 1", "somewhere", "10.0.0.7, 1.1.1.1", ""])
def test_an_address_is_one_or_is_left_out(address: str) -> None:
    assert b"X-Forwarded-For" not in dict(nova_headers(Subject(INSTANCE, PROJECT, address), SECRET) or ())
    assert Identity({"A": "{address}"}, SECRET).headers(Subject(INSTANCE, PROJECT, address)) == ()


def test_templates() -> None:
    templates = {"X-A": "{instance}/{project}", "X-B": "fixed", "X-C": "{address}", "X-D": ""}
    assert Identity(templates, SECRET).headers(SUBJECT) == (
        (b"X-A", f"{ID}/{PROJECT}".encode()),
        (b"X-B", b"fixed"),
        (b"X-C", b"10.0.0.7"),
    )


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("X_A", "x"), ("", "x"), ("X A", "x"), ("X-Ä", "x"), ("Host", "x"), ("content-length", "x"), ("TE", "x"),
        ("x-metashim-signature", "x"), ("X-A", "{secret}"), ("X-A", "{instance.hex}"), ("X-A", "{"), ("X-A", "{}"),
        ("X-A", "a\r\nB: c"), ("X-A", "a\0"), ("X-A", "ä"), ("X-A", "{instance!r}"), ("X-A", "{{instance}}"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be(name: str, template: str) -> None:
    with pytest.raises(ValueError, match=re.escape(name) or "''"):
        check_template(name, template)
    with pytest.raises(ValueError):
        Identity({name: template}, SECRET)


# The signature, as docs/signature.md tells backends to check it.

NOW = 1_764_000_000
NONCE = bytes(range(NONCE_BYTES))


@pytest.fixture
def who_asks() -> Callable[..., tuple[str, str] | None]:
    """The verifier of the documentation, freshly made: it remembers nonces."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "signature.md").read_text(), re.DOTALL)
    assert len(code) == 1
    assert len([line for line in code[0].splitlines() if line.strip()]) <= 20
    made: dict[str, Any] = {}
    exec(code[0], made)
    return made["who_asks"]  # type: ignore[no-any-return]


def signed(subject: Subject = SUBJECT, nonce: bytes = NONCE, now: float = NOW) -> dict[str, str]:
    identity = Identity(DEFAULTS, SECRET)
    fields = (*identity.headers(subject), identity.signature(subject, b"GET", b"/a?b=c", now, nonce))
    return {name.decode().lower(): value.decode() for name, value in fields}


def test_a_genuine_request_verifies(who_asks: Any) -> None:
    assert who_asks(SECRET, "GET", "/a?b=c", signed(), NOW + 0.7) == (ID, PROJECT)
    assert who_asks(SECRET, "GET", "/a?b=c", signed(nonce=bytes(16)), NOW - 29) == (ID, PROJECT)


def test_one_without_a_project_verifies(who_asks: Any) -> None:
    assert who_asks(SECRET, "GET", "/a?b=c", signed(Subject(INSTANCE)), NOW) == (ID, "")


def test_a_replayed_request_does_not(who_asks: Any) -> None:
    assert who_asks(SECRET, "GET", "/a?b=c", signed(), NOW) == (ID, PROJECT)
    assert who_asks(SECRET, "GET", "/a?b=c", signed(), NOW) is None
    assert who_asks(SECRET, "GET", "/a?b=c", signed(), NOW + 30) is None
    assert who_asks(SECRET, "GET", "/a?b=c", signed(), NOW + 31) is None
    assert who_asks(SECRET, "GET", "/a?b=c", signed(), NOW) is None  # its clock was set back: still remembered


@pytest.mark.parametrize("late", [31, -31, 86400, -86400])
def test_a_stale_request_does_not(who_asks: Any, late: int) -> None:
    assert who_asks(SECRET, "GET", "/a?b=c", signed(), NOW + late) is None


ALTERED = [
    {"x-metashim-instance": "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60"},
    {"x-metashim-instance": ""},
    {"x-metashim-project": "another"},
    {"x-metashim-project": ""},
    {"x-metashim-instance": f"{ID}\n{PROJECT}", "x-metashim-project": ""},
    {"x-metashim-signature": ""},
    {"x-metashim-signature": "v1 t=1764000001 n=" + NONCE.hex() + " s=" + "0" * 64},
]


@pytest.mark.parametrize("altered", ALTERED)
def test_altered_headers_do_not(who_asks: Any, altered: dict[str, str]) -> None:
    assert who_asks(SECRET, "GET", "/a?b=c", signed() | altered, NOW) is None


@pytest.mark.parametrize(
    ("secret", "method", "target"),
    [
        (b"another", "GET", "/a?b=c"), (SECRET, "PUT", "/a?b=c"), (SECRET, "get", "/a?b=c"),
        (SECRET, "GET", "/a"), (SECRET, "GET", "/a?b=d"), (SECRET, "GET", "/%61?b=c"), (SECRET, "GET", "/a?b=c "),
    ],
)  # fmt: skip
def test_another_request_does_not(who_asks: Any, secret: bytes, method: str, target: str) -> None:
    assert who_asks(secret, method, target, signed(), NOW) is None


def test_every_character_of_the_signature_counts(who_asks: Any) -> None:
    genuine = signed()["x-metashim-signature"]
    for at, old in enumerate(genuine):
        other = genuine[:at] + ("0" if old != "0" else "1") + genuine[at + 1 :]
        assert who_asks(SECRET, "GET", "/a?b=c", signed() | {"x-metashim-signature": other}, NOW) is None, at
    assert who_asks(SECRET, "GET", "/a?b=c", signed(), NOW) == (ID, PROJECT)  # none of them was remembered


def test_the_signature_is_what_the_documentation_says() -> None:
    message = f"v1\n{ID}\n{PROJECT}\nGET\n/a?b=c\n{NOW}\n{NONCE.hex()}".encode()
    mac = hmac.new(SECRET, message, hashlib.sha256).hexdigest()
    name, value = Identity(DEFAULTS, SECRET).signature(SUBJECT, b"GET", b"/a?b=c", NOW + 0.9, NONCE)
    assert (name, value) == (b"X-Metashim-Signature", f"v1 t={NOW} n={NONCE.hex()} s={mac}".encode())


@pytest.mark.parametrize("secret", [b"k", b"k" * 64, b"k" * 65, b"k" * 4096])
def test_a_signature_is_hmac_whatever_the_length_of_the_key(secret: bytes) -> None:
    _, value = Identity({}, secret).signature(SUBJECT, b"GET", b"/", NOW, NONCE)
    said = "\n".join(("v1", ID, PROJECT, "GET", "/", str(int(NOW)), NONCE.hex()))
    assert value.endswith(hmac.digest(secret, said.encode(), "sha256").hex().encode())
