"""What is switched off, as a guest that boots meets it: instances that are disabled, a secret that is read once, a lock
from inside, and an instance that closes when its guest is ready. By cloud-init's own stages, without systemd."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

import pytest

from shim.core.policy import Access
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, trail
from tests.vm.cloud import EC2, OPENSTACK, OPENSTACK_V6, SLOW, await_key, moments, sections
from tests.vm.debian import copied
from tests.vm.machine import Nic
from tests.vm.plug import documented, plugged

MAC = "fa:16:3e:00:00:01"
BOOT_SECONDS = 30 * SLOW

pytestmark = pytest.mark.timeout(6 * BOOT_SECONDS)


def requests_of(site: Hypervisor, instance: object) -> list[tuple[str, int]]:
    """Path and status of its requests, in order, as the access log has them."""
    lines = re.findall(r"shim\.access: (\{.*\})", site.log_text())
    return [(one["path"], one["status"]) for one in map(json.loads, lines) if one["instance"] == str(instance)]


class TestDisabled:
    def test_cloud_init_gives_up_at_once(self, shared):
        """By 403 with the Ec2 source, by a reset with OpenStack's: no second attempt, and the boot goes on. (How long
        that takes is the machine's matter; attempts that are repeated would be seen.)"""
        forbidden, reset = uuid_of(1), uuid_of(2)
        shared.disable(forbidden, Access.FORBID)
        shared.disable(reset, Access.RESET)
        with ExitStack() as stack:
            for tap, instance in (("tap1", forbidden), ("tap2", reset)):
                stack.enter_context(plugged(shared, tap, instance))
            ec2 = stack.enter_context(EC2.quick(shared, Nic("tap1", MAC), forbidden))
            openstack = stack.enter_context(OPENSTACK.quick(shared, Nic("tap2", MAC), reset))
            for machine in (ec2, openstack):
                machine.await_line(r"^=== done", BOOT_SECONDS)
            counted = shared.api.counters(instance=reset)[0].counters
        for machine in (ec2, openstack):
            at = moments(machine.text())
            spent = at["fetched"] - at["asks"]
            print(f"{shared.datapath}: gave up after {spent:.1f} s, booted at {at['booted']:.1f} s")
        assert requests_of(shared, forbidden) == [("ec2/token", 403)]
        assert requests_of(shared, reset) == []
        assert counted["disabled_reset"] == 1, counted


AFTER = """
ask() { curl -gs --retry 5 "$@"; }
status='curl -gs -o /dev/null -w %{http_code}'
report() { ask -f -X PUT --data-binary @/run/report "$URL/metashim/v1/kv/guest/$1"; }
{
    echo "== secret"; cat /root/secret
    echo "== userdata"; cat /var/lib/cloud/instance/user-data.txt
    echo "== warnings"; grep -E 'WARN|ERROR|CRIT|Traceback' /var/log/cloud-init.log
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
echo "after: $(curl -gs "$URL/latest/meta-data/instance-id"; echo $?)"
"""
OWN = "#cloud-config\nssh_genkeytypes: [ed25519]\nruncmd: [[touch, /run/ran]]\n"
SECRET = b"#!/bin/sh\necho 'the secret came' >/root/secret\n"


class TestSecretLockReady:
    def test_a_guest_that_boots_twice(self, shared, tmp_path):
        """First with the secret, then without it; then it locks its user-data, and says that it is ready."""
        instance = uuid_of(3)
        documented(shared, instance, name="web-3", user_data=OWN)
        add(shared, f"instance:{instance}", "join", SECRET, order=100, reads="once")
        shared.api.set_auto(instance, {"how": "reset", "on_ready": True})
        # The address of link-local guests on one datapath, of static ones on the other.
        cloud = OPENSTACK_V6 if shared.datapath == "nft" else OPENSTACK
        disk, nic = copied(tmp_path / "disk"), Nic("tap3", MAC)
        with plugged(shared, "tap3", instance):
            with cloud.quick(shared, nic, instance, AFTER, disk) as machine:
                first = sections(await_key(shared, instance, "guest/first", BOOT_SECONDS, machine))
                machine.wait(BOOT_SECONDS)
                at = moments(machine.text())
            with cloud.quick(shared, nic, instance, AFTER, disk) as machine:
                second = sections(await_key(shared, instance, "guest/second", BOOT_SECONDS, machine))
                said = machine.await_line(r"^after: (.*)$", BOOT_SECONDS).group(1)
                again = moments(machine.text())
        print(f"{shared.datapath}: booted after {at['booted']:.1f} s, the second time {again['booted']:.1f} s")
        assert first["secret"] == "the secret came"
        assert "the secret came" in first["userdata"]
        assert first["name"] == second["name"] == "web-3"
        assert "No such file" in second["secret"], "the second boot brought it again"
        assert "the secret came" not in second["userdata"]
        assert "/run/ran" in second["userdata"], "what is no secret is there at each boot"
        assert json.loads(second["result"])["v1"]["errors"] == []
        assert (second["other"], second["own"], second["rest"]) == ("403", "403", str(instance))
        assert said == "7", "curl cannot connect any more"
        policy = shared.api.policy(instance)
        assert (policy.v4, policy.v6, policy.latched) == ("reset", "reset", ["user-data"])
        who = [(row.who, row.what) for row in trail(shared, instance)]
        assert ("guest", "lock") in who
        assert ("guest", "ready") in who
