"""Backends that refuse, lie, stall or die: each call ends with what can be said of it, soon, and none gets another."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from shim.core.address import parse_address
from shim.core.exchange import Request, Response
from shim.errors import BackendError
from shim.http.client import Client
from tests.unit.http_backend import CHUNKED, GET, HELLO, OK, Peer, ask, backend, begin, failure, whole
from tests.unit.http_site import ON_BOTH_LOOPS, Run, until

pytestmark = ON_BOTH_LOOPS

LARGE = OK + b"Content-Length: 100000\r\n\r\n"


def client_of(text: str, connect_seconds: float = 1.0) -> Client:
    address = parse_address(text)
    return Client(address, tls=None, connect_seconds=connect_seconds, read_seconds=1, connections=2)


def test_a_backend_that_refuses(run: Run, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

    async def main() -> None:
        for text in (f"http://127.0.0.1:{port}", f"unix:{tmp_path}/none", "http://a..b"):
            client = client_of(text)
            answers = await asyncio.gather(*[ask(client) for _ in range(5)])
            assert [failure(answer) for answer in answers] == [(False, False)] * 5
            await client.close()

    run(main())


def test_a_backend_whose_queue_is_full(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as listener, socket.socket() as filler, socket.socket() as more:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for sock in (filler, more):
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            client = client_of(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_seconds=0.2)
            began = loop.time()
            answer = await ask(client)
            assert failure(answer) == (False, False)
            assert "no connection within 0.2 s" in str(answer)
            assert loop.time() - began < 1.0
            await client.close()

    run(main())


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-", HELLO[:-1], b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_backend_that_falls_silent(run: Run, said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(said)
        assert await peer.gone() == b""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with backend(script, read_seconds=0.2) as here:
            began = loop.time()
            assert failure(await ask(here.client)) == (True, True)
            assert 0.15 < loop.time() - began < 1.0

    run(main())


@pytest.mark.parametrize("drip", [OK + b"X: " + b"x" * 999, OK + b"Content-Length: 999\r\n\r\n" + b"x" * 998])
def test_a_slow_drip_of_a_head_or_of_a_small_body(run: Run, drip: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        for at in range(len(drip)):
            await peer.say(drip[at : at + 1])

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with backend(script, read_seconds=0.2) as here:
            began = loop.time()
            assert failure(await ask(here.client)) == (True, True)
            assert loop.time() - began < 1.5

    run(main())


@pytest.mark.parametrize("begun", [CHUNKED + b"1\r\na\r\n", CHUNKED + b"1\r\na\r\n1;", LARGE + b"a", OK + b"\r\na"])
def test_a_streamed_answer_that_falls_silent_is_cut_off(run: Run, begun: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(begun)
        for _ in range(40):  # of a size line: no progress
            await peer.say(b"x" if begun.endswith(b";") else b"")
        await peer.gone()

    async def main() -> None:
        async with backend(script, read_seconds=0.2) as here:
            answer = await ask(here.client)
            assert isinstance(answer, Response)
            assert answer.parts is not None
            assert await anext(answer.parts) == b"a"
            with pytest.raises(BackendError) as cut:
                await anext(answer.parts)
            assert cut.value.late
            with pytest.raises(BackendError):
                await anext(answer.parts)

    run(main())


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 20", OK + b"Content-", HELLO[:-1], OK + b"Content-Length: 1\r\n\r\n"])
def test_a_backend_that_read_the_request_and_went(run: Run, said: bytes, reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(said)
        if reset:
            peer.reset()

    async def main() -> None:
        async with backend(script) as here:
            for _ in range(2):
                assert failure(await ask(here.client)) == (True, False)

    run(main())


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("begun", [CHUNKED + b"1\r\na\r\n", CHUNKED + b"2\r\na", LARGE + b"a", OK + b"\r\na"])
def test_a_backend_that_goes_in_the_midst_of_a_body(run: Run, begun: bytes, reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(begun)
        if reset:
            peer.reset()

    async def main() -> None:
        async with backend(script) as here:
            answer = await ask(here.client)
            if begun == OK + b"\r\na" and not reset:
                assert await whole(answer) == b"a"  # a close is that body's proper end
                return
            with pytest.raises(BackendError):
                await whole(answer)
            assert here.client.busy == 0

    run(main())


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\xff garbage",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        OK + b"X: 1\r\n" * 300 + b"\r\n",
        OK + b"X: " + b"x" * 70_000,
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"X: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\x00\r\nContent-Length: 0\r\n\r\n",
        CHUNKED + b"z\r\n",
        CHUNKED + b"1;" + b"x" * 2000,
    ],
)
def test_answers_that_are_none(run: Run, said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(said)
        assert await peer.gone() == b""

    async def main() -> None:
        async with backend(script) as here:
            assert failure(await ask(here.client)) == (True, False)
            await until(lambda: here.client.busy == 0)

    run(main())


@pytest.mark.parametrize("tail", [b"z\r\n", b"1\r\nab\r\n", b"1;" + b"x" * 2000, b"0\r\nX : 1\r\n\r\n"])
def test_chunks_that_go_wrong_later(run: Run, tail: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(CHUNKED + b"1\r\na\r\n", tail)
        assert await peer.gone() == b""

    async def main() -> None:
        async with backend(script) as here:
            with pytest.raises(BackendError):
                await whole(await ask(here.client))

    run(main())


def test_two_answers_for_one_request_never_meet_another_one(run: Run) -> None:
    """However the second comes: with the first, while the connection is idle, or as the next request is written."""

    async def script(peer: Peer) -> None:
        mine = b"%d" % peer.number
        evil = OK + b"Content-Length: 4\r\n\r\nevil"
        await peer.head()
        if peer.number == 1:
            await peer.say(OK + b"Content-Length: 1\r\n\r\n" + mine + evil)
        else:
            await peer.say(OK + b"Content-Length: 1\r\n\r\n" + mine, evil)
        await peer.gone()

    async def main() -> None:
        async with backend(script) as here:
            for number in (b"1", b"2", b"3"):
                assert await whole(await ask(here.client)) == number
                await asyncio.sleep(0.03)

    run(main())


def test_a_frozen_backend_as_a_health_check_tells(run: Run) -> None:
    async def script(peer: Peer) -> None:
        path = (await peer.head()).split(b" ")[1]
        if path == b"/slow":
            await peer.say(LARGE + b"a")
        await peer.gone()

    async def main() -> None:
        async with backend(script) as here:
            silent, _ = begin(here.client)
            speaking = await ask(here.client, Request(b"GET", b"/slow"))
            here.client.fail_silent("health check: frozen")
            answer = await silent
            assert failure(answer) == (True, True)
            assert str(answer) == "health check: frozen"
            assert isinstance(speaking, Response)
            assert speaking.parts is not None
            assert (await anext(speaking.parts), here.client.busy) == (b"a", 1)

    run(main())


def test_a_failed_backend_comes_back(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number % 2:
            peer.reset()
        else:
            await peer.say(HELLO)

    async def main() -> None:
        async with backend(script, connections=1) as here:
            for _ in range(3):
                assert failure(await ask(here.client, GET)) == (True, False)
                assert await whole(await ask(here.client, GET)) == b"hello"
                await until(lambda: here.client.busy == 0)
                await asyncio.sleep(0.02)

    run(main())


def test_a_call_that_waits_gets_the_place_of_one_that_failed(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number == 1:
            peer.reset()
        else:
            await peer.say(HELLO)

    async def main() -> None:
        async with backend(script, connections=1) as here:
            first, _ = begin(here.client)
            second, _ = begin(here.client)
            assert failure(await first) == (True, False)
            assert await whole(await second) == b"hello"

    run(main())
