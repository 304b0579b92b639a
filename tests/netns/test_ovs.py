"""Guests whose identity Open vSwitch's database tells: a whole hypervisor and a real ovsdb-server."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator

import pytest

from shim.core.policy import Access
from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY, on_both
from tests.netns.followed import followers, ids
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.ovsdb_server import OvsdbServer
from tests.netns.talk import V6, Ended, Talk, await_outcome, outcome

_number = itertools.count(1)
FACE = {"mac": "02:00:00:00:00:09", "v4": "10.0.0.9/24", "v6": "fd00:1::9/64"}
PORT = "519d7cc4-75b2-4f6a-9b1f-000000000001"
SECONDS = 20.0


def identity(ovsdb: OvsdbServer, *others: str) -> str:
    names = ", ".join(f'"{name}"' for name in (*others, "ovs"))
    return f'sources = [{names}]\novs = "{ovsdb.remote}"\n'


@pytest.fixture(scope="module")
def database() -> Iterator[OvsdbServer]:
    with OvsdbServer() as server:
        yield server


@pytest.fixture(scope="module")
def shared(datapath: str, database: OvsdbServer) -> Iterator[Hypervisor]:
    """One that runs, for tests that leave it and the database well."""
    with Lab() as lab, Hypervisor(lab, PLENTY, identity=identity(database, "operator"), datapath=datapath) as site:
        site.start()
        yield site


@pytest.fixture
def site(lab: Lab, ovsdb: OvsdbServer) -> Iterator[Hypervisor]:
    """One of the test's own, not started yet, with a database of its own."""
    with Hypervisor(lab, PLENTY, identity=identity(ovsdb, "operator")) as site:
        yield site


@pytest.fixture
def tap() -> str:
    return f"tapo{next(_number)}"


def plug(site: Hypervisor, tap: str) -> VethGuest:
    return site.lab.veth_guest(f"o{next(_number)}", tap, **FACE)  # type: ignore[arg-type]


def cut(talk: Talk) -> bool:
    """Whether a connection serves nothing any more; what it does serve is an error."""
    talk.sock.settimeout(0.5)
    try:
        answer = talk.ask()
    except (OSError, Ended):
        return True
    raise AssertionError(f"still answered: {answer}")


def complaint(site: Hypervisor) -> str:
    """What status says of the source."""
    return "; ".join(a.what for a in site.api.status().ailments if a.part == "identity source ovs")


def child_of(site: Hypervisor) -> int:
    """The process that follows the database, or 0."""
    assert site.agent is not None
    return next(iter(followers(site.agent.pid)), 0)


@on_both
class TestOnePort:
    def test_a_tap_that_is_there_is_served_as_soon_as_the_database_says_whose_it_is(self, shared, database, tap):
        guest = plug(shared, tap)
        shared.await_port(tap, None)
        assert outcome(guest, timeout=0.2) == "timeout"
        database.plug(tap, uuid_of(1), iface_id=PORT, attached_mac=FACE["mac"])
        port = shared.await_port(tap, uuid_of(1))
        assert port.source == "ovs"
        assert outcome(guest) == outcome(guest, V6) == str(uuid_of(1))

    def test_what_was_said_before_the_tap_came(self, shared, database, tap):
        database.plug(tap, uuid_of(2))
        guest = plug(shared, tap)
        await_outcome(guest, str(uuid_of(2)))

    def test_changed_under_a_live_tap_and_removed(self, shared, database, tap):
        guest = plug(shared, tap)
        database.plug(tap, uuid_of(3))
        shared.await_port(tap, uuid_of(3))
        with Talk(guest) as four, Talk(guest, V6) as six:
            assert four.ask().body == six.ask().body == str(uuid_of(3))
            database.say(tap, vm_uuid=str(uuid_of(4)))
            shared.await_port(tap, uuid_of(4))
            assert cut(four)
            assert cut(six)
        with Talk(guest) as talk:
            assert talk.ask().body == str(uuid_of(4))
            database.unplug(tap)
            shared.await_port(tap, None)
            assert cut(talk)
        assert outcome(guest, timeout=0.2) == "timeout"

    def test_a_hybrid_plug(self, shared, database):
        tap, veth = f"tap{PORT[:11]}", f"qvo{PORT[:11]}"
        guest = plug(shared, tap)
        shared.lab.host.run(["ip", "link", "add", veth, "type", "veth", "peer", "name", f"qvb{PORT[:11]}"])
        database.plug(veth, uuid_of(5), iface_id=PORT)
        shared.await_port(tap, uuid_of(5))
        assert outcome(guest) == str(uuid_of(5))
        assert shared.port(veth) is None
        database.unplug(veth)
        shared.await_port(tap, None)
        shared.lab.host.run(["ip", "link", "del", veth])

    def test_garbage_is_named_and_nobodys(self, shared, database, tap):
        good, other = plug(shared, tap), f"{tap}x"
        bad = plug(shared, other)
        database.plug_many({tap: ids(1, uuid_of(6)), other: {"vm-uuid": "see the wiki\n\x01"}})
        shared.await_port(tap, uuid_of(6))
        shared.await_port(other, None)
        assert outcome(good) == str(uuid_of(6))
        assert outcome(bad, timeout=0.2) == "timeout"
        wait_until(lambda: f"interface {other}: vm-uuid is " in complaint(shared), "the complaint")
        assert f"interface {other}: vm-uuid is " in shared.verb("status", check=False).stdout
        database.unplug(other)
        wait_until(lambda: complaint(shared) == "", "the complaint to go")

    def test_an_earlier_source_wins_and_the_other_is_reported(self, shared, database, tap):
        guest = plug(shared, tap)
        database.plug(tap, uuid_of(7))
        shared.await_port(tap, uuid_of(7))
        shared.api.attach(tap, uuid_of(8))
        port = shared.await_port(tap, uuid_of(8))
        assert f"ovs says {uuid_of(7)}" in port.conflict
        assert outcome(guest) == str(uuid_of(8))
        shared.api.detach(tap)
        assert shared.await_port(tap, uuid_of(7)).source == "ovs"


class TestServer:
    def test_killed_and_back(self, site, ovsdb, tap):
        guest = plug(site, tap)
        ovsdb.plug(tap, uuid_of(1))
        site.start()
        site.await_port(tap, uuid_of(1))
        with Talk(guest) as talk:
            ovsdb.kill()
            wait_until(lambda: "the last known mapping holds" in complaint(site), "the complaint", SECONDS)
            assert talk.ask().body == outcome(guest) == str(uuid_of(1))
            ovsdb.start()
            wait_until(lambda: complaint(site) == "", "the complaint to go", SECONDS)
            assert talk.ask().body == str(uuid_of(1))
        ovsdb.say(tap, vm_uuid=str(uuid_of(2)))
        site.await_port(tap, uuid_of(2))
        assert outcome(guest) == str(uuid_of(2))

    def test_not_there_when_the_agent_starts(self, site, ovsdb, tap):
        guest = plug(site, tap)
        ovsdb.plug(tap, uuid_of(1))
        ovsdb.kill()
        ovsdb.socket.unlink()
        site.start()
        wait_until(lambda: ovsdb.remote in complaint(site), "the complaint", SECONDS)
        assert outcome(guest, timeout=0.2) == "timeout"
        site.api.attach(tap, uuid_of(2))
        site.await_port(tap, uuid_of(2))
        site.api.detach(tap)
        ovsdb.start()
        site.await_port(tap, uuid_of(1), SECONDS)
        assert outcome(guest) == str(uuid_of(1))
        wait_until(lambda: complaint(site) == "", "the complaint to go")

    def test_away_while_the_agent_is_restarted(self, site, ovsdb, tap):
        """Nobody is cut off for want of a word from another daemon."""
        guest = plug(site, tap)
        ovsdb.plug(tap, uuid_of(1))
        site.start()
        site.await_port(tap, uuid_of(1))
        ovsdb.kill()
        with Talk(guest) as talk:
            assert site.end(signal.SIGQUIT) == 0
            site.start()
            assert talk.ask().body == outcome(guest) == str(uuid_of(1))
            ovsdb.start()
            wait_until(lambda: complaint(site) == "", "the complaint to go", SECONDS)
            assert talk.ask().body == str(uuid_of(1))
        ovsdb.unplug(tap)
        site.await_port(tap, None)
        assert outcome(guest, timeout=0.2) == "timeout"

    def test_hung_it_holds_nobody_up(self, site, ovsdb, tap):
        guest = plug(site, tap)
        ovsdb.plug(tap, uuid_of(1))
        site.start()
        site.await_port(tap, uuid_of(1))
        with ovsdb.stopped():
            began = time.monotonic()
            site.disable(uuid_of(1), Access.RESET)
            assert outcome(guest) == "refused"
            site.enable(uuid_of(1))
            other = plug(site, f"{tap}x")
            site.api.attach(f"{tap}x", uuid_of(2))
            site.await_port(f"{tap}x", uuid_of(2))
            assert [outcome(guest), outcome(other)] == [str(uuid_of(1)), str(uuid_of(2))]
            assert time.monotonic() - began < 5
            assert site.end(signal.SIGTERM) == 0
            site.start()
            assert [outcome(guest), outcome(other)] == [str(uuid_of(1)), str(uuid_of(2))]
            wait_until(lambda: "it does not answer" in complaint(site), "the complaint", SECONDS)
        wait_until(lambda: complaint(site) == "", "the complaint to go", SECONDS)
        assert outcome(guest) == str(uuid_of(1))


class TestUnrest:
    def test_a_child_killed_over_and_over(self, site, ovsdb, tap):
        """With a change each time: the guest beside it is never cut, and no change is lost."""
        steady, moved = plug(site, tap), f"{tap}x"
        guest = plug(site, moved)
        ovsdb.plug_many({tap: ids(1), moved: ids(2)})
        site.start()
        site.await_port(tap, uuid_of(1))
        killed: set[int] = set()
        with Talk(steady) as talk:
            for number in range(5):
                wait_until(lambda: child_of(site) not in killed | {0}, "another child", SECONDS)
                ovsdb.say(moved, vm_uuid=str(uuid_of(100 + number)))
                killed.add(pid := child_of(site))
                os.kill(pid, signal.SIGKILL)
                assert talk.ask().body == str(uuid_of(1))
                if number == 2:
                    site.await_port(moved, uuid_of(102), SECONDS)
            site.await_port(moved, uuid_of(104), SECONDS)
            assert talk.ask().body == str(uuid_of(1))
        assert outcome(guest) == str(uuid_of(104))
        wait_until(lambda: complaint(site) == "", "the complaint to go", SECONDS)

    def test_a_storm_of_ports_and_taps(self, site, ovsdb):
        """200 rows over and over, every tenth of them with a tap: at the end all is as the database says."""
        numbers, real = range(200), range(0, 200, 10)

        def links(*commands: str) -> None:
            batch = "".join(command.format(n=n) + "\n" for n in real for command in commands)
            site.lab.host.run(["ip", "-batch", "-"], input=batch, stdin=None)

        site.start()
        for turn in range(4):
            for at in numbers[::20]:
                ovsdb.plug_many({f"tapz{n}": ids(n, uuid_of(turn * 1000 + n)) for n in numbers[at : at + 20]})
            links("link add tapz{n} type veth peer name pz{n}", "link set tapz{n} up")
            for remove in (ovsdb.clear, lambda: links("link del tapz{n}"))[:: 1 if turn % 2 else -1]:
                remove()
        wait_until(lambda: site.api.ports() == [], "no port to be left", SECONDS)
        links("link add tapz{n} type veth peer name pz{n}")
        ovsdb.plug_many({f"tapz{n}": ids(n, uuid_of(9000 + n)) for n in numbers})
        for n in real:
            site.await_port(f"tapz{n}", uuid_of(9000 + n))
        assert complaint(site) == ""
        links("link del tapz{n}")
        wait_until(lambda: site.api.ports() == [], "no port to be left", SECONDS)
