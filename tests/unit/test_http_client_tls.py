"""The client over TLS: whom it trusts, what it shows, and streams through it."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from tests.unit.http_backend import OK, Peer, always, ask, backend, failure, whole
from tests.unit.http_site import ON_BOTH_LOOPS, Run, until

pytestmark = ON_BOTH_LOOPS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signed itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "c.pem", folder / "k.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += f" -keyout {key} -out {certificate} -subj /CN=backend -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


def serving(pair: tuple[Path, Path], ask_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if ask_client:
        context.load_verify_locations(pair[0])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def trusting(pair: tuple[Path, Path], show: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pair[0]))
    if show:
        context.load_cert_chain(*pair)
    return context


def test_requests_over_tls(run: Run, pair: tuple[Path, Path]) -> None:
    async def main() -> None:
        async with backend(always, server_tls=serving(pair), tls=trusting(pair)) as here:
            assert [await whole(await ask(here.client)) for _ in range(3)] == [b"hello"] * 3
            assert len(here.peers) == 1

    run(main())


def test_a_client_certificate(run: Run, pair: tuple[Path, Path]) -> None:
    async def main() -> None:
        async with backend(always, server_tls=serving(pair, True), tls=trusting(pair, show=True)) as here:
            assert await whole(await ask(here.client)) == b"hello"

    run(main())


def test_a_backend_that_is_not_trusted_or_not_the_one_named(run: Run, pair: tuple[Path, Path]) -> None:
    async def main() -> None:
        async with backend(always, server_tls=serving(pair), tls=ssl.create_default_context()) as here:
            assert failure(await ask(here.client)) == (False, False)
        async with backend(always, server_tls=serving(pair), tls=trusting(pair), host="localhost") as here:
            answer = await ask(here.client)
            assert failure(answer) == (False, False)
            assert "certificate" in str(answer)

    run(main())


def test_a_backend_that_speaks_no_tls(run: Run, pair: tuple[Path, Path]) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(10)
        await peer.say(OK + b"\r\n")

    async def silent(peer: Peer) -> None:
        await peer.gone()

    async def main() -> None:
        async with backend(script, tls=trusting(pair)) as here:
            assert failure(await ask(here.client)) == (False, False)
        async with backend(silent, tls=trusting(pair), connect_seconds=0.2) as here:
            assert failure(await ask(here.client)) == (False, False)

    run(main())


def test_a_large_body_and_a_cut_over_tls(run: Run, pair: tuple[Path, Path]) -> None:
    body = b"x" * 3_000_000

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await peer.head()
        await peer.say(OK + b"Content-Length: 5\r\n\r\nhell")

    async def main() -> None:
        async with backend(script, server_tls=serving(pair), tls=trusting(pair)) as here:
            assert await whole(await ask(here.client)) == body
            assert failure(await ask(here.client)) == (True, False)

    run(main())


def test_an_idle_connection_that_was_closed_over_tls(run: Run, pair: tuple[Path, Path]) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: 0\r\n\r\n")

    async def main() -> None:
        async with backend(script, server_tls=serving(pair), tls=trusting(pair)) as here:
            await whole(await ask(here.client))
            await until(lambda: not here.client._connections)
            assert await whole(await ask(here.client)) == b""
            assert len(here.peers) == 2

    run(main())
