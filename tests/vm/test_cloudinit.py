"""Whole boots: stock Debian guests with a static or a link-local address, no DHCP server and no router, that configure
themselves from metashim alone, on both datapaths. Two boot at a time, and all tests of a datapath look at these boots.

Each datapath has something happen meanwhile: on eBPF a guest's tap gets its instance only after it was refused, on nft
the agent is killed while a guest fetches, and started again.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.policy import Tokens
from tests.lab import Lab
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add
from tests.vm.cloud import EC2, EC2_V6, OPENSTACK, OPENSTACK_V6, SLOW, STATIC_ADDRESS, Cloud, await_key, sections
from tests.vm.machine import Machine, Nic, Tap

BOOT_SECONDS = 75 * SLOW
ASK_SECONDS = 40 * SLOW
MTU = 1400
PAIRS = {"ebpf": (EC2, OPENSTACK), "nft": (OPENSTACK_V6, EC2_V6)}

PLATFORM = b"""#cloud-config
ssh_genkeytypes: [ed25519]
runcmd: [[sh, -c, "echo platform >>/run/said"]]
write_files: [{path: /run/platform, content: "of the platform's\\n"}]
"""
"""Of one owner, for every instance; one key, as RSA's takes an emulated guest half a minute."""
PROJECT = b"""#cloud-config
runcmd: [[sh, -c, "echo project >>/run/said"]]
write_files: [{path: /run/project, content: "of the project's\\n"}]
"""
VENDOR = "#cloud-config\nbootcmd: [[sh, -c, 'echo vendor >>/run/said']]\n"
SCRIPT = "#!/bin/sh\necho script >>/run/said\n"

REPORT = """#!/bin/sh
token=$(curl -gsf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 600' '{url}/latest/api/token')
ask() { curl -gs --retry 8 -H "X-aws-ec2-metadata-token: $token" "$@"; }
{
    echo "== said"; cat /run/said /run/platform /run/project
    echo "== hostname"; hostname
    echo "== keys"; cat ~debian/.ssh/authorized_keys
    echo "== address"; ip -o address show dev eth0
    echo "== link"; ip link show dev eth0
    echo "== resolv"; resolvectl 2>/dev/null; cat /run/systemd/netif/links/* /run/systemd/network/*
    echo "== hostkey"; cat /etc/ssh/ssh_host_ed25519_key.pub
    echo "== id"; cat /var/lib/cloud/data/instance-id
    echo "== source"; cat /run/cloud-init/status.json
    echo "== warnings"; grep -E 'WARN|ERROR|CRIT|Traceback' /var/log/cloud-init.log
    echo "== up"; cut -d' ' -f1 /proc/uptime
} >/run/report
ask -f -X PUT --data-binary @/run/report '{url}/metashim/v1/kv/guest/report'
"""
"""What a guest writes back at the end of its boot."""


def report_source(cloud: Cloud) -> bytes:
    """The last one, of the guest's own: that script and a call of it."""
    lines = REPORT.replace("{url}", cloud.curl).splitlines()
    script = "\n".join(f"    {line}" for line in lines)
    written = f"- path: /run/report.sh\n  content: |\n{script}\n"
    return f"#cloud-config\nwrite_files:\n{written}runcmd: [[sh, /run/report.sh]]\n".encode()


@dataclass
class Booted:
    """A guest that is up, and what it reported."""

    site: Hypervisor
    cloud: Cloud
    instance: UUID
    number: int
    key: Path
    machine: Machine
    report: dict[str, str]
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"web-{self.number}"

    @property
    def address(self) -> str:
        """What it has at last: of network_data.json with OpenStack's metadata, else what its image gave it."""
        if self.cloud.name == "OpenStack":
            return f"192.0.2.{10 + self.number}"
        return f"fe80::f816:3eff:fe00:{self.number}%br0" if self.cloud.v6 else STATIC_ADDRESS


def mac(number: int) -> str:
    return f"fa:16:3e:00:00:{number:02x}"


def write(site: Hypervisor, cloud: Cloud, instance: UUID, number: int, public_key: str) -> None:
    """What a guest is to find."""
    document = {
        "name": f"web-{number}",
        "project_id": "blue",
        "public_keys": {"ops": public_key},
        "user_data": SCRIPT,
        "vendor_data": {"cloud-init": VENDOR},
        "networks": [
            {
                "mac": mac(number),
                "mtu": MTU,
                "addresses": [f"192.0.2.{10 + number}/24", f"2001:db8::{number}/64"],
                "routes": [{"to": "198.51.100.0/24", "via": "192.0.2.1"}],
                "dns": ["192.0.2.53"],
            }
        ],
    }
    site.api.put_document(instance, json.dumps(document).encode())
    add(site, f"instance:{instance}", "report", report_source(cloud), order=900)
    if cloud.name == "Ec2":
        site.api.set_tokens(instance, Tokens.REQUIRED)


def key_pair(folder: Path) -> tuple[Path, str]:
    """A fresh SSH key: its file, and the public one's line."""
    path = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ops", "-f", path], check=True)
    return path, path.with_suffix(".pub").read_text().strip()


def asked(site: Hypervisor, instance: UUID) -> bool:
    """Whether an answer to it is in the access log."""
    return f'"instance":"{instance}"' in site.log_text()


def refused(site: Hypervisor, tap: str) -> int:
    return site.api.counters(tap=tap)[0].counters.get("no_identity", 0)


def boot(site: Hypervisor, stack: ExitStack, folder: Path, clouds: tuple[Cloud, ...]) -> list[Booted]:
    """Boot them side by side, with what happens meanwhile on this datapath."""
    key, public = key_pair(folder)
    found = []
    add(site, "host", "base", PLATFORM, order=10, owner="platform")
    add(site, "project:blue", "base", PROJECT, order=20, owner="blue")
    late = site.datapath == "ebpf"
    for number, cloud in enumerate(clouds, 1):
        instance, tap = uuid_of(number), f"tap{number}"
        write(site, cloud, instance, number, public)
        stack.callback(Tap(site.lab.host, tap).remove)
        if not (late and number == 1):
            site.api.attach(tap, instance)
            site.await_port(tap, instance)
        machine = stack.enter_context(cloud.stock(site, Nic(tap, mac(number)), instance))
        found.append(Booted(site, cloud, instance, number, key, machine, {}))
    if late:
        site.await_port("tap1", None)
        wait_until(lambda: refused(site, "tap1") > 0, "the guest's first packet", ASK_SECONDS)
        site.api.attach("tap1", uuid_of(1))
    else:
        wait_until(lambda: asked(site, uuid_of(1)), "the guest's first request", ASK_SECONDS)
        site.kill()
        time.sleep(1)
        site.start()
    for one in found:
        one.report = sections(await_key(site, one.instance, "guest/report", BOOT_SECONDS, one.machine))
        one.seconds = time.monotonic() - one.machine.started
        clock = one.report["up"]
        print(f"{one.cloud.name} at {one.cloud.url}, {site.datapath}: {one.seconds:.0f} s, by its own clock {clock} s")
    return found


@pytest.fixture(scope="module", params=PAIRS)
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Booted]]:
    datapath = str(request.param)
    with Lab() as lab, Hypervisor(lab, PLENTY, datapath=datapath) as site, ExitStack() as stack:
        site.start()
        bridge = lab.host.index("br0")
        for address in ("10.0.0.1", "192.0.2.1"):
            lab.host.ip.addr("add", index=bridge, address=address, prefixlen=24)
        lab.host.ip.addr("add", index=bridge, address="fe80::1", prefixlen=64)
        yield boot(site, stack, tmp_path_factory.mktemp("ssh"), PAIRS[datapath])


@pytest.mark.timeout(2 * BOOT_SECONDS)
class TestStockBoot:
    def test_the_data_source_is_the_one_of_the_cloud(self, booted):
        for one in booted:
            status = json.loads(one.report["source"])["v1"]
            assert f"DataSource{one.cloud.name}" in status["datasource"]
            assert [error for stage in status.values() if isinstance(stage, dict) for error in stage["errors"]] == []
            assert one.report["id"] == str(one.instance)

    def test_user_data_of_all_owners_ran(self, booted):
        for one in booted:
            said = one.report["said"].splitlines()
            vendor = ["vendor"] if one.cloud.name == "OpenStack" else []
            assert said == [*vendor, "script", "platform", "project", "of the platform's", "of the project's"]

    def test_name_and_keys(self, booted):
        for one in booted:
            assert one.report["hostname"] == one.name
            public = one.key.with_suffix(".pub").read_text().strip()
            assert one.report["keys"].splitlines() == [public]

    def test_network_data_is_in_force(self, booted):
        for one in booted:
            if one.cloud.name == "OpenStack":
                assert f"inet {one.address}/24" in one.report["address"]
                assert f"inet6 2001:db8::{one.number}/64" in one.report["address"]
                assert f"mtu {MTU} " in one.report["link"]
                assert STATIC_ADDRESS not in one.report["address"], "what the image had for the first boot is gone"
                assert "192.0.2.53" in one.report["resolv"]
                assert "198.51.100.0/24" in one.report["resolv"]
            elif not one.cloud.v6:
                assert f"inet {STATIC_ADDRESS}/24" in one.report["address"]

    def test_login_to_the_host_key_that_the_guest_published(self, booted, tmp_path):
        for one in booted:
            known = tmp_path / "known"
            known.write_text(f"{one.address} {one.report['hostkey']}\n")
            options = {"UserKnownHostsFile": known, "StrictHostKeyChecking": "yes", "BatchMode": "yes",
                       "ConnectTimeout": 60, "IdentityFile": one.key, "IdentitiesOnly": "yes"}  # fmt: skip
            words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
            ssh = ["ssh", "-F", "none", *words, f"debian@{one.address}", "hostname"]
            done = one.site.lab.host.run(ssh, timeout=20 * SLOW)
            assert done.stdout.strip() == one.name
