"""A guest, its tap, a whole metashim, and the real Nova: what other proxies in between get wrong."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

import pytest

from tests.backends.visit import chunked, request
from tests.backends.wiring import (
    BUSY,
    WITHIN,
    ask,
    at_once,
    await_status,
    enrol,
    forward_to,
    timed,
    visiting,
)
from tests.lab import Lab, VethGuest
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import ALL, V4, V6
from tests.nova.rig import Nova, Server, require_nova

A, B, C, D = (uuid_of(number) for number in (1, 2, 3, 4))
PROJECT, DASHED = "0123456789abcdef0123456789abcdef", "01234567-89ab-cdef-0123-456789abcdef"
META, PASSWORD = "/openstack/latest/meta_data.json", "/openstack/latest/password"
USER_DATA = ("/openstack/latest/user_data", "/latest/user-data")
ZIPPED = gzip.compress(b"#cloud-config\n" + os.urandom(3000).hex().encode(), mtime=0)
LATIN = b"#!/bin/sh\n\xff\xfe\x80\x00\r\n\r\n" * 9
LARGE = os.urandom(40_000)  # Nova takes 65,535 bytes of base64
OWN = "10.0.0.7"
both = pytest.mark.parametrize("address", [V4, V6])

SERVERS = [
    Server(A, PROJECT, "one", ZIPPED, {"mine": "ssh-ed25519 AAAA me"}),
    Server(B, "other", "two", LATIN, address="10.0.0.5/24"),
    Server(C, "other", "three", LARGE),
    Server(D, "other", "four", b""),
]


class Place(NamedTuple):
    site: Hypervisor
    nova: Nova
    a: VethGuest
    b: VethGuest
    c: VethGuest
    d: VethGuest


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Four guests with one address. Tests may stop Nova, and leave it running."""
    require_nova()
    with Lab() as lab:
        nova = Nova(SERVERS, namespace=lab.host)
        settings = forward_to("nova", nova)
        with Hypervisor(lab, settings, proxy=BUSY) as site, nova:
            site.start()
            yield Place(
                site,
                nova,
                enrol(site, "a", A, DASHED, (f"{OWN}/24",)),
                enrol(site, "b", B, "other"),
                enrol(site, "c", C, "other"),
                enrol(site, "d", D, "other"),
            )


def uuid_in(body: bytes) -> UUID:
    return UUID(json.loads(body)["uuid"])


class TestAnswers:
    @pytest.mark.parametrize("address", ALL)
    def test_each_guest_gets_its_own(self, place, address):
        for guest, instance in ((place.a, A), (place.b, B), (place.c, C), (place.d, D)):
            assert uuid_in(ask(guest, META, address=address).body) == instance

    def test_the_root_and_a_directory(self, place):
        assert ask(place.a, "/").text.splitlines()[-1] == "latest"
        assert ask(place.a, "/latest/meta-data/public-keys/0/openssh-key").text == "ssh-ed25519 AAAA me"

    @pytest.mark.parametrize("path", ["/openstack/2011-01-01/meta_data.json", "/openstack/latest/no", "/x"])
    def test_what_is_not_there(self, place, path):
        assert ask(place.a, path).status == 404

    @both
    @pytest.mark.parametrize("path", USER_DATA)
    def test_gzip_is_left_as_it_is(self, place, path, address):
        """Neutron's agent unpacks it in silence."""
        for headers in ([], [("Accept-Encoding", "gzip")], [("Accept-Encoding", "identity")]):
            reply = ask(place.a, path, headers=headers, address=address)
            assert reply.body == ZIPPED
            assert reply.header("Content-Encoding") is None

    @both
    @pytest.mark.parametrize("path", USER_DATA)
    def test_bytes_that_are_no_text(self, place, path, address):
        assert ask(place.b, path, address=address).body == LATIN

    @both
    def test_many_segments(self, place, address):
        with visiting(place.c, address) as visit:
            assert [visit.ask(USER_DATA[0]).body == LARGE for _ in range(3)] == [True] * 3

    @pytest.mark.parametrize("path", [*USER_DATA, PASSWORD])
    def test_an_empty_body_is_an_answer(self, place, path):
        reply = ask(place.d, path)
        assert (reply.status, reply.body, reply.header("Content-Length")) == (200, b"", "0")

    def test_head_has_the_length_and_no_body(self, place):
        with visiting(place.b) as visit:
            reply = visit.ask(USER_DATA[0], "HEAD")
            assert (reply.status, reply.body, reply.header("Content-Length")) == (200, b"", str(len(LATIN)))
            assert visit.ask(USER_DATA[0]).body == LATIN

    def test_a_long_uri(self, place):
        assert uuid_in(ask(place.a, f"{META}?{'x' * 8000}").body) == A

    def test_long_headers(self, place):
        """More than 4 KiB of them: the last of ours would be the first to be lost."""
        headers = [(f"X-Padding-{number}", "x" * 100) for number in range(60)]
        assert uuid_in(ask(place.a, META, headers=headers).body) == A

    @both
    def test_many_clients_at_once(self, place, address):
        """Neutron's chain answers 503 from eight on."""

        def run(number: int) -> None:
            guest, instance = ((place.a, A), (place.b, B))[number % 2]
            with visiting(guest, address) as visit:
                for _ in range(20):
                    reply = visit.ask(META)
                    assert reply.status == 200, reply
                    assert uuid_in(reply.body) == instance

        assert at_once(24, run) == []

    def test_pipelined_answers_are_in_order(self, place):
        paths = [META, "/latest/meta-data/hostname", "/nothing", USER_DATA[0], "/latest/meta-data/local-ipv4"] * 4
        expected = [ask(place.b, path) for path in paths]
        with visiting(place.b) as visit:
            visit.sock.sendall(b"".join(request(path) for path in paths))
            raw = b""
            length = sum(len(reply.body) for reply in expected)
            while raw.count(b"HTTP/1.1 ") < len(paths) or sum(map(len, bodies(raw))) < length:
                data = visit.sock.recv(65536)
                assert data
                raw += data
        found = [int(head.split(b" ")[1]) for head in heads(raw)]
        assert found == [reply.status for reply in expected]


def heads(raw: bytes) -> list[bytes]:
    """The heads of answers that follow each other, each with a Content-Length."""
    return [head for head, _ in _messages(raw)]


def bodies(raw: bytes) -> list[bytes]:
    """Their bodies, the last as far as it is there."""
    return [body for _, body in _messages(raw)]


def _messages(raw: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    while b"\r\n\r\n" in raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        found.append((head, raw[:length]))
        raw = raw[length:]
    return found


class TestIdentity:
    @pytest.mark.parametrize(
        "name",
        [
            "X-Instance-ID",
            "x-instance-id",
            "X_Instance_ID",
            "X-Instance_ID",
            "X-Instance-ID-Signature",
            "X_Instance_ID_Signature",
            "X-Tenant-ID",
            "X_Tenant_ID",
            "X-Metadata-Provider",
            "X_Metadata_Provider",
            "X-Metadata-Provider-Signature",
            "X-Forwarded-For",
            "X_Forwarded_For",
            "Forwarded",
            "X-Real-IP",
        ],
    )
    def test_a_guest_s_own_is_ignored(self, place, name):
        for value in (str(B), "other", "10.9.9.9"):
            for fields in ([(name, value)], [(name, value), ("Connection", name)]):
                reply = ask(place.a, META, headers=fields)
                assert (reply.status, uuid_in(reply.body)) == (200, A)

    def test_a_guest_cannot_have_ours_dropped(self, place):
        listed = "X-Instance-ID, X-Instance-ID-Signature, X-Tenant-ID, X-Forwarded-For"
        assert uuid_in(ask(place.a, META, headers=[("Connection", listed)]).body) == A

    def test_its_address_is_the_one_that_we_know(self, place):
        path = "/latest/meta-data/local-ipv4"
        for headers in ([], [("X-Forwarded-For", "10.9.9.9")], [("X_Forwarded_For", "10.9.9.9")]):
            assert ask(place.a, path, headers=headers).text == OWN

    def test_its_address_is_nova_s_where_there_is_a_port(self, place):
        assert ask(place.b, "/latest/meta-data/local-ipv4").text == "10.0.0.5"


class TestPassword:
    def test_once(self, place):
        """Its body in a segment of its own: others forward it empty."""
        head, _, secret = request(PASSWORD, "POST", body=b"s" * 1020).partition(b"\r\n\r\n")
        with visiting(place.a) as visit:
            assert visit.send(head + b"\r\n\r\n", secret[:500], secret[500:], pause=0.1, method="POST").status == 200
            assert visit.ask(PASSWORD).body == b"s" * 1020
            assert visit.ask(PASSWORD, "POST", body=b"t").status == 409
            assert visit.ask(PASSWORD).body == b"s" * 1020
        assert ask(place.d, PASSWORD).body == b""

    def test_chunked(self, place):
        """Nova wants a length: it has one by the time that Nova is asked."""
        with visiting(place.b) as visit:
            assert visit.send(chunked(PASSWORD, "POST", [b"pass", b"word"]), method="POST").status == 200
            assert visit.ask(PASSWORD).body == b"password"

    def test_without_a_body(self, place):
        """Nova ends with a 500 where there is no length."""
        assert ask(place.d, PASSWORD, "POST").status == 200

    def test_what_nova_refuses(self, place):
        assert ask(place.c, PASSWORD, "POST", body=b"x" * 1021).status == 400
        assert ask(place.c, PASSWORD, "PUT", body=b"x").status == 400
        assert ask(place.c, PASSWORD).body == b""


class TestNovaGoes:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_stopped(self, place, number):
        """503 and when to come again, soon: neither a 500 nor a reset."""
        with visiting(place.a) as visit:
            assert visit.ask(META).status == 200
            place.nova.stop(number)
            try:
                for path, method, body in ((META, "GET", None), (PASSWORD, "POST", b"x"), (META, "GET", None)):
                    reply, seconds = timed(lambda p=path, m=method, b=body: visit.ask(p, m, body=b))
                    assert reply.status == 503
                    assert int(reply.header("Retry-After")) > 0
                    assert reply.header("Content-Type").startswith("text/plain")
                    assert seconds < WITHIN
                assert ask(place.b, META, address=V6).status == 503
            finally:
                place.nova.start()
            await_status(place.a, META, 200)
            assert uuid_in(visit.ask(META).body) == A
        assert "is down" in place.site.log_text()
        assert "is up again" in place.site.log_text()

    def test_frozen(self, place):
        """Its kernel takes the request: nobody knows what became of it. Those after it hear at once."""
        with visiting(place.a) as visit:
            with place.nova.frozen():
                reply, seconds = timed(lambda: visit.ask(META))
                assert reply.status in (503, 504)
                assert int(reply.header("Retry-After")) > 0
                assert seconds < 6
                reply, seconds = timed(lambda: visit.ask(META))
                assert reply.status == 503
                assert seconds < WITHIN
            await_status(place.a, META, 200)
            assert uuid_in(visit.ask(META).body) == A


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Nova]:
    """Nova on a Unix socket, which can be reached from any namespace."""
    with Nova(SERVERS, unix=True) as nova:
        yield nova


class TestDisagreement:
    def test_about_the_secret(self, lab, elsewhere, tmp_path):
        """The guest gets Nova's 403; the operator reads why."""
        wrong = tmp_path / "secret"
        wrong.write_text("another-secret\n")
        with Hypervisor(lab, forward_to("nova", elsewhere, secret_file=wrong), proxy=BUSY) as site:
            site.start()
            guest = enrol(site, "a", A, PROJECT)
            assert [ask(guest, META).status for _ in range(20)] == [403] * 20
            lines = [line for line in site.log_text().splitlines() if "metadata_proxy_shared_secret" in line]
            assert len(lines) == 1
            assert "nova.secret_file" in lines[0]
            assert "another-secret" not in site.log_text()

    def test_about_the_project(self, lab, elsewhere):
        with Hypervisor(lab, forward_to("nova", elsewhere), proxy=BUSY) as site:
            site.start()
            assert uuid_in(ask(enrol(site, "c", C, "other"), META).body) == C
            assert ask(enrol(site, "a", A, "some-other"), META).status == 404
            unknown = enrol(site, "b", B, "other")
            site.api.put_document(B, b"{}")
            reply = await_status(unknown, META, 503)
            assert int(reply.header("Retry-After")) > 0
            assert [ask(unknown, META).status for _ in range(5)] == [503] * 5
            assert site.log_text().count(f"the project of instance {B}") == 1
            site.api.put_document(B, b'{"project_id": "other"}')
            await_status(unknown, META, 200)

    def test_about_the_instance(self, place):
        guest = enrol(place.site, "x", uuid_of(99), PROJECT)
        assert ask(guest, META).status == 404
