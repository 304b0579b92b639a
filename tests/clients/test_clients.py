"""Programs that guests run: each gets the instance's data in its own way, over every address it can speak."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.lab import Lab, VethGuest
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of

A = uuid_of(1)
PATH = "latest/meta-data/instance-id"
USER_DATA = "#cloud-config\n" + "# a line of user-data, long enough to take more than one segment\n" * 200
URLLIB = """
import sys, urllib.request
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
"""
ADDRESSES = ("169.254.169.254", "[fd00:ec2::254]")


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Hypervisor, VethGuest]]:
    with Lab() as lab, Hypervisor(lab, PLENTY) as site:
        guest = lab.veth_guest("one", "tap1", mac="02:00:00:00:00:05", v4="10.0.0.5/24")
        site.start()
        site.api.attach("tap1", A)
        lines = USER_DATA.replace("\n", "\\n")
        site.api.put_document(A, f'{{"hostname": "web1", "user_data": "{lines}"}}'.encode())
        yield site, guest


def client(name: str) -> list[str]:
    """A program's words before the URL; the test is skipped where the program is not there."""
    known = {
        "curl": ["curl", "-sSf", "-m", "5"],
        "wget": ["wget", "-q", "-T", "5", "-t", "1", "-O", "-"],
        "busybox": ["busybox", "wget", "-q", "-O", "-"],  # its -T crashes in Debian 12
        "urllib": ["/usr/bin/python3", "-c", URLLIB],
    }[name]
    if shutil.which(known[0]) is None:
        pytest.skip(f"{known[0]} is not installed")
    return known


@pytest.mark.parametrize("name", ["curl", "wget", "busybox", "urllib"])
@pytest.mark.parametrize("address", ADDRESSES)
class TestFetch:
    def test_instance_id(self, place, name, address):
        assert place[1].run([*client(name), f"http://{address}/{PATH}"]).stdout == str(A)

    def test_user_data_of_many_segments(self, place, name, address):
        assert place[1].run([*client(name), f"http://{address}/latest/user-data"]).stdout == USER_DATA

    def test_a_status_is_a_failure_to_it(self, place, name, address):
        done = place[1].run([*client(name), f"http://{address}/no/such/thing"], check=False)
        assert done.returncode != 0
        assert "404" in done.stderr or name == "wget"


class TestCurl:
    def test_link_local_with_a_zone(self, place):
        url = f"http://[fe80::a9fe:a9fe%25eth0]/{PATH}"
        assert place[1].run([*client("curl"), url]).stdout == str(A)

    def test_a_kept_connection_serves_many_urls(self, place):
        url = f"http://169.254.169.254/{PATH}"
        done = place[1].run([*client("curl"), "-w", "%{num_connects} ", *[url] * 20])
        counts = [part.rpartition(str(A))[2] for part in done.stdout.split()]
        assert counts == ["1"] + ["0"] * 19

    def test_a_disabled_instance_is_told_at_once(self, place):
        site, guest = place
        site.disable(A)
        try:
            done = guest.run([*client("curl"), f"http://169.254.169.254/{PATH}"], check=False)
        finally:
            site.enable(A)
        assert done.returncode == 7  # CURLE_COULDNT_CONNECT
