"""What Open vSwitch's external_ids say, and what is told of a table of them."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.identity import external_ids
from shim.identity.external_ids import Interfaces, Reading, claim_of
from shim.identity.said import TROUBLE_MAX, Claim, Said, applied, decode, encode

ONE, TWO = "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60", "0aa2d71e-9b41-4c88-9038-e4d042b6502a"
PORT, MAC = "519d7cc4-75b2-4f6a-9b1f-000000000001", "fa:16:3e:50:1b:5b"
QVO, TAP = f"qvo{PORT[:11]}", f"tap{PORT[:11]}"
NOVA = {"vm-uuid": ONE, "iface-id": PORT, "attached-mac": MAC, "iface-status": "active"}
LIBVIRT = {"vm-id": ONE, "iface-id": PORT, "attached-mac": MAC, "ifname": "vnet3", "iface-status": "active"}


def row(name, **ids):
    pairs = [[key.replace("_", "-"), value] for key, value in ids.items()]
    return {"new": {"name": name, "external_ids": ["map", pairs]}}


GONE = {"old": {"name": "as it was"}}


def told(interfaces):
    claims, gone = interfaces.news()
    return {claim.tap: claim.instance for claim in claims}, [tap for _, tap in gone]


class TestOneInterface:
    @pytest.mark.parametrize("ids", [NOVA, LIBVIRT])
    def test_as_nova_and_as_libvirt_write_it(self, ids):
        assert claim_of("vnet3", ids) == Reading(Claim(tap="vnet3", instance=ONE, port=PORT, mac=MAC))

    @pytest.mark.parametrize("key", ["project-id", "neutron:project-id"])
    def test_a_project(self, key):
        assert claim_of("tap1", NOVA | {key: "5f1d0e2c9a3b"}).claim.project == "5f1d0e2c9a3b"

    def test_the_first_of_two_projects(self):
        claim, trouble, _ = claim_of("tap1", NOVA | {"neutron:project-id": "second", "project-id": "first"})
        assert (claim.project, trouble) == ("first", "")

    @pytest.mark.parametrize("text", [ONE.upper(), ONE.replace("-", ""), f" {ONE} "])
    def test_a_uuid_in_other_spellings(self, text):
        assert claim_of("tap1", {"vm-uuid": text}).claim == Claim(tap="tap1", instance=ONE)

    def test_a_mac_in_capitals(self):
        assert claim_of("tap1", NOVA | {"attached-mac": MAC.upper()}) == claim_of("tap1", NOVA)

    @pytest.mark.parametrize(
        "ids",
        [{}, {"iface-id": PORT, "attached-mac": MAC}, {"vm-uuid": "", "vm-id": ""}, {"xs-vif-uuid": ONE}],
    )
    def test_who_names_no_instance_says_nothing(self, ids):
        assert claim_of("tap1", ids) == Reading(None, "")

    @pytest.mark.parametrize("name", ["patch-to-provider", "a/b", "", ".", "two words", "tap:1"])
    def test_a_name_that_no_link_has_says_nothing(self, name):
        assert claim_of(name, NOVA) == Reading(None, "")

    def test_both_keys_that_agree(self):
        assert claim_of("tap1", NOVA | {"vm-id": ONE.upper()}) == claim_of("tap1", NOVA)

    def test_both_keys_that_do_not(self):
        claim, trouble, _ = claim_of("tap1", NOVA | {"vm-id": TWO})
        assert claim is None
        assert trouble.startswith(f"interface tap1: vm-uuid is {ONE} and vm-id is {TWO}: it is nobody's until")

    @pytest.mark.parametrize("key", ["vm-uuid", "vm-id"])
    @pytest.mark.parametrize("value", ["vm-12", ONE[:-1], "\x00\n\u2028", "{" + ONE + "}", "ü" * 10_000, " "])
    def test_a_bad_instance_is_nobody_and_is_named(self, key, value):
        claim, trouble, _ = claim_of("tap1", NOVA | {key: value})
        assert claim is None
        assert trouble.startswith(f"interface tap1: {key} is '")
        assert trouble.isascii()
        assert trouble.isprintable()
        assert len(trouble) < 600

    @pytest.mark.parametrize(
        ("key", "value", "field"),
        [
            ("attached-mac", "fa:16:3e", "mac"), ("attached-mac", "\n", "mac"),
            ("project-id", "two words", "project"), ("neutron:project-id", "x" * 65, "project"),
        ],
    )  # fmt: skip
    def test_what_is_bad_beside_the_instance_is_left_out(self, key, value, field):
        claim, trouble, _ = claim_of("tap1", NOVA | {key: value})
        assert (claim.instance, getattr(claim, field)) == (ONE, "")
        assert trouble.startswith(f"interface tap1: {key} is ")
        assert "left out" in trouble

    def test_a_port_of_any_text(self):
        claim = claim_of("tap1", {"vm-id": ONE, "iface-id": "default_web\n\x00" + "x" * 10_000}).claim
        assert claim.port.startswith("default_web xxx")
        assert len(claim.port) == external_ids.PORT_CHARACTERS


class TestHybridPlug:
    def test_what_it_says_is_said_of_the_tap(self):
        assert claim_of(QVO, NOVA) == Reading(Claim(tap=TAP, instance=ONE, port=PORT, mac=MAC), derived=True)

    @pytest.mark.parametrize(
        ("name", "port"), [(TAP, PORT), ("qvo1", PORT), ("qvo", ""), (QVO[:-1], PORT[:10]), (QVO, "")]
    )
    def test_no_other_name_does(self, name, port):
        assert claim_of(name, NOVA | {"iface-id": port}).claim.tap == name

    def test_a_bad_value_is_said_of_the_interface(self):
        assert claim_of(QVO, NOVA | {"vm-uuid": "?"}).trouble.startswith(f"interface {QVO}: ")

    def test_it_comes_and_goes(self):
        interfaces = Interfaces()
        interfaces.replace({"a": row(QVO, vm_uuid=ONE, iface_id=PORT)})
        assert told(interfaces) == ({TAP: ONE}, [])
        interfaces.update({"a": GONE})
        assert told(interfaces) == ({}, [TAP])

    def test_an_interface_of_the_taps_name_is_surer(self):
        interfaces = Interfaces()
        interfaces.replace({"a": row(QVO, vm_uuid=ONE, iface_id=PORT), "b": row(TAP, vm_uuid=TWO)})
        assert told(interfaces)[0] == {TAP: TWO}
        assert interfaces.trouble == ""
        interfaces.update({"b": GONE})
        assert told(interfaces) == ({TAP: ONE}, [])

    def test_two_that_do_not_agree_are_nobody_until_one_goes(self):
        """Names are unique in Open vSwitch, but it is not for us to trust in that."""
        interfaces = Interfaces()
        interfaces.replace({"a": row(QVO, vm_uuid=ONE, iface_id=PORT)})
        interfaces.news()
        interfaces.update({"b": row(QVO, vm_uuid=TWO, iface_id=PORT)})
        assert told(interfaces) == ({}, [TAP])
        assert interfaces.trouble == f"tap {TAP}: interfaces of {TWO} and {ONE} claim it: it is nobody's"
        interfaces.update({"a": GONE})
        assert told(interfaces)[0] == {TAP: TWO}
        assert interfaces.trouble == ""


class TestTable:
    def test_news_are_told_once(self):
        interfaces = Interfaces()
        interfaces.replace({"a": row("tap1", vm_uuid=ONE), "b": row("br-int"), "c": row("tap2", vm_uuid=ONE)})
        assert told(interfaces) == ({"tap1": ONE, "tap2": ONE}, [])
        assert told(interfaces) == ({}, [])
        assert len(interfaces) == 2

    def test_a_change_and_an_end(self):
        interfaces = Interfaces()
        interfaces.replace({"a": row("tap1", vm_uuid=ONE)})
        interfaces.news()
        interfaces.update({"a": row("tap1", vm_uuid=TWO)})
        assert told(interfaces) == ({"tap1": TWO}, [])
        interfaces.update({"a": row("tap1")})
        assert told(interfaces) == ({}, ["tap1"])
        interfaces.update({"a": GONE})
        assert told(interfaces) == ({}, [])

    def test_changes_that_nobody_asked_for_meanwhile_are_one(self):
        interfaces = Interfaces()
        interfaces.replace({"a": row("tap1", vm_uuid=ONE)})
        interfaces.news()
        for instance in (TWO, ONE):
            interfaces.update({"a": row("tap1", vm_uuid=instance)})
        interfaces.update({"b": row("tap2", vm_uuid=ONE)})
        interfaces.update({"b": GONE})
        assert told(interfaces) == ({}, [])

    @pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
    def test_a_name_that_goes_to_another_row_at_once(self, order):
        """As `ovs-vsctl -- del-port tap1 -- add-port br0 tap1` does in one transaction."""
        interfaces = Interfaces()
        interfaces.replace({"a": row("tap1", vm_uuid=ONE)})
        interfaces.news()
        changes = {"a": GONE, "b": row("tap1", vm_uuid=TWO)}
        interfaces.update({key: changes[key] for key in order})
        assert told(interfaces) == ({"tap1": TWO}, [])

    def test_a_whole_table_takes_the_place_of_all_that_was(self):
        interfaces = Interfaces()
        was = {"a": row("tap1", vm_uuid=ONE), "b": row("tap2", vm_uuid=ONE), "c": row("tap3", vm_uuid="?")}
        interfaces.replace(was)
        interfaces.news()
        assert "tap3" in interfaces.trouble
        interfaces.replace({"x": row("tap2", vm_uuid=ONE), "y": row("tap4", vm_uuid=TWO)})
        assert told(interfaces) == ({"tap4": TWO}, ["tap1"])
        assert interfaces.trouble == ""

    def test_bad_ones_are_named_and_others_not_lost(self):
        interfaces = Interfaces()
        bad = {f"bad{n}": row(f"bad{n:03}", vm_uuid="x" * 1000) for n in range(200)}
        interfaces.replace(bad | {"good": row("tap1", vm_uuid=ONE)})
        assert told(interfaces) == ({"tap1": ONE}, [])
        assert interfaces.trouble.startswith("interface bad000: vm-uuid is 'xxx")
        assert interfaces.trouble.endswith("; and 195 more")
        assert len(interfaces.trouble) < TROUBLE_MAX
        interfaces.update(dict.fromkeys(bad, GONE))
        assert interfaces.trouble == ""

    def test_more_taps_than_a_source_may_name(self, monkeypatch):
        monkeypatch.setattr(external_ids, "CLAIMS_MAX", 3)
        interfaces = Interfaces()
        interfaces.replace({str(n): row(f"tap{n}", vm_uuid=ONE) for n in range(5)})
        assert set(told(interfaces)[0]) == {"tap0", "tap1", "tap2"}
        assert interfaces.trouble == "more than 3 taps: 2 are left out"
        interfaces.update({"0": GONE})
        assert told(interfaces) == ({"tap3": ONE}, ["tap0"])
        interfaces.update({"1": row("tap1", vm_uuid=TWO), "4": GONE})
        assert told(interfaces) == ({"tap1": TWO}, [])
        assert interfaces.trouble == ""

    @pytest.mark.parametrize(
        "change",
        [
            None, 7, [], {"new": None}, {"new": {}}, {"new": {"name": "tap1"}},
            {"new": {"name": 7, "external_ids": ["map", []]}},
            {"new": {"name": "tap1", "external_ids": ["set", []]}}, {"new": {"name": "tap1", "external_ids": []}},
            {"new": {"name": "tap1", "external_ids": ["map", [["vm-uuid"]]]}},
            {"new": {"name": "tap1", "external_ids": ["map", [["vm-uuid", 7]]]}},
            {"new": {"name": "tap1", "external_ids": ["map", [["vm-uuid", ONE], ["attached-mac", 7]]]}},
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("take", [Interfaces.replace, Interfaces.update])
    def test_what_is_no_row_changes_nothing(self, take, change):
        interfaces = Interfaces()
        interfaces.replace({"a": row("tap1", vm_uuid=ONE)})
        interfaces.news()
        with pytest.raises(ValueError):
            take(interfaces, {"a": change})
        assert told(interfaces) == ({}, [])


values = st.one_of(
    st.sampled_from([ONE, TWO, PORT, MAC, "", "vm-1"]), st.text(max_size=300), st.text(string.hexdigits, max_size=36)
)
names = st.one_of(
    st.sampled_from(["tap1", "tap2", QVO, TAP, "br-int"]), st.text(max_size=20)
)
keys = st.sampled_from([*NOVA, "vm-id", "project-id", "neutron:project-id", "ovn-installed"])
rows = st.one_of(
    st.just(GONE),
    st.builds(
        lambda name, ids: {"new": {"name": name, "external_ids": ["map", [*map(list, ids.items())]]}},
        names, st.dictionaries(keys, values),
    ),
)  # fmt: skip
tables = st.dictionaries(st.sampled_from("abcdef"), rows)


@given(st.lists(st.tuples(st.booleans(), tables, st.booleans()), max_size=12))
@settings(max_examples=200, deadline=None)
def test_whoever_follows_the_messages_has_the_table(steps):
    """Invariant: whatever is in the rows, each message is one that the agent takes, and all of them together say what
    the rows as they are say by themselves."""
    interfaces, rows_now, mapping, begun = Interfaces(), {}, {}, False
    for whole, table, told_now in steps:
        table = json.loads(json.dumps(table))
        if whole:
            table = {key: change for key, change in table.items() if "new" in change}
            rows_now = {}
            interfaces.replace(table)
        else:
            interfaces.update(table)
        rows_now = {key: change for key, change in (rows_now | table).items() if "new" in change}
        if told_now:
            claims, gone = interfaces.news()
            said = Said(whole=not begun, claims=claims, gone=gone, trouble=interfaces.trouble[:TROUBLE_MAX])
            mapping, begun = applied(mapping, decode(encode(said))), True
    claims, gone = interfaces.news()
    mapping = applied(mapping, decode(encode(Said(claims=claims, gone=gone))))
    fresh = Interfaces()
    fresh.replace(rows_now)
    assert mapping == applied({}, Said(whole=True, claims=fresh.news()[0]))
