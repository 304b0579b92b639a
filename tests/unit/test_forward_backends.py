"""What Nova and other backends are sent, and what is answered where they cannot be."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Callable
from uuid import UUID

import pytest

from shim.core.address import parse_address
from shim.core.exchange import Headers, Request, Response, Subject
from shim.errors import BackendError
from shim.forward.http import Http
from shim.forward.nova import FORBIDDEN_SECONDS, TOLD, Nova
from shim.forward.tagged import REMEMBERED, Tagged
from shim.forward.upstream import Endpoint, Upstream

VECTOR = UUID("c0ffee00-1111-4222-8333-444455556666")  # with its signature: protocols, "Nova's metadata API"
VECTOR_SIGNATURE = b"bc12d5dd1b5fb591a5bf734982039439f3edd7c3e99e95632ccc19437a699a91"
SECRET = b"peer-shared-secret"
PROJECT = "0123456789abcdef0123456789abcdef"
SUBJECT = Subject(VECTOR, PROJECT, "10.1.2.3")
OK = Response(200, (), b"yes")
SPOOFS = (
    (b"x-instance-id", b"evil"),
    (b"x_instance_id", b"evil"),
    (b"x-instance-id-signature", b"evil"),
    (b"x-tenant-id", b"evil"),
    (b"x-metadata-provider", b"evil"),
    (b"x-forwarded-for", b"6.6.6.6"),
    (b"forwarded", b"for=6.6.6.6"),
    (b"x-metashim-instance", b"evil"),
    (b"x-metashim-signature", b"v1 evil"),
    (b"connection", b"accept"),
)
GUEST: Headers = ((b"host", b"169.254.169.254"), *SPOOFS, (b"user-agent", b"cloud-init"), (b"accept", b"*/*"))


class Recorder:
    """A client that answers at once, and remembers what it was asked."""

    busy = 0

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.answer = OK

    def ask(self, request: Request, done: Callable[[Response | BackendError], None]) -> Recorder:
        self.asked.append(request)
        done(self.answer)
        return self

    def cancel(self) -> None:
        """Nothing is ever under way."""

    def fail_silent(self, why: str) -> None:
        """Nothing is ever under way."""

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def backend(loop):
    """The client and the upstream of a backend."""
    recorder = Recorder()
    return recorder, Upstream("nova", [Endpoint(parse_address("http://10.0.0.1:8775"), recorder, recorder)])


def test_nova_is_told_who_asks_and_nothing_that_the_guest_says_of_it(backend):
    recorder, upstream = backend
    request = Request(b"GET", b"/openstack", b"a=b", GUEST)
    assert Nova(upstream, SECRET)(SUBJECT, request).response is OK
    (asked,) = recorder.asked
    assert (asked.method, asked.path, asked.query, asked.body) == (b"GET", b"/openstack", b"a=b", b"")
    assert sorted((name.lower(), value) for name, value in asked.headers) == [
        (b"user-agent", b"cloud-init"),
        (b"x-forwarded-for", b"10.1.2.3"),
        (b"x-instance-id", str(VECTOR).encode()),
        (b"x-instance-id-signature", VECTOR_SIGNATURE),
        (b"x-tenant-id", PROJECT.encode()),
    ]


def test_nova_gets_the_password_as_the_guest_posts_it(backend):
    recorder, upstream = backend
    post = Request(b"POST", b"/openstack/2013-04-04/password", headers=GUEST, body=b"\x00secret\xff")
    Nova(upstream, SECRET)(SUBJECT, post)
    assert (recorder.asked[0].method, recorder.asked[0].body) == (b"POST", b"\x00secret\xff")


def test_a_body_in_parts_is_passed_on(backend):
    recorder, upstream = backend

    async def parts():
        yield b"one"

    Nova(upstream, SECRET)(SUBJECT, Request(b"POST", b"/", headers=GUEST, parts=parts(), length=3))
    (asked,) = recorder.asked
    assert asked.length == 3

    async def read():
        return [part async for part in asked.parts]

    assert asyncio.new_event_loop().run_until_complete(read()) == [b"one"]


def test_without_a_project_nova_is_not_asked_and_it_is_logged_once(backend, caplog):
    recorder, upstream = backend
    nova = Nova(upstream, SECRET)
    for _ in range(3):
        answer = nova(Subject(VECTOR, "", "10.1.2.3"), Request(b"GET", b"/"))
        assert answer.status == 503 and answer.backend == "nova"
        assert any(name == b"retry-after" for name, _ in answer.headers)
    assert recorder.asked == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(VECTOR) in caplog.text
    assert nova(SUBJECT, Request(b"GET", b"/")).response is OK, "as soon as it is known"


def test_who_was_logged_is_bounded(backend, caplog):
    _, upstream = backend
    nova = Nova(upstream, SECRET)
    for number in range(TOLD + 10):
        nova(Subject(UUID(int=number)), Request(b"GET", b"/"))
    assert len(caplog.records) == TOLD + 10
    nova(Subject(UUID(int=TOLD)), Request(b"GET", b"/"))
    assert len(caplog.records) == TOLD + 10
    nova(Subject(UUID(int=0)), Request(b"GET", b"/"))
    assert len(caplog.records) == TOLD + 11


def test_another_secret_than_novas_is_logged_now_and_then(loop, caplog):
    now = 100.0
    recorder = Recorder()
    endpoint = Endpoint(parse_address("http://10.0.0.1:8775"), recorder, recorder)
    nova = Nova(Upstream("nova", [endpoint], clock=lambda: now), SECRET)
    nova(SUBJECT, Request(b"GET", b"/"))
    assert caplog.records == []
    recorder.answer = Response(403)
    for now in (100.0, 101.0, 100.0 + FORBIDDEN_SECONDS):  # noqa: B007 - the clock reads it
        assert nova(SUBJECT, Request(b"GET", b"/")).response.status == 403
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "metadata_proxy_shared_secret" in caplog.text
    assert SECRET.decode() not in caplog.text


def test_secrets_are_not_logged(backend, caplog):
    _, upstream = backend
    caplog.set_level(logging.DEBUG)
    nova = Nova(upstream, SECRET)
    nova(SUBJECT, Request(b"GET", b"/", headers=GUEST))
    nova(Subject(VECTOR), Request(b"GET", b"/"))
    assert SECRET.decode() not in caplog.text + repr(nova) and VECTOR_SIGNATURE.decode() not in caplog.text


TEMPLATES = {"X-Who": "{instance}", "X-Where": "{project}/{address}"}


def test_any_service_is_told_in_the_operators_words(backend):
    recorder, upstream = backend
    spoofed = (*GUEST, (b"x-who", b"evil"), (b"x-where", b"evil"))
    Http(upstream, TEMPLATES)(SUBJECT, Request(b"GET", b"/v1", headers=spoofed))
    (asked,) = recorder.asked
    assert sorted((name.lower(), value) for name, value in asked.headers) == [
        (b"user-agent", b"cloud-init"),
        (b"x-where", f"{PROJECT}/10.1.2.3".encode()),
        (b"x-who", str(VECTOR).encode()),
    ]


def test_a_signature_covers_the_request_and_is_never_the_same(backend):
    recorder, upstream = backend
    nonces = iter((b"\x01" * 16, b"\x02" * 16))
    http = Http(upstream, TEMPLATES, SECRET, now=lambda: 1700000000.9, nonce=lambda: next(nonces))
    request = Request(b"GET", b"/v1", b"q=1", GUEST)
    http(SUBJECT, request)
    http(SUBJECT, request)
    name = b"x-metashim-signature"
    said = [[value for key, value in asked.headers if key.lower() == name] for asked in recorder.asked]
    assert [len(values) for values in said] == [1, 1]
    for (value,), nonce in zip(said, ("01" * 16, "02" * 16), strict=True):
        parts = ("v1", str(VECTOR), PROJECT, "GET", "/v1?q=1", "1700000000", nonce)
        expected = hmac.new(SECRET, "\n".join(parts).encode(), hashlib.sha256).hexdigest()
        assert value.decode() == f"v1 t=1700000000 n={nonce} s={expected}"


def test_nonces_never_repeat_and_time_is_of_now(backend):
    recorder, upstream = backend
    http = Http(upstream, TEMPLATES, SECRET)
    for _ in range(100):
        http(SUBJECT, Request(b"GET", b"/"))
    found = {re.search(rb"n=([0-9a-f]{32}) ", asked.headers[-1][1])[1] for asked in recorder.asked}
    assert len(found) == 100


def test_without_a_secret_nothing_is_signed(backend):
    recorder, upstream = backend
    Http(upstream, TEMPLATES)(SUBJECT, Request(b"GET", b"/", headers=GUEST))
    assert not any(b"signature" in name.lower() for name, _ in recorder.asked[0].headers)


# Memory of requests.


class _Endless:
    def __aiter__(self) -> _Endless:
        return self

    async def __anext__(self) -> bytes:
        return b"x"


def _tagged(calls: list[Subject]) -> Tagged:
    def headers(subject: Subject, headers: Headers) -> Headers:
        calls.append(subject)
        return (*headers, (b"x-who", str(subject.instance).encode()))

    return Tagged(headers)


def test_one_request_of_one_guest_is_made_once():
    calls: list[Subject] = []
    tagged, request = _tagged(calls), Request(b"GET", b"/")
    assert tagged(SUBJECT, request) is tagged(SUBJECT, request)
    assert calls == [SUBJECT]


def test_the_same_request_of_two_guests_is_two():
    other = Subject(UUID(int=7))
    tagged, request = _tagged([]), Request(b"GET", b"/")
    for _ in range(2):
        assert tagged(SUBJECT, request).headers == ((b"x-who", str(VECTOR).encode()),)
        assert tagged(other, request).headers == ((b"x-who", str(UUID(int=7)).encode()),)


def test_an_id_that_is_used_again_is_not_taken_for_another():
    """What is remembered is kept alive, so that nothing else can get its id."""
    tagged = _tagged([])
    for number in range(3 * REMEMBERED):
        path = b"/%d" % number
        assert tagged(Subject(UUID(int=number)), Request(b"GET", path)).path == path


@pytest.mark.parametrize(
    "request_",
    [
        Request(b"POST", b"/", body=b"x"),
        Request(b"POST", b"/", parts=_Endless()),
        Request(b"GET", b"/", headers=((b"a", b"b" * 2000),)),
    ],
    ids=["body", "parts", "long"],
)
def test_what_does_not_come_again_is_not_remembered(request_):
    tagged = _tagged([])
    tagged(SUBJECT, request_)
    assert len(tagged) == 0


def test_what_is_remembered_is_bounded():
    tagged = _tagged([])
    for number in range(2 * REMEMBERED):
        tagged(SUBJECT, Request(b"GET", b"/%d" % number))
    assert len(tagged) == REMEMBERED
