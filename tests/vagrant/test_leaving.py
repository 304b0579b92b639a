"""What is left when metashim stops, when it is torn down, and how it comes again. Last, as it ends what others use."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.lab import Wire, service_frames
from tests.netns.hypervisor import uuid_of
from tests.netns.talk import ALL, outcome
from tests.vagrant.installed import BRIDGE, Installed, await_served

LEAVER, BARRED = uuid_of(21), uuid_of(22)
CLOSED = {"refused", "reset", "timeout"}


def left(site: Installed) -> list[str]:
    """What metashim has in this machine's kernel."""
    paths = [Path("/run/netns/metashim"), Path("/sys/fs/bpf/metashim")]
    tables = [line for line in site.host.run(["nft", "list", "tables"]).stdout.splitlines() if "metashim" in line]
    filters = [f"filter on {tap}" for tap in ("tap-leaver", "tap-barred") if _filtered(site, tap)]
    links = sorted(link for link in site.host.links() if link.startswith("metashim"))
    return [str(path) for path in paths if path.exists()] + tables + filters + links


def _filtered(site: Installed, tap: str) -> bool:
    return bool(site.host.run(["tc", "filter", "show", "dev", tap, "ingress"], check=False).stdout.strip())


def test_stops_is_torn_down_and_comes_at_boot(site: Installed) -> None:
    leaver, barred = site.guest("leaver", LEAVER), site.guest("barred", BARRED)
    site.metashim("disable", str(BARRED), "--how", "drop")
    assert outcome(barred, timeout=1) == "timeout"
    with Wire(site.host, BRIDGE) as behind:
        site.systemctl("stop", "metashim")
        assert site.shown("ActiveState", "Result", "NFileDescriptorStore") == {
            "ActiveState": "inactive",
            "Result": "success",
            "NFileDescriptorStore": "0",
        }
        assert [outcome(leaver, address, timeout=3) for address in ALL] == ["refused"] * 3
        assert outcome(barred, timeout=1) == "timeout"
        assert left(site), "a stop leaves the kernel's side, which refuses"
        assert not site.host.run(["pgrep", "--uid", "metashim"], check=False).stdout
        assert service_frames(behind.frames()) == []

    site.metashim("teardown")
    assert left(site) == []

    # As at a boot: nothing of it in the kernel or in /run, and no more is started than the system's usual target.
    shutil.rmtree("/run/metashim", ignore_errors=True)
    site.systemctl("start", "multi-user.target")
    site.await_workers()
    assert site.shown("ActiveState") == {"ActiveState": "active"}
    await_served(leaver, LEAVER)
    assert outcome(barred, timeout=1) == "timeout", "what was refused stays refused"
    assert re.search("tap-leaver.*serving", site.metashim("list")) is not None
