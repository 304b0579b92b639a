"""What a libvirt domain's XML says of its taps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.identity.domain import INTERFACES_MAX, XML_MAX, claims_of
from shim.identity.said import Claim

ONE = "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60"
PORT_A, PORT_B = "6e2bf5d4-22aa-4e1a-9d1e-000000000001", "0b5c7c1f-9f2e-4c3b-8f1e-000000000002"
PROJECT = "5f1d0e2c9a3b4c5d8e7f60718293a4b5"

# As Nova (2023.1, Open vSwitch) has libvirt show it, less what is of no interest here
NOVA = f"""<domain type='kvm' id='3'>
  <name>instance-0000002a</name>
  <uuid>{ONE}</uuid>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:package version="27.1.0"/>
      <nova:name>web &amp; cache 1</nova:name>
      <nova:creationTime>2026-05-04 10:11:12</nova:creationTime>
      <nova:flavor name="m1.small">
        <nova:memory>2048</nova:memory>
        <nova:disk>20</nova:disk>
        <nova:swap>0</nova:swap>
        <nova:ephemeral>0</nova:ephemeral>
        <nova:vcpus>1</nova:vcpus>
      </nova:flavor>
      <nova:owner>
        <nova:user uuid="0f0e0d0c0b0a09080706050403020100">alice</nova:user>
        <nova:project uuid="{PROJECT}">shop</nova:project>
      </nova:owner>
      <nova:root type="image" uuid="11111111-2222-4333-8444-555555555555"/>
      <nova:ports>
        <nova:port uuid="{PORT_A}">
          <nova:ip type="fixed" address="2001:db8::a" ipVersion="6"/>
          <nova:ip type="floating" address="203.0.113.9" ipVersion="4"/>
          <nova:ip type="fixed" address="10.0.0.5" ipVersion="4"/>
          <nova:ip type="fixed" address="10.0.0.6" ipVersion="4"/>
        </nova:port>
        <nova:port uuid="{PORT_B}">
          <nova:ip type="fixed" address="2001:DB8:0::B" ipVersion="6"/>
        </nova:port>
      </nova:ports>
    </nova:instance>
  </metadata>
  <memory unit='KiB'>2097152</memory>
  <sysinfo type='smbios'><system><entry name='uuid'>{PORT_A}</entry></system></sysinfo>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='bridge'>
      <mac address='FA:16:3E:00:00:0B'/>
      <source bridge='br-int'/>
      <virtualport type='openvswitch'><parameters interfaceid='{PORT_B}'/></virtualport>
      <target dev='tap0b5c7c1f-9f'/>
      <model type='virtio'/>
      <alias name='net1'/>
    </interface>
    <interface type='bridge'>
      <mac address='fa:16:3e:00:00:0a'/>
      <source bridge='br-int'/>
      <virtualport type='openvswitch'><parameters interfaceid='{PORT_A}'/></virtualport>
      <target dev='tap6e2bf5d4-22'/>
      <model type='virtio'/>
      <mtu size='1450'/>
      <alias name='net0'/>
    </interface>
    <interface type='hostdev' managed='yes'><mac address='fa:16:3e:00:00:0c'/></interface>
    <serial type='pty'><target port='0'/></serial>
    <disk type='file'><target dev='vda' bus='virtio'/></disk>
  </devices>
</domain>
"""
OLD_NOVA = re.sub(r"<nova:ports>.*</nova:ports>", "", NOVA.replace("nova/1.1", "nova/1.0"), flags=re.DOTALL)
COMMON = {"instance": ONE, "project": PROJECT, "name": "web & cache 1", "flavor": "m1.small"}
A = Claim("tap6e2bf5d4-22", address="10.0.0.5", port=PORT_A, mac="fa:16:3e:00:00:0a", **COMMON)
B = Claim("tap0b5c7c1f-9f", address="2001:db8::b", port=PORT_B, mac="fa:16:3e:00:00:0b", **COMMON)


def domain(devices: str, more: str = "", uuid: str = ONE) -> str:
    return f"<domain id='1'><name>one</name><uuid>{uuid}</uuid>{more}<devices>{devices}</devices></domain>"


def interface(tap: str, more: str = "") -> str:
    return f"<interface type='ethernet'><target dev='{tap}'/>{more}</interface>"


def nova(inner: str, version: str = "1.1") -> str:
    space = f"http://openstack.org/xmlns/libvirt/nova/{version}"
    return f'<metadata><n:instance xmlns:n="{space}">{inner}</n:instance></metadata>'


def port(uuid: str, address: str) -> str:
    return f'<n:port uuid="{uuid}"><n:ip type="fixed" address="{address}" ipVersion="4"/></n:port>'


def test_a_domain_of_nova():
    assert claims_of(NOVA) == [B, A]


def test_a_domain_of_an_older_nova_has_no_ports_to_tell_of():
    assert claims_of(OLD_NOVA) == [
        Claim("tap0b5c7c1f-9f", port=PORT_B, mac="fa:16:3e:00:00:0b", **COMMON),
        Claim("tap6e2bf5d4-22", port=PORT_A, mac="fa:16:3e:00:00:0a", **COMMON),
    ]


def test_a_domain_that_does_not_run_has_no_taps():
    assert claims_of(NOVA.replace(" id='3'", "")) == []


def test_a_state_file_holds_the_domain():
    status = f"<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE.\n-->\n\n<domstatus state='running'>{NOVA}</domstatus>"
    assert claims_of(status) == claims_of(NOVA)


def test_a_domain_of_anybody_else():
    devices = "<interface type='network'><mac address='52:54:00:00:00:01'/><target dev='vnet0'/></interface>"
    foreign = "<metadata><x:instance xmlns:x='urn:x'><x:name>no</x:name></x:instance><name>no</name></metadata>"
    assert claims_of(domain(devices, foreign)) == [Claim("vnet0", ONE, name="one", mac="52:54:00:00:00:01")]
    assert claims_of(domain("")) == []


def test_the_taps_name_tells_its_port_where_the_interface_does_not():
    plain = re.sub(r"<virtualport.*?</virtualport>", "", NOVA)
    assert claims_of(plain) == [B, A]


@pytest.mark.parametrize(
    ("taps", "ports", "found"),
    [
        (["vnet0"], [("p", "10.0.0.1")], [("p", "10.0.0.1")]),
        (["vnet0", "vnet1"], [("p", "10.0.0.1"), ("q", "10.0.0.2")], [("p", "10.0.0.1"), ("q", "10.0.0.2")]),
        (["vnet0", "vnet1"], [("p", "10.0.0.1")], [("", ""), ("", "")]),
        (["vnet0"], [("p", "10.0.0.1"), ("q", "10.0.0.2")], [("", "")]),
        (["vnet0", "tap6e2bf5d4-22"], [(PORT_A, "10.0.0.1"), ("q", "10.0.0.2")], [("", ""), (PORT_A, "10.0.0.1")]),
    ],
    ids=["one", "two", "fewer", "more", "one-by-name"],
)
def test_order_counts_only_where_nothing_contradicts_it(taps, ports, found):
    inner = f"<n:ports>{''.join(port(*one) for one in ports)}</n:ports>"
    claims = claims_of(domain("".join(map(interface, taps)), nova(inner)))
    assert [(claim.port, claim.address) for claim in claims] == found


def test_a_port_that_nova_does_not_list_is_a_port_without_address():
    named = "<virtualport type='openvswitch'><parameters interfaceid='elsewhere'/></virtualport>"
    claims = claims_of(domain(interface("tap1", named), nova(f"<n:ports>{port(PORT_A, '10.0.0.1')}</n:ports>")))
    assert [(claim.port, claim.address) for claim in claims] == [("elsewhere", "")]


def test_an_address_that_is_none_is_passed_over():
    ports = f"<n:ports>{port('p', '10.0.0.300')}</n:ports>"
    assert claims_of(domain(interface("tap1"), nova(ports)))[0].address == ""


def test_free_text_is_cut_and_cleaned():
    more = nova(f"<n:name>a&#10;b\n\x85c {'x' * 300}</n:name><n:flavor name='&#9;m1&#10;'/>")
    claim = claims_of(domain(interface("tap1"), f"<title>no&#10;{ONE}</title>" + more))[0]
    assert claim.name.startswith("a b c x")
    assert (len(claim.name), claim.flavor) == (255, "m1")


BOMB = "<!DOCTYPE d [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {chr(n + 1)} '{f'&{chr(n)};' * 10}'>" for n in range(ord("a"), ord("z"))
)


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("", "no XML"),
        ("<domain>", "no XML"),
        ("<domain><name>\x00</name></domain>", "no XML"),
        ("<network><name>default</name></network>", "no domain but <network>"),
        ("<domstatus state='running'/>", "no domain but <domstatus>"),
        (f"{BOMB}]><domain><name>&z;</name></domain>", "document type"),
        (f"<!DOCTYPE d SYSTEM 'file:///etc/passwd'>{NOVA}", "document type"),
        ("<domain><name>&z;</name></domain>", "undefined entity"),
        (f"<domain>{' ' * XML_MAX}</domain>", "characters"),
        (domain(interface("tap1"), uuid=""), "not an instance id"),
        (domain(interface("tap1"), uuid="urn:uuid:" + ONE), "not an instance id"),
        (domain(interface("tap1"), uuid=ONE + "x" * 80), "not an instance id"),
        (domain(interface("../tap1")), "not the name of an interface"),
        (domain(interface("tap" + "1" * 13)), "not the name of an interface"),
        (domain(interface("tap1") * 2), "'tap1' is there twice"),
        (domain(interface("tap1", "<mac address='x'/>")), "not a MAC address"),
        (domain(interface("tap1"), nova("<n:owner><n:project uuid='a b'/></n:owner>")), "not a project's id"),
        (domain(interface("tap1"), nova(f"<n:owner><n:project uuid='{'p' * 999}'/></n:owner>")), "not a project's id"),
        (domain("".join(interface(f"tap{n}") for n in range(INTERFACES_MAX + 1))), "more than 512 interfaces"),
    ],
    ids=lambda value: value if len(value) < 30 else "",
)
def test_what_is_no_domain_to_be_served(xml, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        claims_of(xml)


def test_depth_costs_nothing():
    deep = "<metadata>" + "<a>" * 200_000 + "</a>" * 200_000 + "</metadata>"
    assert len(claims_of(domain(interface("tap1"), deep))) == 1


def tries(xml: str) -> None:
    try:
        claims_of(xml)
    except ValueError:
        return


@given(st.text())
def test_whatever_it_is_nothing_but_a_value_error_comes(text):
    tries(text)
    tries(f"<domain>{text}</domain>")


ANYTHING = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)


@given(st.integers(0, len(NOVA)), st.integers(0, 40), ANYTHING)
def test_whatever_is_put_into_a_domain_nothing_but_a_value_error_comes(where, cut, text):
    tries(NOVA[:where] + text + NOVA[where + cut :])
