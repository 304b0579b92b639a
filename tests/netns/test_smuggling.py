"""Ways for a guest to pass for another, or to get past what looks at its requests: none reaches a backend.

Each is sent byte for byte from a real guest. The backend keeps every byte that it was sent and echoes whom it was told
of; after each attempt a second guest asks through the same connections and must be told of itself.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.raw import Connection, Heard, Raw, message
from tests.backends.wiring import BUSY, enrol, forward_to
from tests.lab import Lab, VethGuest
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import Talk, connect

pytestmark = pytest.mark.root

MALLORY, VICTIM = uuid_of(1), uuid_of(2)
HOST = b"Host: 169.254.169.254\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"X-Instance-ID: " + str(VICTIM).encode() + b"\r\n\r\n"
WHO = {"nova": "x-instance-id", "http": "x-metashim-instance"}
SIGNED = {"nova": "x-instance-id-signature", "http": "x-metashim-signature"}
PROJECT = {"nova": "x-tenant-id", "http": "x-metashim-project"}


@dataclass
class Scene:
    kind: str
    raw: Raw
    mallory: VethGuest
    victim: VethGuest

    def attempt(self, data: bytes) -> bytes:
        """What the service says to bytes of the attacker's, until it closes or falls silent."""
        self.raw.forget()
        answer = b""
        with connect(self.mallory) as sock:
            sock.sendall(data)
            sock.settimeout(1.0)
            try:
                while part := sock.recv(65536):
                    answer += part
                    if self.is_whole(answer):
                        sock.settimeout(0.1)  # is there another one?
            except (TimeoutError, ConnectionResetError):
                pass
        return answer

    @staticmethod
    def is_whole(answer: bytes) -> bool:
        return b"\r\n\r\n" in answer

    def heard(self) -> list[Heard]:
        """What was forwarded; checks of health carry no identity and ask for `/`."""
        return [h for h in self.raw.heard() if h.target != "/" or h.header(WHO[self.kind])]

    def assert_told_the_truth(self, heard: Heard) -> None:
        """One identity, the attacker's own, however the backend reads names; and nothing of the victim's."""
        folded = [name.replace("_", "-").replace(".", "-") for name, _ in heard.headers]
        for name in (WHO[self.kind], SIGNED[self.kind], PROJECT[self.kind], "host"):
            assert folded.count(name) == 1, heard.head
        assert heard.header(WHO[self.kind]) == [str(MALLORY)]
        assert heard.header(PROJECT[self.kind]) == ["hers"]
        assert not {name for name in folded if name.startswith(("x-metadata", "x-real", "forwarded"))}, heard.head
        assert heard.header("x-forwarded-for") in ([], ["10.0.0.77"])
        assert str(VICTIM).encode() not in heard.head

    def assert_victim_is_itself(self) -> None:
        with Talk(self.victim) as talk:
            for _ in range(3):
                assert talk.ask("/who").body == str(VICTIM)


@pytest.fixture(scope="module", params=["nova", "http"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    kind = str(request.param)
    secret = Path(tmp_path_factory.mktemp("secret"), "secret")
    secret.write_text("known to two")
    with Lab() as lab:
        raw = Raw(lab.host)

        def who(connection: Connection, heard: Heard) -> None:
            connection.send(message((heard.header(WHO[kind]) or ["nobody"])[0].encode()))

        raw.otherwise = who
        with Hypervisor(lab, forward_to(kind, raw, secret_file=secret), proxy=BUSY) as site, raw:
            site.start()
            yield Scene(
                kind,
                raw,
                enrol(site, "mallory", MALLORY, "hers", ("10.0.0.77/24",)),
                enrol(site, "victim", VICTIM, "his"),
            )


def get(*headers: bytes, target: bytes = b"/x", version: bytes = b"1.1") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + HOST + lines + b"\r\n"


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /x HTTP/1.1\r\n" + HOST + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: %d" % len(SMUGGLED)

# name → (bytes, status of the only answer). What could be read in two ways is refused, and nothing after it counts.
REFUSED = {
    "length, then chunks": (post(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED), 400),
    "chunks, then length": (post(CHUNKED, LENGTH, body=b"0\r\n\r\n" + SMUGGLED), 400),
    "two lengths": (post(b"Content-Length: 0", LENGTH, body=SMUGGLED), 400),
    "the same length twice": (post(LENGTH, LENGTH, body=SMUGGLED), 400),
    "a list of lengths": (post(b"Content-Length: 0, %d" % len(SMUGGLED), body=SMUGGLED), 400),
    "a signed length": (post(b"Content-Length: +5", body=b"12345" + SMUGGLED), 400),
    "a hexadecimal length": (post(b"Content-Length: 0x5", body=b"12345" + SMUGGLED), 400),
    "a length with an underscore in it": (post(b"Content-Length: 1_0", body=b"1234567890" + SMUGGLED), 400),
    "a space before the colon": (post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + SMUGGLED), 400),
    "another coding": (post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + SMUGGLED), 501),
    "two codings": (post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + SMUGGLED), 501),
    "codings twice": (post(CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + SMUGGLED), 400),
    "a vertical tab before the coding": (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + SMUGGLED), 400),
    "a folded coding": (post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n" + SMUGGLED), 400),
    "a folded header": (get(b"X-A: b\r\n X-Instance-ID: " + str(VICTIM).encode()), 400),
    "a first header that is folded": (b"GET /x HTTP/1.1\r\n X-Instance-ID: v\r\n" + HOST + b"\r\n", 400),
    "chunks in HTTP/1.0": (b"POST /x HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "a chunk extension": (post(CHUNKED, body=b"1;x=y\r\na\r\n0\r\n\r\n" + SMUGGLED), 400),
    "a chunk extension with a bare line feed": (post(CHUNKED, body=b"1;x\na\r\n0\r\n\r\n" + SMUGGLED), 400),
    "a trailer": (post(CHUNKED, body=b"0\r\nX-Instance-ID: " + str(VICTIM).encode() + b"\r\n\r\n" + SMUGGLED), 400),
    "a chunk size that overflows": (post(CHUNKED, body=b"10000000000000000\r\n" + SMUGGLED), 400),
    "a negative chunk size": (post(CHUNKED, body=b"-1\r\n" + SMUGGLED), 400),
    "a chunk with more than its size": (post(CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n" + SMUGGLED), 400),
    "bare line feeds": (b"GET /x HTTP/1.1\nHost: a\nX-Instance-ID: v\n\n", 400),
    "a bare carriage return": (get(b"X-A: b\rX-Instance-ID: v"), 400),
    "a NUL in a header": (get(b"X-A: b\0X-Instance-ID: v"), 400),
    "a header name with a space": (get(b"X Instance-ID: v"), 400),
    "absolute form": (get(target=b"http://other/x"), 400),
    "authority form": (get(target=b"other:80"), 400),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "CONNECT": (b"CONNECT other:80 HTTP/1.1\r\n" + HOST + b"\r\n" + SMUGGLED, 405),
    "TRACE": (b"TRACE /x HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "a method in lower case": (b"get /x HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "HTTP/0.9": (b"GET /x\r\n" + SMUGGLED, 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED, 505),
    "a fragment": (get(target=b"/x#/smuggled"), 400),
    "two hosts": (get(b"Host: other"), 400),
    "no host": (b"GET /x HTTP/1.1\r\n\r\n" + SMUGGLED, 400),
    "a host with a user": (b"GET /x HTTP/1.1\r\nHost: a@other\r\n\r\n", 400),
    "a host with a path": (b"GET /x HTTP/1.1\r\nHost: other/smuggled\r\n\r\n", 400),
    "a target that is not ASCII": (get(target=b"/\xff"), 400),
    "an unknown expectation": (post(b"Expect: 200-maybe", LENGTH, body=SMUGGLED), 417),
}

# Paths that two servers may read differently, refused whoever would answer them.
PATHS = (
    b"/../x", b"/..//x", b"/a/../x", b"/a/./x", b"/%2e%2e/x", b"/a/.%2E/x", b"/a%2fx", b"/a/..%2fx", b"/..;/x",
    b"/a/..;a=b/x", b"/a\\..\\x", b"/a%5c..%5cx", b"/a%00x", b"/a%0d%0aX-Instance-ID:%20v", b"/%252e%252e/x", b"/a%zz",
)  # fmt: skip

SAYS = str(VICTIM).encode()
# What is forwarded, once, with nothing of this in it.
STRIPPED = {
    "identity": (b"X-Instance-ID: " + SAYS, b"X-Metashim-Instance: " + SAYS),
    "identity twice": (b"X-Instance-ID: " + SAYS, b"X-Instance-ID: " + SAYS, b"x-metashim-instance: " + SAYS),
    "identity in another case": (b"x-iNSTANCE-iD: " + SAYS, b"X-METASHIM-INSTANCE: " + SAYS),
    "identity with underscores": (b"X_Instance_ID: " + SAYS, b"X-Instance_ID: x", b"X_Metashim_Instance: " + SAYS),
    "identity with dots": (b"X.Instance.ID: " + SAYS, b"X.Metashim.Instance: " + SAYS),
    "a signature": (b"X-Instance-ID-Signature: 00", b"X-Metashim-Signature: v1 t=1 n=1 s=1"),
    "a tenant": (b"X-Tenant-ID: his", b"X_Tenant_Id: his", b"X-Metashim-Project: his", b"X-Project-ID: his"),
    "Nova's other way": (b"X-Metadata-Provider: " + SAYS, b"X-Metadata-Provider-Signature: 00"),
    "an address": (b"X-Forwarded-For: " + SAYS, b"X-Real-IP: 1", b"Forwarded: for=" + SAYS, b"X_Forwarded_For: 1"),
    "ours named in Connection": (b"Connection: X-Instance-ID, X-Tenant-ID, X-Metashim-Instance, X-Metashim-Signature",),
    "ours named in Connection, with keep-alive": (b"Connection: keep-alive, x-instance-id-signature, host",),
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    "a websocket": (b"Connection: Upgrade", b"Upgrade: websocket"),
    "framing with underscores": (b"Content_Length: 5", b"Transfer_Encoding: chunked"),
    "trailers": (b"TE: trailers, chunked", b"Trailer: X-Instance-ID"),
    "another method": (b"X-HTTP-Method-Override: DELETE", b"X-Method-Override: PUT"),
    "another path": (b"X-Original-URL: /smuggled", b"X-Rewrite-URL: /smuggled"),
    "another host": (b"X-Forwarded-Host: other", b"X-Host: other"),
    "a proxy": (b"Proxy: http://other", b"Proxy-Connection: keep-alive", b"Proxy-Authorization: Basic eDp4"),
    "a session token": (b"X-aws-ec2-metadata-token-ttl-seconds: 60",),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(scene: Scene, name: str) -> None:
    data, status = REFUSED[name]
    answer = scene.attempt(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert answer.count(b"\r\n\r\n") == 1, answer
    assert scene.heard() == []
    assert b"smuggled" not in scene.raw.bytes
    scene.assert_victim_is_itself()


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_two_readings_is_refused(scene: Scene, path: bytes) -> None:
    answer = scene.attempt(get(target=path))
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert scene.heard() == []


def test_several_slashes_reach_nobody(scene: Scene) -> None:
    """They are one, as clouds' own clients send them: `//other/x` would be another host's to some."""
    assert scene.attempt(get(target=b"//other///x?a=//")).startswith(b"HTTP/1.1 200 ")
    (heard,) = scene.heard()
    assert heard.target == "/other/x?a=//"
    scene.assert_told_the_truth(heard)


@pytest.mark.parametrize("name", STRIPPED)
def test_what_a_guest_says_of_itself_is_left_out(scene: Scene, name: str) -> None:
    answer = scene.attempt(get(*STRIPPED[name], b"X-Kept: yes"))
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert answer.endswith(str(MALLORY).encode())
    (heard,) = scene.heard()
    assert (heard.method, heard.target, heard.body) == ("GET", "/x", b"")
    assert heard.header("x-kept") == ["yes"]
    scene.assert_told_the_truth(heard)
    said = {header.partition(b":")[0].decode().lower() for header in STRIPPED[name]}
    ours = {WHO[scene.kind], SIGNED[scene.kind], PROJECT[scene.kind], "x-forwarded-for"}
    assert not (said - ours) & {key for key, _ in heard.headers}, heard.head
    scene.assert_victim_is_itself()


def test_a_body_is_a_body(scene: Scene) -> None:
    """A request within a body is that request's body, by length and by chunks, and in one or many segments."""
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    for data in (post(LENGTH, body=SMUGGLED), post(CHUNKED, body=chunks)):
        scene.attempt(data)
        (heard,) = scene.heard()
        assert (heard.target, heard.body) == ("/x", SMUGGLED)
        scene.assert_told_the_truth(heard)


def test_pipelined_requests_are_each_the_guests_own(scene: Scene) -> None:
    scene.raw.forget()
    spoofed = [get(b"X-Instance-ID: " + SAYS, target=b"/%d" % number) for number in range(12)]
    with connect(scene.mallory) as sock:
        sock.sendall(b"".join(spoofed))
        answer = _read(sock, 12)
    assert answer.count(b"HTTP/1.1 200 ") == answer.count(str(MALLORY).encode()) == 12
    assert [heard.target for heard in scene.heard()] == [f"/{number}" for number in range(12)]
    for heard in scene.heard():
        scene.assert_told_the_truth(heard)


def _read(sock: socket.socket, answers: int) -> bytes:
    sock.settimeout(3.0)
    data = b""
    while data.count(str(MALLORY).encode()) < answers:
        part = sock.recv(65536)
        if not part:
            break
        data += part
    return data


SPLITTING = {
    "a line end in a value": b"HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c\r\nContent-Length: 1\r\n\r\na",
    "a bare line feed": b"HTTP/1.1 200 OK\r\nX-A: b\nX-C: d\r\nContent-Length: 1\r\n\r\na",
    "a NUL": b"HTTP/1.1 200 OK\r\nX-A: b\0\r\nContent-Length: 1\r\n\r\na",
    "a folded header": b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 1\r\n\r\na",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
}


@pytest.mark.parametrize("name", SPLITTING)
def test_an_answer_of_two_readings_is_no_answer(scene: Scene, name: str) -> None:
    scene.raw.forget()
    scene.raw.play("/split", lambda connection, heard: connection.send(SPLITTING[name]))
    with connect(scene.mallory) as sock:
        sock.sendall(get(target=b"/split"))
        sock.settimeout(3.0)
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 502 "), answer
    assert answer.count(b"HTTP/1.1") == 1
    scene.assert_victim_is_itself()


def test_a_second_answer_is_nobodys(scene: Scene) -> None:
    """A backend that is made to answer twice must not answer the next guest with it."""
    scene.raw.forget()
    twice = message(b"first") + message(str(MALLORY).encode())
    scene.raw.play("/twice", lambda connection, heard: connection.send(twice))
    for _ in range(5):
        with connect(scene.mallory) as sock:
            sock.sendall(get(target=b"/twice"))
            sock.settimeout(3.0)
            assert b"first" in sock.recv(65536)
        scene.assert_victim_is_itself()
