"""The source of Open vSwitch alone: the agent's side and its child in this process's care, on a real ovsdb-server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from functools import partial
from uuid import UUID

import pytest

from shim.core.link import Link
from shim.identity import child
from tests.netns.followed import Source, followers, following, ids, memory, quietly, run, tap
from tests.netns.hypervisor import uuid_of
from tests.netns.ovsdb_server import BRIDGE, OvsdbServer


def test_all_that_is_told_of_a_port(ovsdb):
    async def steps() -> None:
        ovsdb.plug_many({"tap1": ids(1) | {"project-id": "blue"}})
        async with following(ovsdb.remote) as source:
            await source.is_of("tap1", uuid_of(1))
            subject = source.child.subject_of(Link(7, "tap1"))
            assert (subject.project, subject.mac, subject.port) == ("blue", "fa:16:3e:00:00:01", ids(1)["iface-id"])
            assert source.child.subject_of(Link(7, "tap1", netns="other")) is None
            assert source.who(BRIDGE) is None
            assert source.child.health() is None

    run(steps())


def test_changes_as_they_come(ovsdb):
    async def steps() -> None:
        async with following(ovsdb.remote) as source:
            await source.well()
            ovsdb.plug("tap1", uuid_of(1))
            await source.is_of("tap1", uuid_of(1))
            ovsdb.say("tap1", vm_uuid=str(uuid_of(2)))
            await source.is_of("tap1", uuid_of(2))
            ovsdb.vsctl("--", "del-port", "tap1", *again("tap1", uuid_of(3)))
            await source.is_of("tap1", uuid_of(3))
            ovsdb.vsctl("remove", "Interface", "tap1", "external_ids", "vm-uuid")
            await source.is_of("tap1", None)
            ovsdb.say("tap1", vm_id=str(uuid_of(4)))
            await source.is_of("tap1", uuid_of(4))
            ovsdb.unplug("tap1")
            await source.is_of("tap1", None)
            assert source.child.health() is None

    run(steps())


def again(name: str, instance: UUID) -> list[str]:
    return ["--", "add-port", BRIDGE, name, "--", "set", "Interface", name, f"external_ids:vm-uuid={instance}"]


def test_a_server_that_dies_comes_back_otherwise_and_hangs(ovsdb):
    """While it is away the mapping holds; what changed meanwhile is in force as soon as it is back."""

    async def steps() -> None:
        ovsdb.plug_many({"tap1": ids(1), "tap2": ids(2)})
        async with following(ovsdb.remote) as source:
            await source.is_of("tap2", uuid_of(2))
            ovsdb.kill()
            await source.unwell(ovsdb.remote, "since 2", "the last known mapping holds")
            assert (source.who("tap1"), source.who("tap2")) == (uuid_of(1), uuid_of(2))
            await quietly(ovsdb.start)
            await source.well()
            assert (source.who("tap1"), source.who("tap2")) == (uuid_of(1), uuid_of(2))
            pid = source.pid
            ovsdb.plug("tap3", uuid_of(3))
            await source.is_of("tap3", uuid_of(3))
            with ovsdb.stopped():
                await source.unwell("it does not answer")
                assert source.who("tap3") == uuid_of(3)
            await source.well()
            assert source.pid == pid

    run(steps())


def test_what_changed_while_nobody_was_connected(ovsdb):
    async def steps() -> None:
        ovsdb.plug_many({"tap1": ids(1), "tap2": ids(2)})
        async with following(ovsdb.remote) as source:
            await source.is_of("tap2", uuid_of(2))
            os.kill(source.pid, signal.SIGSTOP)
            ovsdb.kill()
            await quietly(ovsdb.start)
            ovsdb.unplug("tap1")
            ovsdb.plug("tap3", uuid_of(3))
            os.kill(source.pid, signal.SIGCONT)
            await source.is_of("tap3", uuid_of(3))
            assert (source.who("tap1"), source.who("tap2")) == (None, uuid_of(2))

    run(steps())


@pytest.mark.parametrize("begin", ["no socket", "a dead socket", "a file", "somebody else"])
def test_no_server_at_first(ovsdb, begin):
    async def steps() -> None:
        ovsdb.plug("tap1", uuid_of(1))
        ovsdb.kill()
        strange = None
        if begin != "a dead socket":
            ovsdb.socket.unlink()
        if begin == "a file":
            ovsdb.socket.touch()
        if begin == "somebody else":
            strange = socket.socket(socket.AF_UNIX)
            strange.bind(str(ovsdb.socket))
            strange.listen()
        async with following(ovsdb.remote) as source:
            await source.unwell(f"no word from {ovsdb.remote}", "nothing is known of it yet")
            assert not source.child.known
            ovsdb.socket.unlink(missing_ok=True)
            if strange is not None:
                strange.close()
            await quietly(ovsdb.start)
            await source.is_of("tap1", uuid_of(1))
            await source.well()

    run(steps())


def test_a_server_that_speaks_nonsense(ovsdb):
    """Each of it ends the connection, with words; the last connection is to the real one."""
    nonsense = [b"\xff\xff", b"HTTP/1.1 400 Bad Request\r\n\r\n", b'{"id":0,"result":7,"error":null}', b"[" * 5000]

    async def steps() -> None:
        ovsdb.plug("tap1", uuid_of(1))
        aside = ovsdb.socket.with_name("aside")
        ovsdb.socket.rename(aside)

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"}")
            with contextlib.suppress(ConnectionError):
                writer.write(nonsense.pop() if nonsense else b"")
                await writer.drain()
                await asyncio.sleep(0.1)
            writer.close()

        strange = await asyncio.start_unix_server(speak, ovsdb.socket)
        async with following(ovsdb.remote) as source:
            await source.unwell(f"no word from {ovsdb.remote}: ")
            await source.until(lambda: not nonsense, "all of it to be said")
            pid = source.pid
            strange.close()
            ovsdb.socket.unlink(missing_ok=True)
            aside.rename(ovsdb.socket)
            await source.is_of("tap1", uuid_of(1))
            await source.well()
            assert source.pid == pid

    run(steps())


def test_another_database_than_open_vswitchs(tmp_path):
    async def steps() -> None:
        with OvsdbServer() as ovsdb:
            ovsdb.kill()
            (ovsdb.folder / "conf.db").unlink()
            other = tmp_path / "other.ovsschema"
            other.write_text('{"name": "Other", "tables": {"T": {"columns": {"c": {"type": "string"}}}}}')
            subprocess.run(["ovsdb-tool", "create", ovsdb.folder / "conf.db", other], check=True)
            ovsdb.start()
            async with following(ovsdb.remote) as source:
                await source.unwell("it refuses to tell of Interface", "unknown database")

    run(steps())


def test_garbage_harms_no_other(ovsdb):
    async def steps() -> None:
        async with following(ovsdb.remote) as source:
            await source.well()
            ovsdb.plug("tap1", uuid_of(1))
            ovsdb.plug("bad1", "no uuid at all")
            ovsdb.plug_many(
                {
                    "bad2": {"vm-uuid": "\n\t\u2028" + "x" * 100_000},
                    "bad3": {"vm-uuid": str(uuid_of(3)), "vm-id": str(uuid_of(4))},
                    "half": {"vm-uuid": str(uuid_of(5)), "attached-mac": "none", "iface-id": "ü\u0001" * 1000},
                    "patch-to-somewhere-else": {"vm-uuid": str(uuid_of(6))},
                }
            )
            ovsdb.plug("tap2", uuid_of(2))
            await source.is_of("tap2", uuid_of(2))
            assert [source.who(name) for name in ("tap1", "bad1", "bad2", "bad3")] == [uuid_of(1), None, None, None]
            assert source.who("half") == uuid_of(5)
            health = source.child.health() or ""
            assert all(f"interface {name}: " in health for name in ("bad1", "bad2", "bad3", "half"))
            assert health.isprintable()
            assert len(health) < 3000
            ovsdb.unplug("bad1", "bad2", "bad3", "half")
            await source.well()

    run(steps())


def test_text_of_many_bytes_a_character(ovsdb):
    """Whatever the ends of what arrives cut apart."""

    async def steps() -> None:
        text = "ü€😀" * 20
        ovsdb.plug_many({tap(n): ids(n) | {"iface-id": text, "note": "x" * (n % 7)} for n in range(3000)})
        async with following(ovsdb.remote) as source:
            await source.is_of(tap(2999), uuid_of(2999))
            for number in range(3000, 3020):
                ovsdb.plug_many({tap(number): ids(number) | {"iface-id": text, "note": text * number}})
            await source.is_of(tap(3019), uuid_of(3019))
            assert source.child.subject_of(Link(7, tap(3019))).port == text[:64].strip()
            await source.well()

    run(steps())


def test_a_storm_of_ports_ends_as_it_should(ovsdb):
    """200 ports added, given to others and removed, over and over: in far fewer messages than changes."""

    async def steps() -> None:
        async with following(ovsdb.remote) as source:
            await source.well()

            def storm() -> None:
                for turn in range(5):
                    for at in range(0, 200, 10):
                        ovsdb.plug_many({tap(n): ids(n, uuid_of(turn)) for n in range(at, at + 10)})
                    ovsdb.clear()

            await quietly(storm)
            ovsdb.plug("last", uuid_of(9))
            await source.is_of("last", uuid_of(9))
            assert {source.who(tap(n)) for n in range(200)} == {None}
            assert 2 <= source.changes <= 110
            await source.well()

    run(steps())


def test_news_come_while_changes_do_not_end(ovsdb):
    async def steps() -> None:
        ovsdb.plug_many({tap(n): ids(n) for n in range(50)})
        async with following(ovsdb.remote) as source:
            await source.well()
            over = False

            def churn() -> None:
                number = 0
                while not over:
                    row = {"external_ids": ["map", [["vm-uuid", str(uuid_of(number % 50))], ["note", str(number)]]]}
                    where = [["name", "!=", "tap1"]]
                    ovsdb.transact({"op": "update", "table": "Interface", "where": where, "row": row})
                    number += 1

            churning = asyncio.create_task(quietly(churn))
            try:
                for number in range(5):
                    await quietly(partial(ovsdb.plug_many, {f"new{number}": ids(7)}))
                    await source.until(lambda: source.who(f"new{number}"), f"new{number}")  # noqa: B023
            finally:
                over = True
                await churning
            await source.well()

    run(steps())


def test_killed_under_changes(ovsdb, monkeypatch):
    """kill -9 of the child twenty times: nobody's identity goes meanwhile, and no change is lost."""
    monkeypatch.setattr(child, "BACKOFF_SECONDS", (0.05,))

    async def steps() -> None:
        ovsdb.plug_many({"steady": ids(1)} | {tap(n): ids(n) for n in range(2, 200)})
        async with following(ovsdb.remote) as source:
            await source.is_of("steady", uuid_of(1))
            wrong: list[str] = []
            task = asyncio.create_task(_watch_steady(source, wrong))
            killed: set[int] = set()
            for number in range(20):
                await source.until(lambda: set(followers()) - killed, "another child")
                await quietly(partial(ovsdb.say, tap(5), vm_uuid=str(uuid_of(1000 + number))))
                await asyncio.sleep(0.03 * (number % 10))
                (pid,) = followers()
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
                await quietly(partial(ovsdb.say, tap(6), vm_uuid=str(uuid_of(2000 + number))))
                if number % 5 == 4:
                    await source.is_of(tap(6), uuid_of(2000 + number))
                    assert source.who(tap(5)) == uuid_of(1000 + number)
            await source.is_of(tap(6), uuid_of(2019))
            assert source.who(tap(5)) == uuid_of(1019)
            task.cancel()
            assert (len(killed), wrong) == (20, [])
            await source.well()

    run(steps())


async def _watch_steady(source: Source, wrong: list[str]) -> None:
    while True:
        if source.who("steady") != uuid_of(1):
            wrong.append(f"{source.who('steady')} at {time.time()}")
        await asyncio.sleep(0.001)


def test_memory_after_ten_thousand_changes(ovsdb):
    """Neither side keeps anything of what was."""

    async def steps() -> None:
        ovsdb.plug_many({tap(n): ids(n) for n in range(500)})
        async with following(ovsdb.remote) as source:
            await source.is_of(tap(499), uuid_of(499))

            def change(turns: int) -> None:
                for turn in range(turns):
                    ovsdb.transact(
                        *(
                            {
                                "op": "mutate", "table": "Interface", "where": [["name", "==", tap(n)]],
                                "mutations": [
                                    ["external_ids", "delete", ["set", ["vm-uuid"]]],
                                    ["external_ids", "insert", ["map", [["vm-uuid", str(uuid_of(n + 1 + turn % 2))]]]],
                                ],
                            }
                            for n in range(250)
                        )
                    )  # fmt: skip

            await quietly(partial(change, 10))
            await source.is_of(tap(249), uuid_of(251))
            before = memory("self"), memory(source.pid)
            await quietly(partial(change, 40))
            await source.is_of(tap(249), uuid_of(251))
            ovsdb.plug("last", uuid_of(9))
            await source.is_of("last", uuid_of(9))
            grown = memory("self") - before[0], memory(source.pid) - before[1]
            assert max(grown) < 4096, grown

    run(steps())


@pytest.mark.parametrize("count", [1000, 10_000])
def test_many_interfaces(ovsdb, count):
    """Told whole at the start, and one change among them at once. The bounds are wide: the machine may be busy."""

    async def steps() -> None:
        ovsdb.plug_many({tap(n): ids(n) for n in range(count)})
        began = time.monotonic()
        async with following(ovsdb.remote) as source:
            await source.is_of(tap(count - 1), uuid_of(count - 1))
            whole = time.monotonic() - began
            assert all(source.who(tap(n)) == uuid_of(n) for n in range(count))
            began = time.monotonic()
            ovsdb.plug_many({"one-more": ids(7)})
            await source.is_of("one-more", uuid_of(7))
            one = time.monotonic() - began
            print(f"{count}: {whole:.2f} s, then {one * 1000:.0f} ms; the child has {memory(source.pid)} KiB")
            assert whole < 15
            assert one < 5
            assert memory(source.pid) < 120_000

    run(steps())
