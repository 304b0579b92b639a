"""A backend over https that wants a client's certificate: what only root may read is read before root is given up."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.wiring import BUSY, ask, enrol
from tests.lab import Lab
from tests.netns.hypervisor import Hypervisor, uuid_of

pytestmark = pytest.mark.root

A = uuid_of(1)


class Echo(http.server.BaseHTTPRequestHandler):
    """Says who the client's certificate is of, and whom it was told of."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        subject = dict(pair[0] for pair in self.connection.getpeercert()["subject"])
        body = f"{subject['commonName']} {self.headers['X-Instance-ID']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not to standard error."""


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """One that signed itself, for 127.0.0.1, and its key, which only root may read."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    argv += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*argv, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    paths[1].chmod(0o600)
    return paths


@pytest.fixture
def settings(lab: Lab, tmp_path: Path) -> Iterator[str]:
    """Of a hypervisor with an https backend that runs."""
    (cert, key), (own, own_key) = certificate(tmp_path, "backend"), certificate(tmp_path, "metashim")
    secret = tmp_path / "secret"
    secret.write_text("known to two")
    secret.chmod(0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(own)
    context.verify_mode = ssl.CERT_REQUIRED
    with lab.host.enter():
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield (
        '[forward]\nroutes = {"/" = "nova"}\n[nova]\n'
        f'addresses = ["https://127.0.0.1:{server.server_port}"]\nsecret_file = "{secret}"\n'
        f'ca_file = "{cert}"\ncertificate_file = "{own}"\nkey_file = "{own_key}"\n'
    )
    server.shutdown()
    server.server_close()
    thread.join()


def test_each_shows_its_certificate(lab: Lab, settings: str) -> None:
    with Hypervisor(lab, settings, proxy=BUSY) as site:
        site.start()
        guest = enrol(site, "a", A, "mine")
        for _ in range(3):
            reply = ask(guest, "/latest/meta-data/")
            assert (reply.status, reply.body.decode()) == (200, f"metashim {A}")


def test_a_backend_that_nobody_vouches_for_is_told_nothing(lab: Lab, settings: str, tmp_path: Path) -> None:
    other, _ = certificate(tmp_path, "other")
    distrusting = settings.replace(f"{tmp_path}/backend.pem", str(other))
    with Hypervisor(lab, distrusting, proxy=BUSY) as site:
        site.start()
        guest = enrol(site, "a", A, "mine")
        assert ask(guest, "/latest/meta-data/").status == 503
        assert "certificate" in site.log_text()
