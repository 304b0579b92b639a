"""cloud-init on a hypervisor's guests: what several contributors wrote by the control API, the command line and the
watched folder, fetched through the guest's tap by cloud-init's own data sources, and made one by its own stages."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from shim.control.shapes import Ailment
from shim.core.policy import Composition
from tests.clients.boot import Boot, boot, needs_cloud_init
from tests.clients.contributors import (
    DOCUMENT,
    HOST_CONFIG,
    INSTANCE_SCRIPT,
    LARGE,
    ORDER,
    PROJECT_CONFIG,
    TEMPLATE,
    USER_DATA,
    check_large,
    check_merged,
    check_vendor,
)
from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import ask

pytestmark = needs_cloud_init

MERGED, VENDOR, LARGE_ONE = uuid_of(1), uuid_of(2), uuid_of(3)
MAC = "02:00:00:00:00:05"
LIMIT = 4096
URLS = {"4": ("http://169.254.169.254",), "6": ("http://[fd00:ec2::254]",)}


@dataclass
class Place:
    """A hypervisor whose guests all have the same MAC and address."""

    site: Hypervisor
    guests: dict[UUID, VethGuest]
    folder: Path
    boots: Path
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def boot(self, instance: UUID, datasource: str, family: str = "4") -> Boot:
        return boot(self.guests[instance], datasource, self.boots / str(next(self._count)), URLS[family])


@pytest.fixture(scope="module", params=["ebpf", "nft"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab, Hypervisor(lab, datapath=request.param) as site:
        folder = site.folder / "sources"
        (folder / "host").mkdir(parents=True)
        site.configure(f'{PLENTY}\n[sources]\ndirectory = "{folder}"\nlimit_bytes = {LIMIT}\n')
        guests = {
            instance: lab.veth_guest(f"g{number}", f"tap{number}", mac=MAC, v4="10.0.0.5/24", bridge=None)
            for number, instance in enumerate((MERGED, VENDOR, LARGE_ONE), 1)
        }
        site.start()
        _contribute(site, tmp_path_factory.mktemp("files"))
        for number, instance in enumerate(guests, 1):
            site.api.put_document(instance, DOCUMENT)
            site.api.put_source(str(instance), "hello", INSTANCE_SCRIPT, {"order": 700})
            site.api.attach(f"tap{number}", instance)
            site.await_port(f"tap{number}", instance)
        site.api.set_composition(VENDOR, Composition.VENDOR)
        site.api.put_source(str(LARGE_ONE), "large", LARGE, {"order": 900})
        yield Place(site, guests, folder, tmp_path_factory.mktemp("boots"))


def _contribute(site: Hypervisor, files: Path) -> None:
    """Each in a way of its own: a file of the command line's, and the API."""
    (files / "base").write_bytes(HOST_CONFIG)
    site.verb("userdata", "add", "host", "base", str(files / "base"), "--owner", "platform")
    site.api.put_source("project:blue", "base", PROJECT_CONFIG, {"owner": "blue"})
    (files / "motd").write_bytes(TEMPLATE)
    site.verb("userdata", "add", "tag:role=web", "motd", str(files / "motd"), "--template", "--order", "600")


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("datasource", ["OpenStack", "Ec2"])
class TestMerged:
    def test_all_contributors_in_order(self, place, datasource, family):
        check_merged(place.boot(MERGED, datasource, family), MERGED)

    def test_what_is_large_comes_as_gzip(self, place, datasource, family):
        check_large(place.boot(LARGE_ONE, datasource, family), LARGE_ONE, LIMIT)


class TestVendor:
    def test_it_is_merged_under(self, place):
        check_vendor(place.boot(VENDOR, "OpenStack"), VENDOR)

    def test_ec2_has_none(self, place):
        found = place.boot(VENDOR, "Ec2")
        assert found.raw == USER_DATA.encode()
        assert found.vendor == {}


class TestTokens:
    def test_cloud_init_brings_one_where_it_must(self, place):
        view = place.site.api.policy(MERGED)
        place.site.verb("tokens", "required", str(MERGED))
        try:
            assert place.boot(MERGED, "Ec2").user["packages"] == ORDER
            assert ask(place.guests[MERGED]).status == 401
        finally:
            place.site.verb("tokens", "default", str(MERGED))
        assert place.site.api.policy(MERGED).tokens == view.tokens


@pytest.mark.parametrize("datasource", ["OpenStack", "Ec2"])
class TestReadOnce:
    def test_the_first_boot_has_it_and_no_other(self, place, datasource):
        secret = b"#cloud-config\npackages: [secret-package]\n"
        place.site.api.put_source(str(MERGED), "secret", secret, {"order": 800, "reads": "once"})
        assert place.boot(MERGED, datasource).user["packages"] == [*ORDER, "secret-package"]
        check_merged(place.boot(MERGED, datasource), MERGED)


class TestTheWatchedFolder:
    def test_a_file_is_in_the_next_boot_and_gone_with_it(self, place):
        file = place.folder / "host/650-late.yaml"
        file.write_text("#cloud-config\npackages: [late-package]\n")
        self._await(place, "late")
        assert place.boot(MERGED, "OpenStack").user["packages"] == [*ORDER, "late-package"]
        assert place.boot(VENDOR, "OpenStack").vendor["packages"][-1] == "late-package"
        file.unlink()
        self._await(place, "late", there=False)
        check_merged(place.boot(MERGED, "OpenStack"), MERGED)

    def test_a_file_with_a_fault_stays_as_it_was(self, place):
        file = place.folder / "host/650-late.yaml"
        file.write_text("#cloud-config\npackages: [late-package]\n")
        self._await(place, "late")
        file.with_name("650-late.yaml.options.toml").write_text('kind = "vendr"\n')
        self._await_ailment(place)
        assert place.boot(MERGED, "OpenStack").user["packages"] == [*ORDER, "late-package"]
        place.site.end(signal.SIGTERM)
        place.site.start()
        self._await_ailment(place)
        assert place.boot(MERGED, "OpenStack").user["packages"] == [*ORDER, "late-package"]
        file.with_name("650-late.yaml.options.toml").unlink()
        file.unlink()
        self._await(place, "late", there=False)
        wait_until(lambda: not self._ailments(place), "its end")

    def _await_ailment(self, place: Place) -> None:
        what = "host/650-late.yaml.options.toml: kind is not what it can be; its last good version holds"
        wait_until(lambda: what in [ailment.what for ailment in self._ailments(place)], "the ailment")

    def _ailments(self, place: Place) -> list[Ailment]:
        return [found for found in place.site.api.status().ailments if found.part.startswith("sources")]

    def _await(self, place: Place, name: str, there: bool = True) -> None:
        """What the guest itself sees of the sources."""

        def seen() -> bool:
            listed = json.loads(ask(place.guests[MERGED], path="/metashim/v1/sources/?alt=json").body)
            return any(name in source["id"] for source in listed) is there

        wait_until(seen, f"{name} to be {there}")
