"""The backends of the tests themselves, asked directly: they do what the tests that use them believe."""

from __future__ import annotations

import http.client
import time
import zlib
from typing import Any

import pytest

from tests.backends.haproxy import Haproxy
from tests.backends.nginx import Nginx
from tests.backends.process import Foreground, dial
from tests.backends.raw import Raw, freezes, hangs_up, message, resets, says
from tests.backends.visit import Reply, Visit, chunked, request

IDENTITY = [("X-Metashim-Instance", "one"), ("X-Metashim-Project", "p")]


@pytest.fixture(params=["IPv4", "IPv6", "Unix"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"unix": True} if request.param == "Unix" else {"host": "::1" if request.param == "IPv6" else "127.0.0.1"}


def ask(server: Foreground, path: str, headers: list[tuple[str, str]] | None = None) -> Reply:
    with Visit(server.connect()) as visit:
        return visit.ask(path, headers=headers or [])


class TestNginx:
    def test_answers(self, where):
        with Nginx(name="n1", **where) as nginx:
            (nginx.www / "text").write_bytes(b"abc" * 1000)
            assert ask(nginx, "/name").text == "n1"
            assert ask(nginx, "/who?x=1", IDENTITY).text == "one p GET /who?x=1"
            assert [ask(nginx, path).status for path in ("/nothing", "/status/401", "/status/429")] == [204, 401, 429]
            zipped = ask(nginx, "/zipped", [("Accept-Encoding", "gzip")])
            assert zipped.header("Transfer-Encoding") == "chunked"
            assert zlib.decompress(zipped.body, 31) == b"abc" * 1000

    def test_stops_and_starts_again(self, where):
        with Nginx(**where) as nginx:
            nginx.stop()
            with pytest.raises(OSError):
                nginx.connect()
            nginx.start()
            assert ask(nginx, "/").status == 200

    def test_freezes(self):
        with Nginx() as nginx:
            with nginx.frozen(), Visit(nginx.connect(0.3)) as visit, pytest.raises(TimeoutError):
                visit.ask("/")
            assert ask(nginx, "/").status == 200


class TestHaproxy:
    def test_answers(self, where):
        with Haproxy(name="h1", **where, file=b"\xff\x00" * 5000) as haproxy:
            assert ask(haproxy, "/name").text == "h1"
            assert ask(haproxy, "/who?x=1", IDENTITY).text == "one p GET /who?x=1"
            assert ask(haproxy, "/file").body == b"\xff\x00" * 5000
            assert ask(haproxy, "/status/429").status == 429


class TestRaw:
    def test_hears_every_byte(self, where):
        with Raw(**where) as raw, Visit(raw.connect()) as visit:
            raw.play("/x", says(message(b"yes", 201)))
            plain = request("/x?q", "POST", [("X-A", "1"), ("X-A", "2")], b"body")
            pieces = chunked("/x", "PUT", [b"bo", b"dy"])
            assert visit.send(plain).status == 201
            assert visit.send(pieces).body == b"yes"
            assert raw.bytes == plain + pieces
            assert [(heard.method, heard.target, heard.body) for heard in raw.heard("/x")] == [
                ("POST", "/x?q", b"body"),
                ("PUT", "/x", b"body"),
            ]
            assert raw.heard()[0].header("x-a") == ["1", "2"]

    @pytest.mark.parametrize(
        ("script", "error"),
        [
            (resets(message(b"x" * 100)[:-50]), ConnectionResetError),
            (hangs_up(message(b"x" * 100)[:-50]), http.client.IncompleteRead),
            (hangs_up(), http.client.RemoteDisconnected),
            (resets(), ConnectionResetError),
            (freezes(b"HTTP/1.1 200"), TimeoutError),
        ],
    )
    def test_breaks_its_answers(self, script, error):
        with Raw() as raw, Visit(raw.connect(0.5)) as visit:
            raw.play("/x", script)
            with pytest.raises(error):
                visit.ask("/x")

    def test_is_slow(self):
        whole = message(b"x" * 10)
        with Raw() as raw, Visit(raw.connect()) as visit:
            raw.play("/x", says(whole[:20], whole[20:], pause=0.2))
            began = time.monotonic()
            assert visit.ask("/x").body == b"x" * 10
            assert time.monotonic() - began >= 0.2
            assert visit.ask("/other").body == b"raw"


class TestInANamespace:
    @pytest.mark.parametrize("kind", [Nginx, Haproxy, Raw])
    def test_is_reached_from_within_alone(self, lab, kind):
        with kind(lab.host) as server:
            assert ask(server, "/").status == 200
            with pytest.raises(OSError), dial(None, None, server.host, server.port, 1.0):
                pass
        assert lab.host.pids() == []
