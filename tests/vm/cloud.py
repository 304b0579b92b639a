"""What an operator prepares in an image, and a cloud says by its firmware, for guests that have no DHCP server.

The files are those of README's "Guests without DHCP".
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.netns.hypervisor import Hypervisor
from tests.vm.debian import RECIPE, Debian
from tests.vm.machine import Machine, Nic

V4, V6, LINK_LOCAL = "http://169.254.169.254", "http://[fd00:ec2::254]", "http://[fe80::a9fe:a9fe%eth0]"
STATIC_ADDRESS = "10.0.0.5"
EC2_SERIAL = "ec2e1916-9099-7caf-fd21-012345abcdef"
SLOW = 12.0
"""How many times longer a boot may take than on a machine that does nothing else."""

PANIC = "Kernel panic"

NETWORK = "/etc/systemd/network/80-metadata.network"
ONLY_STATIC = f"""[Match]
Type=ether

[Network]
Address={STATIC_ADDRESS}/24
LinkLocalAddressing=no
IPv6AcceptRA=no

[Route]
Destination=169.254.169.254/32
Scope=link
"""
ONLY_LINK_LOCAL = """[Match]
Type=ether

[Network]
LinkLocalAddressing=ipv6
IPv6AcceptRA=no

[Route]
Destination=fd00:ec2::254/128
"""

NO_LOCAL_STAGE = {
    "/etc/systemd/system/cloud-init-local.service": "-> /dev/null",
    "/etc/systemd/system/cloud-init.service.d/fresh.conf": (
        "[Service]\nExecStartPre=/bin/rm -f /var/lib/cloud/instance/obj.pkl\n"
    ),
}
"""cloud-init's stage before the network asks for DHCP, and where none answers has networkd go on asking. What else it
does is to forget the last boot's metadata; the stage after it takes what it finds for true."""

SOURCES = "/etc/cloud/cloud.cfg.d/95-metashim.cfg"


QUICK = """network: {config: disabled}
ssh_genkeytypes: [ed25519]
cloud_init_modules: [bootcmd, write-files, set_hostname, users-groups, ssh]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-per-boot, scripts-user, final-message]
"""
"""For boots without systemd: of cloud-init's modules those that make something of metadata."""


@dataclass(frozen=True)
class Cloud:
    """A way in which a guest finds its metadata.

    url       where it asks, and its scripts too
    prepared  what is in its image for that, but for its network
    v6        whether it has its link-local address alone; else a static IPv4 address alone
    """

    name: str
    url: str
    prepared: dict[str, str] = field(default_factory=dict)

    @property
    def v6(self) -> bool:
        return self.url != V4

    @property
    def curl(self) -> str:
        """The address for curl, which wants `%25` where cloud-init 22.4.2 wants `%`."""
        return self.url.replace("%", "%25")

    def smbios(self, instance: UUID) -> Sequence[str]:
        """What the firmware says: by this alone cloud-init knows which cloud it is in."""
        if self.name == "Ec2":
            return [f"type=1,manufacturer=Amazon EC2,product=t3.micro,uuid={EC2_SERIAL},serial={EC2_SERIAL}"]
        return [f"type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova,uuid={instance}"]

    def stock(self, site: Hypervisor, nic: Nic, instance: UUID, **hardware: Any) -> Machine:
        """Boot Debian's own way."""
        network = {NETWORK: ONLY_LINK_LOCAL if self.v6 else ONLY_STATIC}
        prepared = self.prepared | NO_LOCAL_STAGE | network
        return Debian(site.lab.host, [nic], prepared=prepared, smbios=self.smbios(instance), **hardware).start()

    def quick(
        self, site: Hypervisor, nic: Nic, instance: UUID, after: str = "", own_disk: Path | None = None, **hardware: Any
    ) -> Machine:
        """Boot by cloud-init's stages alone; then run `after` in the guest, and power off."""
        network = (
            "ip route add fd00:ec2::254/128 dev eth0\n"
            if self.v6
            else f"ip addr add {STATIC_ADDRESS}/24 dev eth0\nip route add 169.254.169.254 dev eth0\n"
        )
        prepared = self.prepared | {
            "/usr/sbin/quick": (RECIPE / "quick").read_text(),
            "/etc/quick-network": network,
            "/etc/cloud/cloud.cfg.d/99-quick.cfg": QUICK,
        }
        if after:
            prepared["/usr/sbin/after"] = f"#!/bin/sh\nURL='{self.curl}'\n{after}"
        hardware = {"memory": 256, "append": "init=/usr/sbin/quick", "smbios": self.smbios(instance)} | hardware
        return Debian(site.lab.host, [nic], prepared=prepared, **hardware).start(own_disk)


EC2_NETWORK = {"/etc/cloud/cloud.cfg.d/99-network.cfg": "network: {config: disabled}\n"}
"""EC2's metadata knows of no static address: cloud-init would ask for DHCP on each interface that it names."""

EC2 = Cloud("Ec2", V4, EC2_NETWORK)
EC2_V6 = Cloud("Ec2", V6, EC2_NETWORK | {SOURCES: f'datasource: {{Ec2: {{metadata_urls: ["{V6}"]}}}}\n'})
KEEP_ROUTE = {
    "/etc/systemd/network/10-netplan-eth0.network.d/metadata.conf": (
        "[Route]\nDestination=169.254.169.254/32\nScope=link\n"
    )
}
"""What network_data.json says takes the place of the image's network: the way to the service stays, also where there
is no gateway."""
OPENSTACK = Cloud("OpenStack", V4, KEEP_ROUTE)
OPENSTACK_V6 = Cloud(
    "OpenStack", LINK_LOCAL, {SOURCES: f'datasource: {{OpenStack: {{metadata_urls: ["{LINK_LOCAL}"]}}}}\n'}
)


def await_key(site: Hypervisor, instance: UUID, key: str, seconds: float, machine: Machine) -> str:
    """What a guest writes there, as operators see it. AssertionError, with what its console said."""
    end, after = time.monotonic() + seconds, 0
    over = False
    while not over:
        # Asked first: what it wrote before its end is there.
        over = time.monotonic() > end or not machine.alive or PANIC in machine.text()
        found = site.api.values(instance).get(key)
        if found is not None and found.value is not None:
            return found.value
        after = site.api.changes(after, 2, instance, key).next
    said = machine.text()[-6000:]
    raise AssertionError(f"{instance} did not write {key} within {seconds:.0f} s; its console:\n{said}")


def moments(console: str) -> dict[str, float]:
    """When a quick guest, in seconds since its start, was how far; of several boots the last."""
    return {word: float(at) for word, at in re.findall(r"^=== (\w+) ([\d.]+)$", console, re.MULTILINE)}


def sections(report: str) -> dict[str, str]:
    """A report's parts by their names: `== name` and what follows it."""
    return {name: text.strip() for name, text in re.findall(r"^== (\S+)\n(.*?)(?=^== |\Z)", report, re.M | re.S)}
