"""Taps inside other network namespaces, and namespaces that name the instance: as they come, go and come again."""

from __future__ import annotations

import itertools
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from tests.lab import Lab, Namespace, VethGuest, service_frames
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY, on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import ALL, V4, Ended, Talk, ask, await_outcome, outcome

_number = itertools.count(1)
FACE = {"mac": "02:00:00:00:00:08", "v4": "10.0.0.8/24", "v6": "fd00:1::8/64"}
ON_BRIDGE = "br0"


def plug(site: Hypervisor, where: Namespace, tap: str, instance: UUID | None = None, **kwargs: object) -> VethGuest:
    """A guest on a tap in a namespace. All have the same face."""
    guest = site.lab.veth_guest(
        f"n{next(_number)}", tap, host=where, **(FACE | {"bridge": None} | kwargs)  # type: ignore[arg-type]
    )
    if instance is not None:
        where.ip.link("set", index=guest.tap_ifindex, ifalias=f"metashim:{instance}")
    return guest


def await_port(site: Hypervisor, netns: str, tap: str, instance: UUID | None) -> None:
    def there() -> bool:
        ports = [port for port in site.api.ports() if (port.netns, port.tap) == (netns, tap)]
        return [port.instance for port in ports] == [instance] and ports[0].state != "failed"

    wait_until(there, f"{tap} in {netns} to be {instance}'s")


def await_gone(site: Hypervisor, netns: str) -> None:
    wait_until(lambda: not [port for port in site.api.ports() if port.netns == netns], f"{netns} to be let go")


def of_tc(where: Namespace, link: str) -> str:
    return str(where.run(["tc", "filter", "show", "dev", link, "ingress"]).stdout)


def of_nft(where: Namespace, site: Hypervisor) -> list[str]:
    return [line for line in where.run(["nft", "list", "tables"]).stdout.splitlines() if site.name in line]


def remains(where: Namespace, site: Hypervisor) -> list[str]:
    """What is ours in a namespace."""
    filters = [link for link in where.links() if site.name in of_tc(where, link)]
    return of_nft(where, site) + filters + sorted(where.links() & {f"{site.name}0"})


@pytest.fixture
def rack(shared: Hypervisor) -> Namespace:
    return shared.lab.namespace(f"rack{next(_number)}")


@pytest.fixture(scope="module")
def shared(datapath: str) -> Iterator[Hypervisor]:
    with a_site(datapath) as site:
        yield site


@contextmanager
def a_site(datapath: str) -> Iterator[Hypervisor]:
    with Lab() as lab, Hypervisor(lab, PLENTY + f'namespaces = ["{lab.prefix}-rack*"]\n', datapath=datapath) as site:
        site.start()
        yield site


@on_both
class TestTapsElsewhere:
    def test_equal_taps_of_three_namespaces_are_three_instances(self, shared, rack):
        """The same name, number, MAC and address: only where they are tells them apart."""
        other = shared.lab.namespace(f"rack{next(_number)}")
        places = {shared.lab.host: uuid_of(1), rack: uuid_of(2), other: uuid_of(3)}
        guests = {plug(shared, where, "tap0", instance): instance for where, instance in places.items()}
        for where, instance in places.items():
            await_port(shared, "" if where is shared.lab.host else where.name, "tap0", instance)
        for _ in range(3):
            for guest, instance in guests.items():
                assert {ask(guest, address).body for address in ALL} == {str(instance)}

    def test_policy_holds_there_and_counters_count(self, shared, rack):
        guest = plug(shared, rack, "tap1", uuid_of(11))
        await_port(shared, rack.name, "tap1", uuid_of(11))
        with Talk(guest) as talk:
            assert talk.ask().body == str(uuid_of(11))
            shared.disable(uuid_of(11))
            with pytest.raises((OSError, Ended)):
                talk.ask()
        assert outcome(guest) == "refused"
        assert "disabled_reset" in shared.verb("counters", "tap1", "--netns", rack.name).stdout
        shared.enable(uuid_of(11))
        assert outcome(guest) == str(uuid_of(11))

    def test_a_namespace_that_comes_goes_and_comes_again_is_another(self, shared):
        name = f"rack{next(_number)}"
        for number in (21, 22):
            with Lab() as lab:
                # As `ip netns add` of somebody else: the same name, another namespace.
                path = f"{shared.lab.prefix}-{name}"
                subprocess.run(["ip", "netns", "add", path], check=True)
                try:
                    inside = ["ip", "-n", path]
                    guest = lab.namespace(f"g{number}")
                    peer = ["peer", "name", "eth0", "netns", guest.name]
                    subprocess.run([*inside, "link", "add", "tap2", "type", "veth", *peer], check=True)
                    alias = f"metashim:{uuid_of(number)}"
                    subprocess.run([*inside, "link", "set", "tap2", "up", "alias", alias], check=True)
                    guest.run(["ip", "link", "set", "eth0", "up"])
                    guest.run(["ip", "addr", "add", "10.0.0.8/24", "dev", "eth0"])
                    guest.run(["ip", "route", "add", "169.254.0.0/16", "dev", "eth0", "scope", "link"])
                    await_port(shared, path, "tap2", uuid_of(number))
                    url = f"http://{V4}/latest/meta-data/instance-id"
                    assert guest.run(["curl", "-sS", "--max-time", "5", url]).stdout == str(uuid_of(number))
                finally:
                    subprocess.run(["ip", "netns", "del", path], check=True)
            await_gone(shared, path)

    def test_many_that_come_and_go_leave_nothing_open(self, shared):
        """Sockets in a namespace would keep it alive for ever."""

        def held() -> int:
            return len(list(Path(f"/proc/{shared.agent.pid}/fd").iterdir()))

        def cycle(number: int) -> None:
            name = f"{shared.lab.prefix}-rackc{number}"
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "add", "tap0", "type", "bridge"], check=True)
            await_port(shared, name, "tap0", None)
            subprocess.run(["ip", "netns", "del", name], check=True)
            await_gone(shared, name)

        cycle(0)
        with Path("/run/netns", shared.name).open() as gateway:
            links = ["nsenter", f"--net=/proc/self/fd/{gateway.fileno()}", "ip", "-o", "link"]
            before = held(), subprocess.run(links, check=True, capture_output=True, pass_fds=[gateway.fileno()]).stdout
            for number in range(1, 9):
                cycle(number)
            wait_until(lambda: held() <= before[0], "the agent to let go of them")
            after = subprocess.run(links, check=True, capture_output=True, pass_fds=[gateway.fileno()]).stdout
        assert after.count(b"gw") == before[1].count(b"gw")

    def test_nothing_leaks_before_a_tap_is_enrolled_nor_while_it_is_nobodys(self, shared, rack):
        rack.ip.link("add", ifname=ON_BRIDGE, kind="bridge")
        rack.set_up(rack.index(ON_BRIDGE))
        capture = shared.lab.capture(ON_BRIDGE, rack)
        wait_until(lambda: f"{rack.name} is guarded" in shared.log_text(), "the namespace to be found")
        guest = plug(shared, rack, "tap3", bridge=ON_BRIDGE)
        for address in ALL:
            assert outcome(guest, address, timeout=0.3) == "timeout"
        await_port(shared, rack.name, "tap3", None)
        for address in ALL:
            assert outcome(guest, address, timeout=0.3) == "timeout"
        assert service_frames(capture.frames(0.1)) == []

    @pytest.mark.parametrize("signalled", [signal.SIGTERM, signal.SIGKILL, signal.SIGQUIT])
    def test_a_connection_outlives_the_agent(self, shared, rack, signalled):
        guest = plug(shared, rack, "tap4", uuid_of(31))
        await_port(shared, rack.name, "tap4", uuid_of(31))
        with Talk(guest) as talk:
            assert talk.ask().body == str(uuid_of(31))
            shared.end(signalled)
            if signalled is not signal.SIGTERM:
                assert talk.ask().body == str(uuid_of(31))
            shared.start()
            if signalled is not signal.SIGTERM:
                assert talk.ask().body == str(uuid_of(31))
        assert outcome(guest) == str(uuid_of(31))

    def test_an_operator_names_a_tap_in_a_namespace_that_no_pattern_does(self, shared):
        where = shared.lab.namespace(f"lone{next(_number)}")
        guest = plug(shared, where, "qvo1")
        assert [port for port in shared.api.ports() if port.netns == where.name] == []
        shared.verb("attach", "qvo1", str(uuid_of(41)), "--netns", where.name)
        await_port(shared, where.name, "qvo1", uuid_of(41))
        assert outcome(guest) == str(uuid_of(41))
        shared.verb("detach", "qvo1", "--netns", where.name)
        await_gone(shared, where.name)
        wait_until(lambda: remains(where, shared) == [], "the namespace to be as it was")

    def test_the_file_names_one(self, shared):
        where = shared.lab.namespace(f"lone{next(_number)}")
        guest = plug(shared, where, "tap5")
        entry = f'[[port]]\ninterface = "tap5"\ninstance = "{uuid_of(51)}"\nnetns = "{where.name}"\n'
        shared.mapping.write_text(entry)
        await_port(shared, where.name, "tap5", uuid_of(51))
        assert outcome(guest) == str(uuid_of(51))
        shared.mapping.write_text("")
        await_gone(shared, where.name)

    def test_what_others_take_away_there_comes_back(self, shared, rack):
        guest = plug(shared, rack, "tap6", uuid_of(61))
        await_port(shared, rack.name, "tap6", uuid_of(61))
        for harm in (
            ["tc", "qdisc", "del", "dev", "tap6", "clsact"],
            ["nft", "flush", "ruleset"],
            ["ip", "link", "del", f"{shared.name}0"],
        ):
            rack.run(harm, check=False)
            await_outcome(guest, str(uuid_of(61)), seconds=10)
        wait_until(lambda: "guard" in rack.run(["nft", "list", "tables"]).stdout, "the guard to be back")

    def test_one_that_cannot_be_linked_keeps_nothing_from_others(self, shared, rack):
        """Somebody took the number of its link to the gateway. Elsewhere news are heard all the same."""
        plug(shared, rack, "tap7", uuid_of(71))
        await_port(shared, rack.name, "tap7", uuid_of(71))
        link, here = f"{shared.name}0", plug(shared, shared.lab.host, "tap8")
        number = str(rack.index(link))
        rack.run(["ip", "link", "del", link])
        rack.run(["ip", "link", "add", "taken", "index", number, "type", "bridge"])
        complaint = f"cannot link the namespace {rack.name}"
        wait_until(lambda: complaint in shared.verb("status", check=False).stdout, "the complaint", 15)
        shared.mapping.write_text(f'[[port]]\ninterface = "tap8"\ninstance = "{uuid_of(72)}"\n')
        await_port(shared, "", "tap8", uuid_of(72))
        assert outcome(here) == str(uuid_of(72))
        rack.run(["ip", "link", "del", "taken"])
        wait_until(lambda: complaint not in shared.verb("status", check=False).stdout, "it to be well", 15)
        shared.mapping.write_text("")


@on_both
class TestTheWholeSite:
    def test_a_gateway_that_somebody_removes_is_made_again_for_all(self, datapath):
        with a_site(datapath) as site:
            rack = site.lab.namespace("rack1")
            there, here = plug(site, rack, "tap0", uuid_of(1)), plug(site, site.lab.host, "tap0", uuid_of(2))
            await_port(site, rack.name, "tap0", uuid_of(1))
            await_port(site, "", "tap0", uuid_of(2))
            subprocess.run(["ip", "netns", "del", site.name], check=True)
            await_outcome(there, str(uuid_of(1)), seconds=15)
            await_outcome(here, str(uuid_of(2)), seconds=15)

    def test_a_namespace_that_is_guarded_no_more_lends_nobody_an_identity(self, datapath):
        """Its filters would go on stamping packets with slots that are others' by now."""
        with a_site(datapath) as site:
            rack = site.lab.namespace("rack1")
            former = plug(site, rack, "tap0", uuid_of(1))
            await_port(site, rack.name, "tap0", uuid_of(1))
            assert outcome(former) == str(uuid_of(1))
            site.end(signal.SIGTERM)
            site.configure(PLENTY)
            site.start()
            assert remains(rack, site) == []
            for number in range(3):
                plug(site, site.lab.host, f"tap{number}", uuid_of(2 + number))
                await_port(site, "", f"tap{number}", uuid_of(2 + number))
            assert outcome(former, timeout=0.3) == "timeout"

    def test_teardown_leaves_nothing_in_any_namespace(self, datapath):
        with a_site(datapath) as site:
            racks = [site.lab.namespace(f"rack{number}") for number in range(3)]
            for number, rack in enumerate(racks):
                plug(site, rack, "tap0", uuid_of(number))
                await_port(site, rack.name, "tap0", uuid_of(number))
            site.end(signal.SIGTERM)
            assert all(remains(rack, site) for rack in racks), "it stays, refusing"
            site.verb("teardown")
            assert [remains(rack, site) for rack in racks] == [[], [], []]

    def test_a_namespace_whose_name_went_while_no_agent_ran(self, datapath):
        with a_site(datapath) as site:
            path = f"{site.lab.prefix}-rack9"
            subprocess.run(["ip", "netns", "add", path], check=True)
            wait_until(lambda: Path("/run/netns", path).exists(), "it")
            subprocess.run(["ip", "-n", path, "link", "add", "tap0", "type", "bridge"], check=True)
            await_port(site, path, "tap0", None)
            site.end(signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", path], check=True)
            site.start()
            assert site.api.ports() == []


class TestTheOtherDatapath:
    @pytest.mark.parametrize(("first", "then"), [("ebpf", "nft"), ("nft", "ebpf")])
    def test_takes_over_in_every_namespace(self, first, then):
        with a_site(first) as site:
            rack = site.lab.namespace("rack1")
            here, there = plug(site, site.lab.host, "tap0", uuid_of(1)), plug(site, rack, "tap0", uuid_of(2))
            shut = plug(site, rack, "tap1", uuid_of(3))
            site.disable(uuid_of(3))
            for netns, tap, number in (("", "tap0", 1), (rack.name, "tap0", 2), (rack.name, "tap1", 3)):
                await_port(site, netns, tap, uuid_of(number))
            site.end(signal.SIGTERM)
            site.datapath = then
            site.start()
            await_outcome(here, str(uuid_of(1)))
            await_outcome(there, str(uuid_of(2)))
            assert outcome(shut) == "refused"
            filters = [link for link in ("tap0", "tap1") if site.name in of_tc(rack, link)]
            tables = [line for line in of_nft(rack, site) if "netdev" in line]
            assert (bool(filters), bool(tables)) == ((True, False) if then == "ebpf" else (False, True))


class TestTheNamespacesName:
    """The source `netns`."""

    IDENTITY = 'sources = ["netns"]\nnetns_prefix = "{}-"\n'

    @pytest.fixture
    def site(self, lab: Lab) -> Iterator[Hypervisor]:
        identity = self.IDENTITY.format(lab.prefix)
        with Hypervisor(lab, PLENTY + f'namespaces = ["{lab.prefix}-*"]\n', identity=identity) as site:
            site.start()
            yield site

    def test_a_veth_into_it_and_taps_in_it(self, lab, site):
        guest = lab.veth_guest(str(uuid_of(1)), "veth7", **FACE)
        await_port(site, "", "veth7", uuid_of(1))
        assert outcome(guest) == str(uuid_of(1))
        rack = lab.namespace(str(uuid_of(2)))
        inner = plug(site, rack, "tap0")
        await_port(site, rack.name, "tap0", uuid_of(2))
        assert outcome(inner) == str(uuid_of(2))
        assert {port.source for port in site.api.ports()} == {"netns"}

    def test_a_number_that_is_given_again_is_another_namespaces(self, lab, site):
        """The kernel numbers namespaces anew as they go: two guests, one after the other, on one tap's name."""
        for number in (1, 2, 3):
            guest = lab.veth_guest(str(uuid_of(number)), "veth8", **FACE)
            await_port(site, "", "veth8", uuid_of(number))
            assert outcome(guest) == str(uuid_of(number))
            guest.close()
            wait_until(lambda: site.port("veth8") is None, "the tap to be gone")

    def test_a_name_that_goes_takes_the_identity_along(self, lab, site):
        name = f"{lab.prefix}-{uuid_of(5)}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        holder = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "60"])
        try:
            wait_until(lambda: "sleep" in Path(f"/proc/{holder.pid}/comm").read_text(), "the one who holds it")
            lab.host.run(["ip", "link", "add", "tapn", "type", "veth", "peer", "name", "eth0", "netns", name])
            await_port(site, "", "tapn", uuid_of(5))
        finally:
            subprocess.run(["ip", "netns", "del", name], check=True)
        try:
            await_port(site, "", "tapn", None)
        finally:
            holder.kill()
            holder.wait()
