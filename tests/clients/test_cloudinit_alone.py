"""cloud-init against the faces alone: a plain server at the service's address, in the guest's own namespace, answers
what they make. What is between them on a hypervisor is another test's matter (test_sources_cloudinit)."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.exchange import Request
from shim.core.policy import Composition
from shim.core.source import HOST, Scope, Source
from shim.metadata import document, faces
from shim.metadata.view import View
from tests.clients.boot import Boot, boot, needs_cloud_init
from tests.clients.contributors import (
    DOCUMENT,
    HOST_CONFIG,
    INSTANCE_SCRIPT,
    LARGE,
    PROJECT_CONFIG,
    TEMPLATE,
    check_large,
    check_merged,
    check_vendor,
)
from tests.lab import Namespace
from tests.netns.hypervisor import uuid_of

pytestmark = needs_cloud_init

A = uuid_of(1)
SERVICE = "169.254.169.254"
URLS = {"OpenStack": (f"http://{SERVICE}",), "Ec2": (f"http://{SERVICE}",)}
_counter = itertools.count(1)


def sources(instance: UUID) -> list[Source]:
    return [
        Source(HOST, "base", HOST_CONFIG, owner="platform"),
        Source(Scope("project", "blue"), "base", PROJECT_CONFIG, owner="blue"),
        Source(Scope("tag", "role=web"), "motd", TEMPLATE, template=True, order=600),
        Source(Scope("instance", str(instance)), "hello", INSTANCE_SCRIPT, order=700),
    ]


@pytest.fixture(scope="module")
def guest() -> Iterator[Namespace]:
    namespace = Namespace(f"cloud{next(_counter)}x{time.monotonic_ns() % 100000}")
    try:
        namespace.ip.addr("add", index=1, address=SERVICE, prefixlen=32)
        yield namespace
    finally:
        namespace.close()


@contextmanager
def served(guest: Namespace, composition: Composition, found: list[Source], limit: int = 49_149) -> Iterator[list[str]]:
    """The faces at the service's address; yields what is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            path, _, query = self.path.partition("?")
            headers = tuple((name.lower().encode(), value.encode()) for name, value in self.headers.items())
            own = document.decode(DOCUMENT)
            view = View(
                A, own, now=time.time(), load_sources=lambda: found, composition=composition, limit=limit
            )
            response = faces.respond(view, Request(b"GET", path.encode(), query.encode(), headers)).response
            self._send(response.status, response.headers, response.body)

        def do_PUT(self) -> None:
            asked.append(f"PUT {self.path}")
            ttl = self.headers["X-aws-ec2-metadata-token-ttl-seconds"].encode()
            self._send(200, ((b"X-aws-ec2-metadata-token-ttl-seconds", ttl),), b"token")

        def _send(self, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
            self.send_response(status)
            for name, value in (*headers, (b"Content-Length", str(len(body)).encode())):
                self.send_header(name.decode(), value.decode())
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = guest.call(ThreadingHTTPServer, (SERVICE, 80), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("datasource", ["OpenStack", "Ec2"])
class TestMerged:
    def test_all_contributors_in_order(self, guest, datasource, tmp_path):
        with served(guest, Composition.MERGED, sources(A)) as asked:
            found = boot(guest, datasource, tmp_path / "boot", URLS[datasource])
        check_merged(found, A)
        assert ("PUT /latest/api/token" in asked) == (datasource == "Ec2")

    def test_what_is_large_comes_as_gzip(self, guest, datasource, tmp_path):
        large = Source(HOST, "large", LARGE, order=900)
        with served(guest, Composition.MERGED, [*sources(A), large], limit=4096):
            found = boot(guest, datasource, tmp_path / "boot", URLS[datasource])
        check_large(found, A, 4096)


def test_vendor_data_is_merged_under(guest, tmp_path):
    with served(guest, Composition.VENDOR, sources(A)):
        found: Boot = boot(guest, "OpenStack", tmp_path / "boot", URLS["OpenStack"])
    check_vendor(found, A)


def test_ec2_has_no_vendor_data(guest, tmp_path: Path):
    with served(guest, Composition.VENDOR, sources(A)):
        found = boot(guest, "Ec2", tmp_path / "boot", URLS["Ec2"])
    assert found.raw == document.decode(DOCUMENT).user_bytes
    assert found.vendor == {}
