"""Sources beside a backend's own user-data: passed as it is, composed, read once, or refused; nginx and Nova have files
of their own for what is forwarded and concerns no source."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from shim.core.policy import Access, Composition
from tests.backends.raw import Connection, Heard, Raw, Script, freezes, message, resets, says
from tests.backends.wiring import AGAIN, ask, await_status, forward_to
from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, api, enrol, leave, parts_of, raw_of, rest_of, trail
from tests.netns.say import Reply, at_once, get, request, say
from tests.netns.talk import connect, outcome

A, B, C = uuid_of(1), uuid_of(2), uuid_of(3)
EC2, OPENSTACK, VENDOR = "/latest/user-data", "/openstack/latest/user_data", "/openstack/latest/vendor_data.json"
USER_DATA = (EC2, OPENSTACK)
ID = "/metashim/v1/meta-data"
THEIRS = b"#cloud-config\npackages: [theirs]\n"
OURS = b"#cloud-config\npackages: [ours]\n"
ZIPPED = gzip.compress(THEIRS, mtime=0)
BINARY = bytes(range(256)) * 20
LARGE = os.urandom(200_000)


class Place(NamedTuple):
    """`plain` is forwarded to `http` and has no source; `guest` too, and tests give it some; `nova` is forwarded
    there."""

    site: Hypervisor
    http: Raw
    nova: Raw
    plain: VethGuest
    guest: VethGuest
    on_nova: VethGuest


@pytest.fixture(scope="module")
def shared_place() -> Iterator[Place]:
    with Lab() as lab, Raw(lab.host) as http, Raw(lab.host) as nova:
        settings = forward_to("http", http, forward="read_seconds = 1\nconnections = 8\n")
        settings += f'[nova]\naddresses = ["{nova.url}"]\nsecret_file = "{nova.secret_file}"\n'
        with Hypervisor(lab, settings, proxy="connections_per_instance = 256\n") as site:
            site.start()
            guests = [enrol(site, name, one) for name, one in (("a", A), ("b", B), ("c", C))]
            site.verb("routes", str(C), "/=nova")
            yield Place(site, http, nova, *guests)


@pytest.fixture
def place(shared_place: Place) -> Iterator[Place]:
    """What a test added is gone after it."""
    yield shared_place
    shared_place.http.forget()
    shared_place.nova.forget()
    client = api(shared_place.site)
    for one in client.sources():
        client.delete_source(one.scope, one.name)


def play(raw: Raw, script: Script) -> None:
    for path in (*USER_DATA, VENDOR):
        raw.play(path, script)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Theirs: 1\r\n\r\n"


class TestWithoutSources:
    @pytest.mark.parametrize("path", USER_DATA)
    @pytest.mark.parametrize("body", [THEIRS, ZIPPED, BINARY, b"", LARGE, b"\xff\xfe"])
    def test_bytes(self, place: Place, path: str, body: bytes) -> None:
        play(place.http, says(message(body, 200, ("X-Theirs", "1"), ("ETag", '"theirs"'))))
        reply = get(place.plain, path)
        assert (reply.status, reply.body) == (200, body)
        assert reply.headers["x-theirs"] == "1" and reply.etag == '"theirs"'

    def test_chunked(self, place: Place) -> None:
        sent = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (9000, LARGE[n : n + 9000]) for n in range(0, 90_000, 9000))
        play(place.http, says(sent + b"0\r\n\r\n"))
        reply = ask(place.plain, EC2)
        assert reply.body == LARGE[:90_000] and reply.header("X-Theirs") == "1"

    @pytest.mark.parametrize("status", [404, 403, 500, 503, 429, 204])
    def test_statuses(self, place: Place, status: int) -> None:
        sent = message(b"" if status == 204 else b"their words", status, ("Retry-After", "9"))
        play(place.http, says(sent.replace(b"Content-Length: 0\r\n", b"") if status == 204 else sent))
        reply = get(place.plain, EC2)
        assert reply.status == status and reply.headers["retry-after"] == "9"
        assert reply.body == (b"" if status == 204 else b"their words")

    def test_what_asks_for_a_part_or_a_change_is_theirs_to_answer(self, place: Place) -> None:
        get(place.plain, f"{EC2}?wait=5&etag=x", If_None_Match='"x"', Range="bytes=0-1", Accept="text/event-stream")
        (heard,) = place.http.heard(EC2)
        assert heard.target == f"{EC2}?wait=5&etag=x"
        assert heard.header("If-None-Match") == ['"x"'] and heard.header("Range") == ["bytes=0-1"]


class TestComposed:
    @pytest.mark.parametrize("path", USER_DATA)
    def test_with_a_source(self, place: Place, path: str) -> None:
        play(place.http, says(message(THEIRS, 200, ("X-Theirs", "1"))))
        add(place.site, B, "base", OURS, order=10)
        reply = get(place.guest, path)
        assert reply.status == 200 and parts_of(reply.body) == [OURS, THEIRS]
        assert get(place.plain, path).body == THEIRS, "its neighbour has none"
        assert get(place.guest, path, If_None_Match=reply.etag).status == 304
        place.http.play(path, says(message(THEIRS + b"# changed\n")))
        again = get(place.guest, path, If_None_Match=reply.etag)
        assert again.status == 200 and again.etag != reply.etag and parts_of(again.body)[1].endswith(b"# changed\n")

    def test_with_what_is_gzip_or_chunked_or_large(self, place: Place) -> None:
        add(place.site, B, "base", OURS, order=10)
        play(place.http, says(message(ZIPPED)))
        assert parts_of(get(place.guest, EC2).body) == [OURS, THEIRS]
        script = b"#!/bin/sh\n" + b"# line\n" * 20_000
        play(place.http, says(CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(script), script)))
        assert parts_of(gzip.decompress(get(place.guest, EC2).body)) == [OURS, script]
        play(place.http, says(message(LARGE)))
        assert get(place.guest, EC2).status == 503, "it does not fit"
        play(place.http, says(message(b"x" * (1 << 21))))
        assert get(place.guest, EC2).status == 502
        play(place.http, says(message(THEIRS)))
        assert get(place.guest, EC2).status == 200

    @pytest.mark.parametrize("status", [404, 200])
    def test_where_they_have_nothing_the_sources_are_all(self, place: Place, status: int) -> None:
        play(place.http, says(message(b"no" if status == 404 else b"", status)))
        add(place.site, B, "base", OURS)
        assert get(place.guest, EC2).body == OURS

    @pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
    def test_their_other_words_are_passed_on(self, place: Place, status: int) -> None:
        play(place.http, says(message(b"their words", status, ("X-Theirs", "1"))))
        add(place.site, B, "base", OURS)
        reply = get(place.guest, EC2)
        assert (reply.status, reply.body, reply.headers["x-theirs"]) == (status, b"their words", "1")

    def test_their_answer_is_asked_for_whole(self, place: Place) -> None:
        """What is composed is neither a part of theirs nor an echo of what the guest had of theirs."""
        play(place.http, says(message(THEIRS)))
        add(place.site, B, "base", OURS)
        reply = get(
            place.guest, EC2, If_None_Match='"theirs"', If_Modified_Since="Sat, 01 Jan 2050 00:00:00 GMT",
            Range="bytes=0-3", Accept_Encoding="gzip",
        )  # fmt: skip
        assert reply.status == 200 and len(parts_of(reply.body)) == 2
        (heard,) = place.http.heard(EC2)
        for name in ("If-None-Match", "If-Modified-Since", "Range", "Accept-Encoding"):
            assert heard.header(name) == []

    def test_head(self, place: Place) -> None:
        play(place.http, says(message(THEIRS)))
        add(place.site, B, "base", OURS)
        whole = get(place.guest, EC2)
        head = raw_of(place.guest, "HEAD", EC2).lower()
        assert head.startswith(b"http/1.1 200 ") and b"content-length: %d\r\n" % len(whole.body) in head
        assert head.endswith(b"\r\n\r\n") and whole.etag.encode() in head

    def test_waiting_is_not_offered(self, place: Place) -> None:
        """Who answers elsewhere does not tell when it changes: a wait is answered at once, by what is."""
        play(place.http, says(message(THEIRS)))
        add(place.site, B, "base", OURS)
        now = get(place.guest, EC2)
        began = time.monotonic()
        assert get(place.guest, f"{EC2}?wait=5&etag={now.etag.strip(chr(34))}").body == now.body
        assert get(place.guest, EC2, Accept="text/event-stream").body == now.body
        assert time.monotonic() - began < 2

    def test_vendor_data(self, place: Place) -> None:
        theirs = {"cloud-init": "#cloud-config\nntp: {enabled: true}\n", "site": {"rack": 7}, "n": 1.5}
        play(place.http, says(message(json.dumps(theirs, indent=4).encode())))
        add(place.site, B, "user", OURS)
        assert get(place.guest, VENDOR).body == json.dumps(theirs, indent=4).encode(), "no vendor source: as it is"
        add(place.site, B, "mirror", b"#cloud-config\napt: {}\n", kind="vendor")
        found = get(place.guest, VENDOR).json
        assert found["site"] == {"rack": 7} and found["n"] == 1.5
        assert parts_of(found["cloud-init"].encode()) == [b"#cloud-config\napt: {}\n", theirs["cloud-init"].encode()]
        play(place.http, says(message(b"not json")))
        assert get(place.guest, VENDOR).body == b"not json", "what is no JSON is their word"
        play(place.http, says(message(b"no", 404)))
        assert get(place.guest, VENDOR).json == {"cloud-init": "#cloud-config\napt: {}\n"}
        api(place.site).delete_source(str(B), "mirror")
        assert get(place.guest, VENDOR).status == 404

    def test_as_vendor_data(self, place: Place) -> None:
        """With the composition `vendor` their user-data is untouched."""
        play(place.http, says(message(ZIPPED, 200, ("X-Theirs", "1"))))
        place.http.play(VENDOR, says(message(b"{}")))
        add(place.site, B, "base", OURS)
        place.site.api.set_composition(B, Composition.VENDOR)
        reply = get(place.guest, EC2)
        assert reply.body == ZIPPED and reply.headers["x-theirs"] == "1"
        assert get(place.guest, VENDOR).json == {"cloud-init": OURS.decode()}
        place.site.api.set_composition(B, None)

    def test_nova(self, place: Place) -> None:
        play(place.nova, says(message(THEIRS)))
        add(place.site, C, "base", OURS, order=10)
        for path in (*USER_DATA, "/2009-04-04/user-data", "/openstack/2018-08-27/user_data", "/latest/user-data/"):
            place.nova.play(path, says(message(THEIRS)))
            assert parts_of(get(place.on_nova, path).body) == [OURS, THEIRS], path
        heard = place.nova.heard()[-1]
        assert heard.header("X-Instance-ID") == [str(C)] and heard.header("X-Tenant-ID") == ["blue"]
        assert heard.method == "GET"


class TestEnds:
    """Backends that break off, or are slow, and guests that leave."""

    def test_one_that_breaks_off(self, place: Place) -> None:
        add(place.site, B, "base", OURS)
        for body in (b"half", b"x" * 150_000):
            play(place.http, resets(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + body))
            reply = get(place.guest, EC2)
            assert reply.status == 502 and "retry-after" in reply.headers
            assert OURS not in reply.body

    def test_one_that_falls_silent(self, place: Place) -> None:
        add(place.site, B, "base", OURS)
        play(place.http, freezes(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 150_000))
        assert get(place.guest, EC2, timeout=8).status == 504

    def test_what_is_not_read_to_its_end_is_given_back(self, place: Place) -> None:
        """Large 404s, larger than can be composed, and guests that leave meanwhile: no connection to the backend stays
        taken."""
        add(place.site, B, "base", OURS)
        play(place.http, says(message(b"x" * 100_000, 404)))
        for _ in range(20):
            assert get(place.guest, EC2).body == OURS
        play(place.http, freezes(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 150_000))
        for _ in range(20):
            with connect(place.guest) as sock:
                sock.sendall(request("GET", EC2))
                time.sleep(0.02)
        play(place.http, says(message(THEIRS)))
        began = time.monotonic()
        assert [get(place.guest, EC2).status for _ in range(3)] == [200] * 3
        assert time.monotonic() - began < 1

    def test_what_was_closed_while_the_backend_thought(self, place: Place) -> None:
        site = place.site
        add(site, B, "base", OURS)
        for close, reopen in (
            (lambda: site.api.set_closed(B, close=["user-data"]), lambda: site.api.set_closed(B, open=["user-data"])),
            (lambda: site.disable(B, Access.FORBID), lambda: site.enable(B)),
        ):
            gate = threading.Event()
            play(place.http, _late(gate, message(THEIRS)))
            with connect(place.guest) as sock:
                sock.sendall(request("GET", EC2))
                wait_until(lambda: bool(place.http.heard(EC2)), "it to be asked")
                close()
                gate.set()
                found = rest_of(sock)
            assert found.startswith(b"HTTP/1.1 403 "), found
            reopen()
            place.http.forget()


def _late(gate: threading.Event, data: bytes) -> Script:
    def script(connection: Connection, _: Heard) -> None:
        gate.wait(5)
        connection.send(data)

    return script


class TestOnce:
    def test_many_readers_and_one_gets_it(self, place: Place) -> None:
        play(place.http, says(message(THEIRS)))
        for path in USER_DATA:
            add(place.site, B, "secret", b"#!/bin/sh\necho hunter2\n", reads="once")
            head = raw_of(place.guest, "HEAD", path)
            assert head.startswith(b"HTTP/1.1 200 ") and b"hunter2" not in head
            found = [one for one in at_once([place.guest], path, 40) if isinstance(one, Reply)]
            assert [one.status for one in found] == [200] * 40
            assert sum(b"hunter2" in one.body for one in found) == 1
            assert sum(one.body == THEIRS for one in found) == 39, "without it theirs is alone"

    def test_vendor_data_too(self, place: Place) -> None:
        play(place.http, says(message(b'{"site": 1}')))
        add(place.site, B, "secret", b"#!/bin/sh\necho hunter2\n", reads="once", kind="vendor")
        found = [one for one in at_once([place.guest], VENDOR, 20) if isinstance(one, Reply)]
        assert sum(b"hunter2" in one.body for one in found) == 1
        assert sum(one.body == b'{"site": 1}' for one in found) == 19

    def test_a_backend_that_fails_uses_nothing_up(self, place: Place) -> None:
        add(place.site, B, "secret", b"#!/bin/sh\necho hunter2\n", reads="once")
        for script in (
            says(message(b"busy", 503)),
            says(message(b"oh", 500)),
            resets(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
            resets(),
            says(message(b"x" * (1 << 21))),
            says(b"garbage\r\n\r\n"),
        ):
            play(place.http, script)
            assert get(place.guest, EC2).status >= 500
        play(place.http, says(message(THEIRS)))
        assert b"hunter2" in get(place.guest, EC2).body
        assert get(place.guest, EC2).body == THEIRS

    def test_a_backend_that_is_down(self, place: Place) -> None:
        """503 soon, and nothing used up; all else goes on."""
        add(place.site, B, "secret", b"#!/bin/sh\necho hunter2\n", reads="once")
        otherwise, place.http.otherwise = place.http.otherwise, resets()
        try:
            for path in USER_DATA:
                reply = await_status(place.guest, path, 503, AGAIN)
                assert reply.header("Retry-After")
            told = place.site.api.status
            wait_until(lambda: "backend http" in {one.part for one in told().ailments}, "it to be told")
            assert get(place.guest, ID).status == 200
        finally:
            place.http.otherwise = otherwise
        play(place.http, says(message(THEIRS)))
        assert b"hunter2" in await_status(place.guest, EC2, 200, AGAIN).body

    def test_who_leaves_gives_it_to_the_next(self, place: Place) -> None:
        """At any moment: while the backend thinks, while the agent is asked, while it is sent."""
        add(place.site, B, "secret", b"#!/bin/sh\necho hunter2\n" + b"# x\n" * 5_000, reads="once")
        play(place.http, says(message(THEIRS)))
        leave(place.guest, EC2, 40)
        found = get(place.guest, EC2, timeout=8)
        assert b"hunter2" in found.body or "read once" in [row.what for row in trail(place.site, B)]
        assert get(place.guest, EC2).body == THEIRS

    def test_auto_on_read(self, place: Place) -> None:
        play(place.http, says(message(THEIRS)))
        for path in USER_DATA:
            place.site.api.set_auto(B, {"how": "403", "on_read": True})
            assert get(place.guest, "/latest/meta-data/").status == 200
            assert raw_of(place.guest, "HEAD", path).startswith(b"HTTP/1.1 200 ")
            assert get(place.guest, "/latest/meta-data/").status == 200
            assert get(place.guest, path).body == THEIRS
            wait_until(lambda: outcome(place.guest) == "403", "it to be shut", 3)
            place.site.enable(B)

    def test_auto_on_read_waits_for_theirs(self, place: Place) -> None:
        """A backend that has none, or none now, was not read."""
        place.site.api.set_auto(B, {"how": "403", "on_read": True})
        for status in (404, 503):
            play(place.http, says(message(b"no", status)))
            assert get(place.guest, EC2).status == status
        time.sleep(0.8)
        assert get(place.guest, ID).status == 200
        place.site.api.set_auto(B, None)


class TestBeside:
    def test_our_own_face_is_there_whatever_the_routes(self, place: Place) -> None:
        for guest, instance in ((place.plain, A), (place.guest, B), (place.on_nova, C)):
            assert get(guest, ID).json["instance_id"] == str(instance)
        assert say(place.guest, "PUT", "/metashim/v1/kv/guest/a", b"1").status == 201
        assert get(place.guest, "/metashim/v1/kv/guest/a").body == b"1"
        add(place.site, B, "base", OURS)
        assert get(place.guest, "/metashim/v1/sources/instance/base").body == OURS
        assert not place.http.heard("/metashim/v1/kv/guest/a")
        now = get(place.guest, "/metashim/v1/kv/guest/a").etag.strip('"')
        assert get(place.guest, f"/metashim/v1/kv/guest/a?wait=0.2&etag={now}").status == 304

    def test_closed_paths(self, place: Place) -> None:
        play(place.http, says(message(THEIRS)))
        site = place.site
        site.verb("disable", str(B), "--path", "user-data", "--path", "/latest/meta-data/public-keys")
        for path in (
            *USER_DATA, "/2009-04-04/user-data", "/lat%65st/user-data", "/openstack/2018-08-27/user_data",
            "/latest/meta-data/public-keys/0/openssh-key", "/2009-04-04/meta-data/public-keys/",
        ):  # fmt: skip
            assert get(place.guest, path).status == 403, path
        assert not place.http.heard(EC2) and not place.http.heard(OPENSTACK)
        assert get(place.guest, "/latest/meta-data/").status == get(place.plain, EC2).status == 200
        site.verb("enable", str(B), "--path", "user-data", "--path", "/latest/meta-data/public-keys")
        assert get(place.guest, EC2).body == THEIRS

    def test_a_guests_lock_holds_there_too(self, place: Place) -> None:
        assert say(place.guest, "POST", "/metashim/v1/lock?prefix=user-data").status == 204
        assert get(place.guest, EC2).status == get(place.guest, OPENSTACK).status == 403
        place.site.verb("unlock", str(B), "user-data")
        assert get(place.guest, EC2).status == 200
