"""What is switched off: by path, by the guest itself, by time, by what was read. And who can open it again."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.lab import VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.say import get, request, say
from tests.netns.talk import ALL, ID, V4, V6, await_outcome, connect, outcome

A, B = uuid_of(1), uuid_of(2)
LOCK = "/metashim/v1/lock"
DOCUMENT = '{"name": "web", "user_data": "#!/bin/sh\\n", "meta": {"enable-guest-attributes": "TRUE"}}'


@pytest.fixture
def guest(site: Hypervisor, datapath: str) -> VethGuest:
    site.datapath = datapath
    site.start()
    made = site.lab.veth_guest("locks", "taplocks", mac="02:00:00:00:00:07", v4="10.0.0.7/24", v6="fd00:1::7/64")
    other = site.lab.veth_guest("other", "tapother", mac="02:00:00:00:00:07", v4="10.0.0.7/24", v6="fd00:1::7/64")
    site.api.attach(made.tap, A)
    site.api.attach(other.tap, B)
    site.await_port(made.tap, A)
    site.await_port(other.tap, B)
    site.api.put_document(A, DOCUMENT.encode())
    made.other = other
    return made


def locked(guest: VethGuest) -> bool:
    return [outcome(guest, address) for address in ALL] == ["refused"] * 3


def test_a_path_is_closed_in_all_its_spellings(site: Hypervisor, guest: VethGuest) -> None:
    assert get(guest, "/latest/user-data").status == 200
    site.verb("disable", str(A), "--path", "/latest/user-data")
    for path in ("/latest/user-data", "/latest/user-data/", "/2009-04-04/user-data", "/1.0/user-data",
                 "/lat%65st/user-data", "/latest/user-data?x=1"):  # fmt: skip
        assert get(guest, path).status == 403, path
    assert get(guest, "/openstack/latest/user_data").status == 200
    assert get(guest, ID).status == 200
    site.verb("disable", str(A), "--path", "user-data")
    assert get(guest, "/openstack/2018-08-27/user_data").status == 403
    assert get(guest, "/metashim/v1/user-data").status == 403
    recursive = get(guest, "/computeMetadata/v1/?recursive=true", Metadata_Flavor="Google")
    assert recursive.status == 200 and b"#!/bin/sh" not in recursive.body
    site.verb("enable", str(A), "--path", "user-data", "--path", "/latest/user-data")
    assert get(guest, "/latest/user-data").status == get(guest, "/openstack/latest/user_data").status == 200


@on_both
class TestLock:
    def test_a_guest_that_locks_itself_stays_locked(self, site: Hypervisor, guest: VethGuest) -> None:
        assert say(guest, "POST", LOCK).status == 204
        await_outcome(guest, "refused", seconds=3)
        assert locked(guest)
        self.tries_to_open(guest)
        assert outcome(guest.other) == str(B), "its neighbour notices nothing"
        done = site.verb("enable", str(A), check=False)
        assert done.returncode == 6 and "unlock" in done.stderr
        assert locked(guest)

        os.kill(site.worker, signal.SIGKILL)
        site.await_workers()
        assert locked(guest)
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT):
            site.end(number)
            assert locked(guest)
            site.start()
            site.await_port(guest.tap, A)
            assert locked(guest)
        self.tries_to_open(guest)

        assert "lock" in site.verb("audit", str(A)).stdout
        assert "locked" in site.verb("show", str(A)).stdout.lower()
        site.verb("unlock", str(A))
        await_outcome(guest, str(A), V4)
        await_outcome(guest, str(A), V6)
        assert "unlock" in site.verb("audit", str(A)).stdout

    @staticmethod
    def tries_to_open(guest: VethGuest) -> None:
        for method, path in (
            ("DELETE", LOCK), ("PUT", LOCK), ("POST", LOCK + "?prefix=/latest"), ("PATCH", LOCK),
            ("POST", "/metashim/v1/unlock"), ("DELETE", "/metashim/v1/lock?prefix=/"),
        ):  # fmt: skip
            for address in (V4, V6):
                with pytest.raises(OSError):
                    say(guest, method, path, address=address, timeout=1)

    def test_a_tap_that_comes_again_is_still_locked(self, site: Hypervisor, guest: VethGuest) -> None:
        """A guest that is rebooted, or started anew: its tap goes and comes, the instance is the same."""
        assert say(guest, "POST", LOCK).status == 204
        await_outcome(guest, "refused", seconds=3)
        site.api.detach(guest.tap)
        site.await_port(guest.tap, None)
        site.api.attach(guest.tap, A)
        site.await_port(guest.tap, A)
        assert locked(guest)


def test_a_prefix_can_be_locked_and_only_the_host_opens_it(site: Hypervisor, guest: VethGuest) -> None:
    assert say(guest, "POST", f"{LOCK}?prefix=/latest/user-data").status == 204
    assert get(guest, "/latest/user-data").status == 403
    assert get(guest, LOCK).body == b"/latest/user-data\n"
    assert get(guest, ID).status == 200
    for method in ("DELETE", "PUT", "PATCH", "POST"):
        say(guest, method, LOCK + "?prefix=")
    site.end(signal.SIGKILL)
    site.start()
    assert get(guest, "/2009-04-04/user-data").status == 403

    site.verb("unlock", str(A), "/latest/user-data")
    assert get(guest, "/latest/user-data").status == 200


def test_a_guests_lock_is_answered_although_it_ends_its_access(site: Hypervisor, guest: VethGuest) -> None:
    with connect(guest) as sock:
        sock.sendall(request("POST", LOCK))
        assert sock.recv(1000).startswith(b"HTTP/1.1 204 ")
    assert outcome(guest) in ("403", "refused", "reset"), "from then on"


@on_both
class TestAuto:
    def test_when_the_guest_is_ready(self, site: Hypervisor, guest: VethGuest) -> None:
        site.verb("auto", str(A), "--on-ready")
        assert get(guest, ID).status == 200
        assert say(guest, "POST", "/metashim/v1/ready").status == 204
        await_outcome(guest, "refused", seconds=3)
        assert locked(guest)
        site.verb("enable", str(A))
        await_outcome(guest, str(A))

    def test_once_user_data_was_read(self, site: Hypervisor, guest: VethGuest) -> None:
        site.verb("auto", str(A), "--on-read", "--how", "403")
        assert get(guest, "/latest/meta-data/").status == 200
        assert get(guest, "/latest/user-data").body == b"#!/bin/sh\n"
        await_outcome(guest, "403", seconds=3)

    def test_after_a_time_also_while_no_agent_runs(self, site: Hypervisor, guest: VethGuest) -> None:
        site.verb("auto", str(A), "--after", "1s")
        assert get(guest, ID).status == 200
        await_outcome(guest, "refused", seconds=4)
        site.verb("enable", str(A))
        await_outcome(guest, str(A))
        site.verb("auto", str(A), "--after", "2s")
        site.end(signal.SIGKILL)
        time.sleep(2.1)
        assert outcome(guest) == "403", "the worker sees to it"
        site.start()
        await_outcome(guest, "refused", seconds=4)
        assert "disable" in site.verb("audit", str(A)).stdout

    def test_what_came_about_while_the_agent_died_is_done_by_the_next(self, site: Hypervisor, guest: VethGuest) -> None:
        site.verb("auto", str(A), "--on-ready")
        assert say(guest, "POST", "/metashim/v1/ready").status == 204
        site.end(signal.SIGKILL)  # before the kernel was told
        site.start()
        wait_until(lambda: outcome(guest) == "refused", "the next agent to disable it")
