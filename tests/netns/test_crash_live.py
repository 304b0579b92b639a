"""Agent and workers killed while guests write and hundreds wait: what was acknowledged is there, and who waits sees the
end."""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import api, enrol
from tests.netns.say import get, parse, request, say
from tests.netns.talk import ID, connect

A, B = uuid_of(1), uuid_of(2)
KV = "/metashim/v1/kv"
WATCHERS = 100  # of each guest


@pytest.fixture(scope="module")
def site() -> Iterator[Hypervisor]:
    settings = f"{PLENTY}flows_per_port = 1024\n[kv]\nwrites_per_second = 10000\n"
    with Lab() as lab, Hypervisor(lab, settings, proxy="workers = 2\nconnections_per_instance = 512\n") as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def guests(site: Hypervisor) -> tuple[VethGuest, VethGuest]:
    return enrol(site, "a", A), enrol(site, "b", B)


class Watchers:
    """Guests' connections that wait for a key, each again with what it got last, in a thread of their own. `broken`
    counts those that ended without an answer."""

    def __init__(self, guests: tuple[VethGuest, ...], key: str) -> None:
        self.seen: dict[int, bytes] = {}
        self.broken = 0
        self._guests, self._key = guests, key
        self._select = selectors.DefaultSelector()
        self._late: list[tuple[int, str]] = [(number, "none") for number in range(WATCHERS * len(guests))]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Watchers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for one in list(self._select.get_map().values()):
            one.fileobj.close()  # type: ignore[union-attr]

    def have(self, body: bytes) -> bool:
        return len(self.seen) == WATCHERS * len(self._guests) and set(self.seen.values()) == {body}

    def _run(self) -> None:
        while not self._stop.is_set():
            late, self._late = self._late, []
            for number, etag in late:
                self._wait(number, etag)
            for key, _ in self._select.select(0.02):
                number, etag, raw = key.data
                self._hear(key.fileobj, number, etag, raw)  # type: ignore[arg-type]

    def _wait(self, number: int, etag: str) -> None:
        try:
            sock = connect(self._guests[number % len(self._guests)], timeout=5)
        except OSError:
            self._late.append((number, etag))
            return
        sock.sendall(request("GET", f"{KV}/{self._key}?wait=120&etag={etag}"))
        self._select.register(sock, selectors.EVENT_READ, (number, etag, bytearray()))

    def _hear(self, sock: socket.socket, number: int, etag: str, raw: bytearray) -> None:
        with contextlib.suppress(OSError):
            if more := sock.recv(65536):
                raw += more
                return
        self._select.unregister(sock)
        sock.close()
        try:
            reply = parse(bytes(raw))
        except (ValueError, IndexError):
            self.broken += 1
        else:
            if reply.status == 200:
                self.seen[number], etag = reply.body, reply.etag.strip('"')
        self._late.append((number, etag))


class Writer:
    """A guest that counts in a key of its own. `acknowledged`: the last number that it was told is kept; `refused`:
    what it was told instead, by status."""

    def __init__(self, guest: VethGuest, key: str, stop: threading.Event) -> None:
        self.path = f"{KV}/guest/{key}"
        self.acknowledged = self.tried = 0
        self.refused: Counter[int] = Counter()
        self._guest, self._stop = guest, stop
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.tried += 1
            try:
                status = say(self._guest, "PUT", self.path, b"%d" % self.tried).status
            except (OSError, ValueError):
                continue
            if status in (201, 204):
                self.acknowledged = self.tried
            else:
                self.refused[status] += 1
                time.sleep(0.01)


def test_nothing_acknowledged_is_lost(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    chance, stop = random.Random(3), threading.Event()
    client = api(site)
    for one in (A, B):
        client.put_key(one, "host/news", b"begin", {})
    with Watchers(guests, "host/news") as watchers:
        wait_until(lambda: watchers.have(b"begin"), "all to wait", 10)
        writers = [Writer(guests[number % 2], f"w{number}", stop) for number in range(6)]
        try:
            time.sleep(0.3)
            assert watchers.broken == 0
            for number in range(3):
                time.sleep(chance.random() * 0.2)
                site.end(signal.SIGKILL)
                assert get(guests[0], ID).status == 200
                site.start()
                for one in (A, B):
                    client.put_key(one, "host/news", b"%d" % number, {})
            assert watchers.broken == 0, "the agent's death ends no wait"
            for note in sorted(site.run.glob("worker*.pid")):
                time.sleep(chance.random() * 0.2)
                os.kill(int(note.read_text().split()[0]), signal.SIGKILL)
            site.await_workers()
        finally:
            stop.set()
            for writer in writers:
                writer.thread.join()
        for one in (A, B):
            client.put_key(one, "host/news", b"end", {})
        wait_until(lambda: watchers.have(b"end"), "all to see the end", 10)
    assert watchers.broken, "each of them waited at one of the workers"
    for writer, guest in zip(writers, guests * 3, strict=True):
        kept = int(get(guest, writer.path).body)
        assert writer.acknowledged <= kept <= writer.tried, (writer.acknowledged, kept, writer.tried)
        assert writer.acknowledged > 20
        assert set(writer.refused) <= {503}, writer.refused
    assert "Traceback" not in site.log_text()


def test_what_both_write_at_once_is_written_once(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    """Conditions hold through a crash: of those who add the same key one at most is told that it made it, and so it is
    kept; who was told nothing looks, and knows."""
    guest = guests[0]
    made: list[tuple[int, int]] = []

    def add_each(mine: bytes) -> None:
        for number in range(60):
            with contextlib.suppress(OSError, ValueError):
                reply = say(guest, "PUT", f"{KV}/guest/slot/{number}", mine, {"If-None-Match": "*"})
                if reply.status == 201:
                    made.append((number, int(mine)))
                elif reply.status == 503:
                    time.sleep(0.02)

    threads = [threading.Thread(target=add_each, args=(b"%d" % number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    site.end(signal.SIGKILL)
    site.start()
    for thread in threads:
        thread.join()
    assert len({number for number, _ in made}) == len(made), "two made the same"
    for number, mine in made:
        assert get(guest, f"{KV}/guest/slot/{number}").body == b"%d" % mine
