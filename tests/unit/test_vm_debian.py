"""What is pure of the Debian guests of tests/vm: what is laid upon their disk, and what their words mean."""

from __future__ import annotations

import stat
from uuid import UUID

import pytest

from tests.vm.cloud import EC2, EC2_V6, OPENSTACK, OPENSTACK_V6, moments, sections
from tests.vm.debian import laid

A = UUID("00000001-aaaa-4aaa-8aaa-000000000001")


class TestLaid:
    def test_folders_come_before_what_is_in_them_and_once(self):
        found = [entry.path for entry in laid({"/etc/a/one": "", "/etc/a/two": "", "/root/three": ""})]
        assert found == [
            "prepared", "prepared/etc", "prepared/etc/a", "prepared/etc/a/one", "prepared/etc/a/two",
            "prepared/root", "prepared/root/three",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "kind", "rights", "data"),
        [
            ("words\n", stat.S_IFREG, 0o644, b"words\n"),
            ("#!/bin/sh\n", stat.S_IFREG, 0o755, b"#!/bin/sh\n"),
            ("-> /dev/null", stat.S_IFLNK, 0o777, b"/dev/null"),
        ],
    )
    def test_kinds(self, text, kind, rights, data):
        entry = laid({"/x": text})[-1]
        assert (stat.S_IFMT(entry.mode), stat.S_IMODE(entry.mode), entry.data) == (kind, rights, data)


def test_sections_of_a_report():
    assert sections("== one\na\nb\n== two\n== three\nc") == {"one": "a\nb", "two": "", "three": "c"}


def test_the_last_boots_moments_count():
    said = "=== asks 1.5\nwords\n=== booted 20.25\n[ 3.0] === asks 9\n=== asks 2.0\n"
    assert moments(said) == {"asks": 2.0, "booted": 20.25}


def test_the_firmware_tells_the_clouds_apart():
    wanted = ((EC2, "uuid=ec2"), (EC2_V6, "serial=ec2"), (OPENSTACK, "OpenStack Nova"), (OPENSTACK_V6, str(A)))
    for cloud, words in wanted:
        (said,) = cloud.smbios(A)
        assert words in said


def test_curl_is_told_the_zone_as_it_wants_it():
    assert OPENSTACK_V6.curl == "http://[fe80::a9fe:a9fe%25eth0]"
    assert EC2.curl == EC2.url
