"""How long a guest waits and for what, and the events of a stream."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.exchange import Response
from shim.core.kv import etag
from shim.metadata.view import Rendered
from shim.metadata.waits import SECONDS_MAX, Wait, event, wait_of
from tests.unit.faces_site import request

GCE = "/computeMetadata/v1/instance/?"
STREAM = ((b"accept", b"text/event-stream"),)


def wait(path: str, headers: Any = (), method: bytes = b"GET") -> Any:
    return wait_of(request(path, method, headers))


class TestOwn:
    @pytest.mark.parametrize("face", ["/latest/user-data", "/openstack/latest/user_data", "/metashim/v1/kv/", GCE[:-1]])
    def test_on_any_face(self, face: str) -> None:
        assert wait(f"{face}?wait=2.5&etag=%22abc%22") == Wait("abc", 2.5)
        assert wait(f"{face}?wait=0&etag=abc") == Wait("abc", 0.0)
        assert wait(f"{face}?recursive=true&wait=10") == Wait(None, 10.0)
        assert wait(f'{face}?wait=301&etag=W/"abc"') == Wait("abc", SECONDS_MAX)
        assert wait(f"{face}?etag=abc") is None
        assert wait(face) is None

    @pytest.mark.parametrize("seconds", ["", "-1", "a", "1e3", "inf", "nan", "1.", ".5", "+1", "1" * 10, "٣", "1_0"])
    def test_no_number(self, seconds: str) -> None:
        assert wait(f"/x?wait={seconds}").status == 400
        refused = wait(f"{GCE}wait_for_change=true&timeout_sec={seconds}")
        assert (refused.status, (b"metadata-flavor", b"Google") in refused.headers) == (400, True)

    @pytest.mark.parametrize("query", ["wait=1&wait=2", "wait=1&wait=1", "wait=1&etag=a&etag=b"])
    def test_twice(self, query: str) -> None:
        assert wait(f"/x?{query}").status == 400

    @pytest.mark.parametrize("method", [b"HEAD", b"PUT", b"POST", b"DELETE"])
    def test_only_get_waits(self, method: bytes) -> None:
        assert wait("/x?wait=1", STREAM, method) is None

    def test_is_over(self) -> None:
        assert Wait("a", 1).is_over("b")
        assert not Wait("a", 1).is_over("a")
        assert Wait("a", 1).is_over("")
        assert all(Wait(tag, 1).is_over("b") for tag in (None, "NONE", "0"))


class TestGoogles:
    def test_as_its_agent_asks(self) -> None:
        query = "timeout_sec=60&last_etag=NONE&alt=json&recursive=true&wait_for_change=true"
        found = wait(GCE + query)
        assert found == Wait("NONE", 60.0, gce=True)
        assert found.is_over(etag(b""))

    def test_without_a_timeout_it_is_long(self) -> None:
        assert wait(GCE + "wait_for_change=true&last_etag=0") == Wait("0", SECONDS_MAX, gce=True)
        assert wait(GCE + "wait_for_change=TRUE&last_etag=0&timeout_sec=9999").seconds == SECONDS_MAX

    def test_without_a_tag_it_waits_from_now(self) -> None:
        found = wait(GCE + "wait_for_change=true")
        assert found.from_now
        assert not found.is_over("anything")
        assert found.is_over("")

    @pytest.mark.parametrize("query", ["wait_for_change=false", "wait_for_change=", "last_etag=a&timeout_sec=x"])
    def test_none(self, query: str) -> None:
        assert wait(GCE + query) is None

    def test_nowhere_else(self) -> None:
        assert wait("/latest/meta-data/?wait_for_change=true&last_etag=a") is None
        assert wait("/computeMetadatax/?wait_for_change=true") is None


class TestStreams:
    def test_by_accept(self) -> None:
        assert wait("/x", STREAM) == Wait(None, SECONDS_MAX, sse=True)
        assert wait("/x?wait=5", STREAM) == Wait(None, 5.0, sse=True)
        assert wait("/x", (*STREAM, (b"last-event-id", b"abc"))).last_event_id == "abc"
        assert wait("/x?wait=5", ((b"last-event-id", b"abc"),)).last_event_id is None

    @pytest.mark.parametrize(
        ("accept", "is_one"),
        [
            (b"text/event-stream", True), (b"application/json, Text/Event-Stream;q=0.5", True),
            (b"text/event-stream;charset=utf-8", True), (b"text/event-stream; q=0", False),
            (b"text/event-stream;q=0.00", False), (b"*/*", False), (b"text/*", False),
            (b"text/event-streams", False), (b"x-text/event-stream", False), (b",;,", False),
        ],
    )  # fmt: skip
    def test_what_accepts(self, accept: bytes, is_one: bool) -> None:
        assert (wait("/x", ((b"accept", accept),)) is not None) is is_one

    def test_on_googles_face_too(self) -> None:
        assert wait(GCE, STREAM) == Wait(None, SECONDS_MAX, sse=True)


def parsed(stream: bytes) -> list[tuple[str, str, str]]:
    """(id, event, data) as a browser reads a stream: the standard's section 9.2.6."""
    found, last, kind, data = [], "", "", ""
    for line in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append((last, kind or "message", data[:-1]))
            kind, data = "", ""
        elif name == "id" and "\0" not in value:
            last = value
        elif name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
    return found


class TestEvents:
    def made(self, body: bytes, status: int = 200, claims: tuple[str, ...] = ()) -> bytes:
        return event(Rendered(Response(status, (), body), etag(body) if status == 200 else "", claims))

    def test_the_bytes(self) -> None:
        tag = etag(b"a\nb\n").encode()
        assert self.made(b"a\nb\n") == b"id: " + tag + b"\ndata: a\ndata: b\ndata: \n\n"

    @given(st.binary() | st.text().map(str.encode) | st.text(alphabet="a\n\r: ￾\0").map(str.encode))
    def test_any_body_arrives_whole(self, body: bytes) -> None:
        ((tag, kind, data),) = parsed(self.made(body) + self.made(b"next")[:0])
        assert tag == etag(body)
        assert (b64decode(data) if kind == "base64" else data.encode()) == body

    def test_what_is_read_once_is_not_streamed(self) -> None:
        assert b"secret" not in self.made(b"secret", claims=("kv host/a 1",))
        assert parsed(self.made(b"secret", claims=("x",))) == [(etag(b"secret"), "once", "")]

    def test_what_is_gone(self) -> None:
        assert parsed(self.made(b"not found\n", 404)) == [("", "status", "404")]
