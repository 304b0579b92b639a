"""What is switched off, as a guest that boots meets it: instances that are disabled, a secret that is read once, a lock
from inside, and an instance that closes when its guest is ready. By cloud-init's own stages, without systemd."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID

import pytest

from shim.core.policy import Access
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, trail
from tests.vm.cloud import EC2, OPENSTACK, OPENSTACK_V6, SLOW, await_key, moments, sections
from tests.vm.debian import copied
from tests.vm.machine import Machine, Nic
from tests.vm.plug import documented, plugged

MAC = "fa:16:3e:00:00:01"
BOOT_SECONDS = 30 * SLOW
FORBIDDEN, RESET, TWICE = uuid_of(1), uuid_of(2), uuid_of(3)

AFTER = """
ask() { curl -gs --retry 5 "$@"; }
status='curl -gs -o /dev/null -w %{http_code}'
report() { ask -f -X PUT --data-binary @/run/report "$URL/metashim/v1/kv/guest/$1"; }
{
    echo "== secret"; cat /root/secret
    echo "== userdata"; cat /var/lib/cloud/instance/user-data.txt
    echo "== result"; cat /run/cloud-init/result.json
    echo "== name"; hostname
} >/run/report 2>&1
if [ ! -e /root/booted ]; then
    touch /root/booted; rm -f /root/secret
    report first
    exit
fi
ask -X POST "$URL/metashim/v1/lock?prefix=user-data"
{
    echo "== other"; su -s /bin/sh nobody -c "$status $URL/openstack/latest/user_data"; echo
    echo "== own"; $status "$URL/latest/user-data"; echo
    echo "== rest"; ask "$URL/latest/meta-data/instance-id"; echo
} >>/run/report
report second
ask -X POST "$URL/metashim/v1/ready"
# The answer comes first, and the switch in the same moment.
for try in 1 2 3 4 5 6 7 8 9; do
    curl -gs "$URL/latest/meta-data/instance-id" >/dev/null; after=$?
    [ "$after" = 0 ] || break
    sleep 0.2
done
echo "after: $after"
"""
OWN = "#cloud-config\nssh_genkeytypes: [ed25519]\nruncmd: [[touch, /run/ran]]\n"
SECRET = b"#!/bin/sh\necho 'the secret came' >/root/secret\n"


@dataclass
class Twice:
    """A guest that booted with the secret, then without it, locked its user-data and said that it is ready."""

    first: dict[str, str]
    second: dict[str, str]
    after: str  # curl's status when all was closed


@pytest.fixture(scope="module")
def disabled(shared: Hypervisor) -> Iterator[list[Machine]]:
    """Guests that boot while their instances are disabled, each in the way that suits its source."""
    with ExitStack() as stack:
        machines = []
        for cloud, instance, how in ((EC2, FORBIDDEN, Access.FORBID), (OPENSTACK, RESET, Access.RESET)):
            shared.disable(instance, how)
            tap = f"tap-{how.value}"
            stack.enter_context(plugged(shared, tap, instance))
            machines.append(stack.enter_context(cloud.quick(shared, Nic(tap, MAC), instance)))
        yield machines


@pytest.fixture(scope="module")
def twice(shared: Hypervisor, disabled: list[Machine], tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """It boots beside those that are disabled: link-local on one datapath, with a static address on the other."""
    documented(shared, TWICE, name="web-3", user_data=OWN)
    add(shared, f"instance:{TWICE}", "join", SECRET, order=100, reads="once")
    shared.api.set_auto(TWICE, {"how": "reset", "on_ready": True})
    cloud = OPENSTACK_V6 if shared.datapath == "nft" else OPENSTACK
    disk = copied(tmp_path_factory.mktemp("disk") / "disk")
    with plugged(shared, "tap3", TWICE):
        with cloud.quick(shared, Nic("tap3", MAC), TWICE, AFTER, disk) as machine:
            first = sections(await_key(shared, TWICE, "guest/first", BOOT_SECONDS, machine))
            machine.wait(BOOT_SECONDS)
            told(shared, "first boot", machine)
        with cloud.quick(shared, Nic("tap3", MAC), TWICE, AFTER, disk) as machine:
            second = sections(await_key(shared, TWICE, "guest/second", BOOT_SECONDS, machine))
            after = machine.await_line(r"^after: (.*)$", BOOT_SECONDS).group(1)
            told(shared, "second boot", machine)
    disk.unlink()
    return Twice(first, second, after)


def told(site: Hypervisor, what: str, machine: Machine) -> None:
    print(f"{site.datapath}, {what}: {moments(machine.text())}")


def requests_of(site: Hypervisor, instance: UUID) -> list[tuple[str, int]]:
    """Path and status of its requests, in order, as the access log has them."""
    lines = re.findall(r"shim\.access: (\{.*\})", site.log_text())
    return [(one["path"], one["status"]) for one in map(json.loads, lines) if one["instance"] == str(instance)]


@pytest.mark.timeout(6 * BOOT_SECONDS)
class TestDisabled:
    def test_cloud_init_gives_up_at_once(self, shared, twice, disabled):
        """By 403 with the Ec2 source, by a reset with OpenStack's: no second attempt, and the boot goes on. (How long
        that takes is the machine's matter; an attempt that was repeated would be counted.)"""
        for machine in disabled:
            machine.await_line(r"^=== done", BOOT_SECONDS)
            told(shared, "disabled", machine)
        assert requests_of(shared, FORBIDDEN) == [("ec2/token", 403)]
        assert requests_of(shared, RESET) == []
        counted = shared.api.counters(instance=RESET)[0].counters
        assert counted["disabled_reset"] == 1, counted


@pytest.mark.timeout(6 * BOOT_SECONDS)
class TestTwice:
    def test_a_secret_comes_once(self, shared, twice):
        assert twice.first["secret"] == "the secret came"
        assert "the secret came" in twice.first["userdata"]
        assert "No such file" in twice.second["secret"], "the second boot brought it again"
        assert "the secret came" not in twice.second["userdata"]

    def test_cloud_init_does_not_mind(self, twice):
        for report in (twice.first, twice.second):
            assert report["name"] == "web-3"
            assert "/run/ran" in report["userdata"]
            assert json.loads(report["result"])["v1"]["errors"] == []

    def test_what_the_guest_locked_is_closed_to_all_in_it(self, shared, twice):
        assert (twice.second["other"], twice.second["own"], twice.second["rest"]) == ("403", "403", str(TWICE))
        assert shared.api.policy(TWICE).latched == ["user-data"]

    def test_all_is_closed_once_it_is_ready(self, shared, twice):
        assert twice.after == "7", "curl cannot connect any more"
        policy = shared.api.policy(TWICE)
        assert (policy.v4, policy.v6) == ("reset", "reset")
        wanted = ("read once", "lock", "ready", "disable")
        did = [(row.who, row.what) for row in trail(shared, TWICE) if row.what in wanted]
        guest, agent = "guest on tap3", "agent: the guest is ready"
        assert did == [(guest, "read once"), (guest, "lock"), (guest, "ready"), (agent, "disable")]
