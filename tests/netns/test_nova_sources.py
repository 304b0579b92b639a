"""Sources beside the real Nova's own user-data and vendor data."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import pytest

from tests.backends.wiring import BUSY, forward_to
from tests.lab import Lab, VethGuest
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, api, enrol, parts_of
from tests.netns.say import Reply, at_once, get
from tests.netns.talk import V4, V6
from tests.nova.rig import Nova, Server, require_nova

A, B = uuid_of(1), uuid_of(2)
PATHS = ("/openstack/latest/user_data", "/latest/user-data", "/2009-04-04/user-data", "/openstack/2013-10-17/user_data")
VENDOR = "/openstack/latest/vendor_data.json"
THEIRS = b"#cloud-config\npackages: [theirs]\n"
OURS = b"#cloud-config\npackages: [ours]\n"
ZIPPED = gzip.compress(THEIRS, mtime=0)


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Hypervisor, VethGuest, VethGuest]]:
    """A guest with user-data of Nova's, in gzip, and one without any."""
    require_nova()
    with Lab() as lab:
        nova = Nova([Server(A, "blue", "one", ZIPPED), Server(B, "blue", "two")], namespace=lab.host)
        with Hypervisor(lab, forward_to("nova", nova), proxy=BUSY) as site, nova:
            site.start()
            yield site, enrol(site, "a", A), enrol(site, "b", B)


@pytest.fixture(autouse=True)
def clean(place: tuple[Hypervisor, VethGuest, VethGuest]) -> Iterator[None]:
    yield
    client = api(place[0])
    for one in client.sources():
        client.delete_source(one.scope, one.name)


def test_one_user_data_of_both(place: tuple[Hypervisor, VethGuest, VethGuest]) -> None:
    site, guest, other = place
    before = get(guest, VENDOR), get(other, VENDOR)
    for path in PATHS:
        assert get(guest, path).body == ZIPPED and get(other, path).status == 404
    add(site, "project:blue", "base", OURS, order=10)
    for path in PATHS:
        for address in (V4, V6):
            reply = get(guest, path, address)
            assert parts_of(reply.body) == [OURS, THEIRS], path
            assert get(guest, path, address, If_None_Match=reply.etag).status == 304
        assert get(other, path).body == OURS
    assert get(guest, "/openstack/latest/meta_data.json").json["uuid"] == str(A)
    assert (get(guest, VENDOR).body, get(other, VENDOR).body) == tuple(one.body for one in before)
    add(site, A, "mirror", b"#cloud-config\napt: {}\n", kind="vendor")
    found = get(guest, VENDOR).json
    assert found == {**before[0].json, "cloud-init": "#cloud-config\napt: {}\n"}
    assert get(other, VENDOR).body == before[1].body


def test_read_once(place: tuple[Hypervisor, VethGuest, VethGuest]) -> None:
    """By each instance; what is left is Nova's own word."""
    site, guest, other = place
    for path in PATHS[:2]:
        add(site, "project:blue", "secret", b"#!/bin/sh\necho hunter2\n", reads="once")
        for one, status in ((guest, 200), (other, 404)):
            found = [reply for reply in at_once([one], path, 20) if isinstance(reply, Reply)]
            assert sum(b"hunter2" in reply.body for reply in found) == 1
            rest = [reply for reply in found if b"hunter2" not in reply.body]
            assert [reply.status for reply in rest] == [status] * 19
            assert status == 404 or {reply.body for reply in rest} == {ZIPPED}
