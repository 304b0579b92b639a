"""Guests of libvirt: a whole hypervisor and a real libvirtd, which is killed, hangs, and comes back."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest

from tests.backends.nginx import Nginx
from tests.backends.visit import Visit
from tests.backends.wiring import forward_to
from tests.lab import Lab, TapGuest
from tests.lab.namespace import wait_until
from tests.lab.proc import command_line
from tests.netns.conftest import PLENTY, on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.libvirtd import DAEMON, EMULATOR, Libvirtd, behind, interface, nova
from tests.netns.talk import Talk, connect

SECONDS = 20.0
PART = "identity source libvirt"

_number = itertools.count(1)


class Site(Hypervisor):
    """One whose lab has a libvirtd and its domains in it, which are not the agent's to end."""

    def left_behind(self) -> list[str]:
        others = {f"process {pid}" for pid in self.lab.host.pids() if not _is_ours(pid)}
        return [what for what in super().left_behind() if what not in others]


def _is_ours(pid: int) -> bool:
    words = command_line(pid)
    return bool(words) and not words.startswith((DAEMON.encode(), EMULATOR.encode()))


@pytest.fixture(scope="module")
def ground() -> Iterator[tuple[Lab, Libvirtd]]:
    """A hypervisor's network and a libvirtd, for all tests: what QEMU can do is asked only once."""
    with Lab() as lab, Libvirtd(lab.host) as libvirtd:
        yield lab, libvirtd


@pytest.fixture
def libvirtd(ground) -> Iterator[Libvirtd]:
    """Well at the start of a test, without domains."""
    _, libvirtd = ground
    if libvirtd.virsh("list", check=False).returncode:
        libvirtd.kill()
        libvirtd.start()
    wait_until(lambda: not libvirtd.domains(), "libvirtd to see that the domains of the test before ended")
    yield libvirtd
    libvirtd.end_all()


def identity(libvirtd: Libvirtd, *, files: bool = True) -> str:
    state = libvirtd.state if files else ""
    return f'sources = ["operator", "libvirt"]\nlibvirt_uri = "{libvirtd.uri}"\nlibvirt_state = "{state}"\n'


@pytest.fixture
def site(ground, libvirtd) -> Iterator[Hypervisor]:
    """Not started yet."""
    with Site(ground[0], PLENTY, identity=identity(libvirtd)) as site:
        yield site


@pytest.fixture
def tap() -> str:
    return f"tapl{next(_number)}"


def complaint(site: Hypervisor) -> str:
    """What the agent says is wrong with the source."""
    return "; ".join(one.what for one in site.api.status().ailments if one.part == PART)


def is_well(site: Hypervisor) -> None:
    wait_until(lambda: complaint(site) == "", f"no complaint but {complaint(site)!r}", SECONDS)


def is_unwell(site: Hypervisor, *words: str) -> None:
    wait_until(lambda: all(word in complaint(site) for word in words), f"complaints of {words}", SECONDS)


def is_gone(site: Hypervisor, tap: str) -> None:
    """The tap, and what was known of it: another one of that name is nobody's."""
    wait_until(lambda: site.port(tap) is None, f"{tap} to be gone", SECONDS)
    with contextlib.closing(TapGuest(site.lab.host, tap)):
        site.await_port(tap, None, SECONDS)
    wait_until(lambda: site.port(tap) is None, f"{tap} to be gone again", SECONDS)


PORT = "6e2bf5d4-22aa-4e1a-9d1e-000000000001"
PORTS = f'<nova:port uuid="{PORT}"><nova:ip type="fixed" address="10.0.0.77" ipVersion="4"/></nova:port>'


@on_both
def test_a_domain_is_served_as_itself_and_a_backend_is_told_its_project(ground, libvirtd, datapath, tap):
    lab, _ = ground
    with Nginx(unix=True) as nginx:
        headers = 'headers = { "X-Metashim-Instance" = "{instance}", "X-Metashim-Project" = "{project} {address}" }\n'
        settings = forward_to("http", nginx) + headers
        with Site(lab, settings, identity=identity(libvirtd), datapath=datapath) as site:
            site.start()
            is_well(site)
            libvirtd.create("one", uuid_of(1), interface(tap), nova("blue", PORTS))
            port = site.await_port(tap, uuid_of(1), SECONDS)
            assert port.source == "libvirt"
            with behind(lab, tap) as guest, Visit(connect(guest)) as visit:
                assert visit.ask("/who").body == f"{uuid_of(1)} blue 10.0.0.77 GET /who".encode()
            libvirtd.end("one")
            is_gone(site, tap)


@pytest.mark.parametrize("files", [True, False], ids=["with-files", "events-alone"])
def test_domains_and_their_interfaces_come_and_go(ground, libvirtd, site, tap, files):
    lab, _ = ground
    site.configure(PLENTY, identity=identity(libvirtd, files=files))
    site.start()
    usb = interface(tap + "u", "52:54:00:00:00:02", "usb-net")
    libvirtd.create("one", uuid_of(1), interface(tap))
    libvirtd.create("two", uuid_of(2), interface(tap + "b"))
    site.await_port(tap, uuid_of(1), SECONDS)
    site.await_port(tap + "b", uuid_of(2), SECONDS)
    libvirtd.attach("one", usb)
    site.await_port(tap + "u", uuid_of(1), SECONDS)
    with behind(lab, tap) as guest, Talk(guest) as talk:
        assert talk.ask().body == str(uuid_of(1))
        libvirtd.detach("one", usb)
        is_gone(site, tap + "u")
        assert talk.ask().body == str(uuid_of(1))
    libvirtd.virsh("destroy", "one")
    is_gone(site, tap)
    libvirtd.create("three", uuid_of(3), interface(tap))
    site.await_port(tap, uuid_of(3), SECONDS)
    with behind(lab, tap) as guest, Talk(guest) as talk:
        assert talk.ask().body == str(uuid_of(3))
    assert complaint(site) == ""


def test_libvirtd_dies_and_comes_back(ground, libvirtd, site, tap):
    lab, _ = ground
    site.start()
    libvirtd.create("one", uuid_of(1), interface(tap))
    libvirtd.create("two", uuid_of(2), interface(tap + "b"))
    site.await_port(tap, uuid_of(1), SECONDS)
    site.await_port(tap + "b", uuid_of(2), SECONDS)
    with behind(lab, tap) as guest, Talk(guest) as talk:
        libvirtd.kill()
        is_unwell(site, "libvirt", "its state files tell", "since 2", "the last known mapping holds")
        assert talk.ask().body == str(uuid_of(1))
        assert site.port(tap).instance == uuid_of(1)
        libvirtd.end("two")  # nobody hears of it
        wait_until(lambda: site.port(tap + "b") is None, "the tap's end", SECONDS)
        libvirtd.start()
        is_well(site)
        is_gone(site, tap + "b")
        assert talk.ask().body == str(uuid_of(1))
        libvirtd.create("three", uuid_of(3), interface(tap + "b"))
        site.await_port(tap + "b", uuid_of(3), SECONDS)
        libvirtd.virsh("metadata", "one", "urn:x", "--key", "x", "--set", "<a/>")
        assert talk.ask().body == str(uuid_of(1))


def test_an_agent_starts_without_libvirtd(ground, libvirtd, site, tap):
    lab, _ = ground
    libvirtd.create("one", uuid_of(1), interface(tap), nova("blue"))
    libvirtd.kill()
    site.start()
    site.await_port(tap, uuid_of(1), SECONDS)
    is_unwell(site, "its state files tell")
    with behind(lab, tap) as guest, Talk(guest) as talk:
        assert talk.ask().body == str(uuid_of(1))
        libvirtd.start()
        is_well(site)
        assert talk.ask().body == str(uuid_of(1))


def test_libvirtd_hangs(ground, libvirtd, site, tap):
    """Nobody waits for it: neither those who ask the agent, nor an agent that starts, nor a guest."""
    lab, _ = ground
    libvirtd.create("one", uuid_of(1), interface(tap))
    with libvirtd.stopped():
        site.start()
        site.await_port(tap, uuid_of(1), SECONDS)
        is_unwell(site, "it does not answer")
    is_well(site)
    with behind(lab, tap) as guest, Talk(guest) as talk, libvirtd.stopped():
        began = time.monotonic()
        while "it does not answer any more" not in complaint(site):
            asked = time.monotonic()
            site.api.attach("tap-nobody", uuid_of(7))
            assert talk.ask().body == str(uuid_of(1))
            assert time.monotonic() - asked < 2
            assert time.monotonic() - began < 40
            time.sleep(0.2)
    is_well(site)
    libvirtd.create("two", uuid_of(2), interface(tap + "b"))
    site.await_port(tap + "b", uuid_of(2), SECONDS)


def test_a_domain_that_says_nonsense_costs_no_other_and_may_mend(libvirtd, site, tap):
    site.start()
    libvirtd.create("o'dd &amp; \u00e9", uuid_of(1), interface(tap), nova("two words", name="a&#10;b"))
    libvirtd.create("two", uuid_of(2), interface(tap + "b"), nova("blue"))
    site.await_port(tap + "b", uuid_of(2), SECONDS)
    is_unwell(site, "domain o'dd & \u00e9", "'two words' is not a project's id")
    assert site.port(tap).instance is None
    libvirtd.virsh(
        "metadata", str(uuid_of(1)), "http://openstack.org/xmlns/libvirt/nova/1.1", "--live", "--key", "nova",
        "--set", nova("red").replace("nova:", "").replace("xmlns:nova", "xmlns:n"),
    )  # fmt: skip
    site.await_port(tap, uuid_of(1), SECONDS)
    is_well(site)
