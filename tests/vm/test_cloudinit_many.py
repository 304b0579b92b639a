"""Ten Debian guests at once, all with one address and one MAC: each boots as itself."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from tests.netns.hypervisor import uuid_of
from tests.netns.live import add
from tests.vm.cloud import OPENSTACK, SLOW, await_key, sections
from tests.vm.machine import Nic
from tests.vm.plug import documented, plugged

MAC = "fa:16:3e:00:00:01"
GUESTS = range(11, 21)
BOOT_SECONDS = 120 * SLOW
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1wDbBrW7yQlkXnHVEyVwyXkRGVqXUbXVzRqXrUq1nX"

BASE = b"#cloud-config\nssh_genkeytypes: [ed25519]\nruncmd: [[sh, -c, 'echo all >>/run/said']]\n"

AFTER = """
{
    echo "== name"; hostname
    echo "== keys"; cat ~debian/.ssh/authorized_keys
    echo "== said"; cat /run/said
    echo "== id"; cat /var/lib/cloud/data/instance-id
} >/run/report
curl -gsf --retry 5 -X PUT --data-binary @/run/report "$URL/metashim/v1/kv/guest/report"
"""


@pytest.mark.parametrize("datapath", ["ebpf"], indirect=True, scope="module")
@pytest.mark.timeout(2 * BOOT_SECONDS)
def test_ten_guests_of_one_address_boot_as_themselves(shared):
    add(shared, "host", "base", BASE)
    start = time.monotonic()
    with ExitStack() as stack:
        machines = {}
        for number in GUESTS:
            own = f"#!/bin/sh\necho only {number} >>/run/said\n"
            keys = {"ops": f"{KEY} {number}"}
            documented(shared, uuid_of(number), name=f"web-{number}", user_data=own, public_keys=keys)
            stack.enter_context(plugged(shared, f"tap{number}", uuid_of(number)))
            machine = OPENSTACK.quick(shared, Nic(f"tap{number}", MAC), uuid_of(number), AFTER)
            machines[number] = stack.enter_context(machine)
        for number, machine in machines.items():
            report = sections(await_key(shared, uuid_of(number), "guest/report", BOOT_SECONDS, machine))
            assert report["name"] == f"web-{number}"
            assert report["keys"] == f"{KEY} {number}"
            assert report["said"].splitlines() == [f"only {number}", "all"]
            assert report["id"] == str(uuid_of(number))
        print(f"{len(machines)} guests in {time.monotonic() - start:.0f} s")
