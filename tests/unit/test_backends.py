"""What a backend is spoken to with: secrets and certificates in files, and what is said of wrong ones."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from shim.backends import Backends, credentials
from shim.errors import ConfigError
from shim.settings import Forward, Http, Nova


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*argv, "-subj", "/CN=x", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def secret(folder: Path, content: bytes = b"known to two\n") -> str:
    path = folder / "secret"
    path.write_bytes(content)
    return str(path)


def test_a_secret_is_what_the_file_holds_without_its_line_end(tmp_path: Path) -> None:
    known = credentials("nova", Nova(addresses=("http://x",), secret_file=secret(tmp_path)))
    assert (known.secret, known.tls) == (b"known to two", None)
    assert "known" not in repr(known)


@pytest.mark.parametrize(("content", "what"), [(b"", "empty"), (b" \n", "empty"), (b"x" * 5000, "too long")])
def test_a_secret_that_is_none(tmp_path: Path, content: bytes, what: str) -> None:
    path = secret(tmp_path, content)
    with pytest.raises(ConfigError, match=f"nova.secret_file: {path} is .*{what}") as caught:
        credentials("nova", Nova(addresses=("http://x",), secret_file=path))
    assert caught.value.hint


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http.secret_file: .*/none: No such file"):
        credentials("http", Http(addresses=("http://x",), secret_file=str(tmp_path / "none")))


def test_https_is_checked_and_shows_its_certificate(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    certificate, key = map(str, pair)
    settings = Nova(
        addresses=("https://x",), secret_file=secret(tmp_path), ca_file=certificate,
        certificate_file=certificate, key_file=key,
    )  # fmt: skip
    tls = credentials("nova", settings).tls
    assert tls is not None
    assert tls.verify_mode is ssl.CERT_REQUIRED and tls.check_hostname
    assert len(tls.get_ca_certs()) == 1


def test_wrong_certificates_are_named(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    path = secret(tmp_path)
    with pytest.raises(ConfigError, match=f"nova: {path}"):
        credentials("nova", Nova(addresses=("https://x",), secret_file=path, ca_file=path))
    swapped = Nova(
        addresses=("https://x",), secret_file=path, ca_file=str(pair[0]),
        certificate_file=str(pair[1]), key_file=str(pair[0]),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"key\.pem"):
        credentials("nova", swapped)


def test_a_backend_that_cannot_be_made_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nova = Nova(addresses=("http://127.0.0.1:1",), secret_file=str(tmp_path / "none"))
    http = Http(addresses=("http://127.0.0.1:1", "http://127.0.0.1:2"), secret_file=secret(tmp_path))
    backends = Backends(Forward(connections=10), nova, http)
    backends.read()
    assert "backend nova answers 503" in caplog.text
    assert backends.most_connections == 33
    assert set(backends._credentials) == {"http"}
