"""A guest, its tap, a whole metashim, and generic HTTP backends: nginx and haproxy, well, slow, frozen and gone."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.backends.haproxy import Haproxy
from tests.backends.nginx import Nginx
from tests.backends.process import Foreground
from tests.backends.visit import Visit, request
from tests.backends.wiring import AGAIN, BUSY, WITHIN, ask, await_status, enrol, forward_to, timed, visiting
from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import V4, V6

A, B = uuid_of(1), uuid_of(2)
PROJECTS = {A: "p-one", B: "p-two"}
SMALL = bytes(range(256)) * 40  # 10 KiB: haproxy keeps it in one buffer
TEXT = b"cloud-init " * 5000
HUGE = 48 << 20
NO_MORE = (OSError, HTTPException)


class Place(NamedTuple):
    site: Hypervisor
    server: Foreground
    a: VethGuest
    b: VethGuest


@contextlib.contextmanager
def behind(lab: Lab, server: Foreground, forward: str = "") -> Iterator[Place]:
    """Two guests of a metashim in front of a server."""
    settings = forward_to("http", server, forward=forward)
    with Hypervisor(lab, settings, proxy=BUSY + "body_bytes = 4194304\n") as site, server:
        site.start()
        a, b = (enrol(site, name, instance, PROJECTS[instance]) for name, instance in (("a", A), ("b", B)))
        yield Place(site, server, a, b)


def server_of(kind: str, lab: Lab, **options: object) -> Foreground:
    if kind == "haproxy":
        return Haproxy(lab.host, file=SMALL, **options)  # type: ignore[arg-type]
    nginx = Nginx(lab.host, **options)  # type: ignore[arg-type]
    (nginx.www / "file").write_bytes(SMALL)
    (nginx.www / "text").write_bytes(TEXT)
    with (nginx.www / "huge").open("wb") as huge:
        huge.truncate(HUGE)
    return nginx


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Tests may stop the server, and leave it running."""
    with Lab() as lab, behind(lab, server_of(request.param, lab)) as place:
        yield place


@pytest.fixture(scope="module")
def nginx() -> Iterator[Place]:
    with Lab() as lab, behind(lab, server_of("nginx", lab)) as place:
        yield place


class TestWell:
    @pytest.mark.parametrize("address", [V4, V6])
    def test_it_is_told_who_asks(self, place, address):
        theirs = [("X-Metashim-Instance", str(B)), ("X_Metashim_Instance", str(B)), ("X-Metashim-Project", "mine")]
        for guest, instance in ((place.a, A), (place.b, B)):
            for headers in ([], theirs):
                reply = ask(guest, "/who?q=%41", headers=headers, address=address)
                assert reply.text == f"{instance} {PROJECTS[instance]} GET /who?q=%41"

    def test_bytes_and_statuses(self, place):
        with visiting(place.a) as visit:
            assert visit.ask("/file").body == SMALL
            head = visit.ask("/file", "HEAD")
            assert (head.body, head.header("Content-Length")) == (b"", str(len(SMALL)))
            assert [visit.ask(f"/status/{status}").status for status in (401, 429)] == [401, 429]
            assert visit.ask("/file").body == SMALL

    def test_on_a_unix_socket(self, lab):
        for kind in ("nginx", "haproxy"):
            server = server_of(kind, lab, unix=True)
            with behind(lab, server) as place:
                assert ask(place.a, "/file").body == SMALL
                server.stop(signal.SIGKILL)
                assert ask(place.a, "/file").status == 503
                place.a.close()
                place.b.close()

    def test_what_only_nginx_does(self, nginx):
        with visiting(nginx.a) as visit:
            assert (visit.ask("/empty").status, visit.ask("/empty").body) == (200, b"")
            assert visit.ask("/nothing").status == 204
            zipped = visit.ask("/zipped", headers=[("Accept-Encoding", "gzip")])
            assert zipped.header("Content-Encoding") == "gzip"
            assert gzip.decompress(zipped.body) == TEXT
            assert visit.ask("/file", headers=[("Range", "bytes=5-8")]).body == SMALL[5:9]
            assert visit.ask("/file", "PUT", body=b"x").status == 405
            assert visit.ask("/status/429").header("Retry-After") == "7"
            etag = visit.ask("/file").header("ETag")
            assert visit.ask("/file", headers=[("If-None-Match", etag)]).status == 304
            assert visit.ask("/file").body == SMALL

    def test_a_body_that_it_does_not_want(self, nginx):
        """It answers before the body has come."""
        assert ask(nginx.a, "/file", "POST", body=b"x" * 2_000_000).status == 413
        assert ask(nginx.a, "/file").body == SMALL


def resident(pid: int) -> int:
    """The bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class TestSlow:
    def test_answers_come_at_their_pace(self, nginx):
        """20 KiB/s from the backend; another guest waits for none of it."""
        reply, seconds = timed(lambda: ask(nginx.a, "/slow"))
        assert reply.body == SMALL
        done = threading.Event()

        def rest() -> None:
            assert ask(nginx.a, "/slow").body == SMALL
            done.set()

        thread = threading.Thread(target=rest)
        thread.start()
        waits = [timed(lambda: ask(nginx.b, "/name"))[1] for _ in range(20)]
        thread.join(30)
        assert done.is_set()
        assert max(waits) < max(0.5, seconds)

    def test_a_guest_that_does_not_read_costs_no_memory(self, nginx):
        with visiting(nginx.a) as visit:
            ask(nginx.a, "/huge").body.count(0)
            before = resident(nginx.site.worker)
            visit.sock.sendall(request("/huge"))
            time.sleep(1.0)
            assert resident(nginx.site.worker) - before < 4 << 20
            got = 0
            while got < HUGE:
                data = visit.sock.recv(1 << 20)
                assert data
                got += len(data)
            assert resident(nginx.site.worker) - before < 4 << 20

    def test_a_guest_that_goes_leaves_nothing(self, nginx):
        for _ in range(20):
            with visiting(nginx.a) as visit:
                visit.sock.sendall(request("/huge"))
                visit.sock.recv(1000)
        assert ask(nginx.b, "/file").body == SMALL
        fds = Path(f"/proc/{nginx.site.worker}/fd")
        wait_until(lambda: len(list(fds.iterdir())) < 40, "the backend's connections to be closed")


class TestGone:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_stopped(self, place, number):
        with visiting(place.a) as visit:
            assert visit.ask("/name").status == 200
            place.server.stop(number)
            try:
                for method, body in (("GET", None), ("POST", b"x" * 60_000), ("GET", None)):
                    with visiting(place.a) as other:  # one whose body nobody waits for is its connection's last
                        reply, seconds = timed(lambda m=method, b=body, o=other: o.ask("/name", m, body=b))
                    assert (reply.status, seconds < WITHIN) == (503, True)
                    assert int(reply.header("Retry-After")) > 0
            finally:
                place.server.start()
            await_status(place.b, "/name", 200)
            assert visit.ask("/name").status == 200

    def test_frozen(self, place):
        with visiting(place.a) as visit:
            with place.server.frozen():
                reply, seconds = timed(lambda: visit.ask("/name"))
                assert reply.status in (503, 504)
                assert seconds < 6
                reply, seconds = timed(lambda: visit.ask("/name"))
                assert (reply.status, seconds < WITHIN) == (503, True)
            await_status(place.b, "/name", 200)
            assert visit.ask("/name").status == 200


class TestFailOver:
    WORKERS = 4

    @pytest.fixture
    def two(self, lab: Lab) -> Iterator[tuple[Hypervisor, list[Nginx], VethGuest]]:
        servers = [Nginx(lab.host, name) for name in ("n1", "n2")]
        with Hypervisor(lab, forward_to("http", *servers), proxy=BUSY) as site, servers[0], servers[1]:
            site.start()
            yield site, servers, enrol(site, "a", A, PROJECTS[A])

    def test_both_are_asked(self, two):
        _, _, guest = two
        with visiting(guest) as visit:
            assert set(Counter(visit.ask("/name").text for _ in range(20)).values()) == {10}

    def test_none_fails_when_one_goes_and_comes(self, two):
        """Under load, but for the moment in which it is killed: a request that it had taken by then is lost."""
        _, servers, guest = two
        loaded = Load(guest, self.WORKERS)
        with loaded:
            for server in servers:
                time.sleep(0.3)
                with loaded.paused():
                    server.stop(signal.SIGKILL)
                time.sleep(0.7)
                loaded.names.clear()
                time.sleep(0.3)
                assert set(loaded.names) == {other.name for other in servers if other is not server}
                server.start()
                loaded.await_name(server.name)
        assert loaded.failures == []
        assert loaded.count > 500

    def test_killed_in_the_middle(self, two):
        """What was under way there ends with a 502, at most one a client; nothing else notices."""
        _, servers, guest = two
        loaded = Load(guest, self.WORKERS)
        with loaded:
            for server in servers:
                time.sleep(0.3)
                server.stop(signal.SIGKILL)
                time.sleep(0.5)
                server.start()
                loaded.await_name(server.name)
        assert set(loaded.failures) <= {"502"}
        assert len(loaded.failures) <= self.WORKERS * len(servers)

    def test_frozen(self, two):
        """Until that is found, some wait; then all go to the other."""
        _, servers, guest = two
        with servers[0].frozen():
            end = time.monotonic() + 6
            good = 0
            while good < 20:
                assert time.monotonic() < end
                with visiting(guest) as visit:
                    good = good + 1 if visit.ask("/name").text == "n2" else 0
        end = time.monotonic() + AGAIN
        while ask(guest, "/name").text != "n1":
            assert time.monotonic() < end

    def test_all_gone(self, two):
        _, servers, guest = two
        for server in servers:
            server.stop(signal.SIGKILL)
        for _ in range(5):
            reply, seconds = timed(lambda: ask(guest, "/name"))
            assert (reply.status, seconds < WITHIN) == (503, True)
        servers[1].start()
        await_status(guest, "/name", 200)


class Load:
    """Threads that ask for `/name` without end, each on a connection of its own, which a failed request ends."""

    def __init__(self, guest: VethGuest, count: int) -> None:
        self.names: Counter[str] = Counter()
        self.failures: list[str] = []
        self.count = 0
        self._guest = guest
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._gates = [threading.Lock() for _ in range(count)]
        self._threads = [threading.Thread(target=self._run, args=(gate,)) for gate in self._gates]

    def _run(self, gate: threading.Lock) -> None:
        while not self._stopped.is_set():
            try:
                with visiting(self._guest) as visit:
                    self._ask(visit, gate)
            except NO_MORE as error:
                self.failures.append(repr(error))

    def _ask(self, visit: Visit, gate: threading.Lock) -> None:
        while not self._stopped.is_set():
            with gate:
                reply = visit.ask("/name")
            with self._lock:
                self.count += 1
                if reply.status == 200:
                    self.names[reply.text] += 1
                else:
                    self.failures.append(str(reply.status))
            time.sleep(0.001)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No request is under way for a while."""
        with contextlib.ExitStack() as held:
            for gate in self._gates:
                held.enter_context(gate)
            yield

    def await_name(self, name: str) -> None:
        """Wait until a server is asked again."""
        self.names.clear()
        wait_until(lambda: self.names[name] > 0, f"{name} to be asked", AGAIN)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(15)
        assert not any(thread.is_alive() for thread in self._threads)
