"""What is known of all domains together: which origin counts, what holds without one, and what is said of it."""

from __future__ import annotations

import pytest

from shim.identity import domains as rules
from shim.identity.domains import Domains, Reading, read
from shim.identity.said import TROUBLE_MAX, Claim, Said

ONE = "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60"
TWO = "c0ffee00-1111-4222-8333-444455556666"
A, B = Claim("tap1", ONE), Claim("tap2", TWO)
FILES = "its state files tell of domains meanwhile"


def reading(*claims: Claim) -> Reading:
    return Reading(claims)


@pytest.fixture
def domains() -> Domains:
    return Domains()


def test_what_the_connection_says_is_whole_and_then_what_changes(domains):
    assert domains.news() is None
    domains.connected({ONE: reading(A)})
    assert domains.news() == Said(whole=True, claims=(A,))
    assert domains.news() is None
    domains.changed(TWO, reading(B))
    assert domains.news() == Said(claims=(B,))
    domains.changed(ONE, reading(Claim("tap1", ONE, project="p"), Claim("tap3", ONE)))
    assert domains.news() == Said(claims=(Claim("tap1", ONE, project="p"), Claim("tap3", ONE)))
    domains.changed(ONE, None)
    domains.changed("never-heard-of", None)
    assert domains.news() == Said(gone=(("", "tap1"), ("", "tap3")))


def test_no_domain_at_all_is_said_too(domains):
    domains.connected({})
    assert domains.news() == Said(whole=True)


def test_a_connection_that_is_back_says_only_what_changed_meanwhile(domains):
    domains.connected({ONE: reading(A), TWO: reading(B)})
    domains.news()
    domains.lost("libvirtd: it ended")
    assert domains.news() == Said(trouble="libvirtd: it ended; there are no state files")
    domains.connected({TWO: reading(B)})
    assert domains.news() == Said(gone=(A.key,))


def test_a_file_tells_of_a_domain_before_the_connection_does(domains):
    domains.connected({})
    domains.news()
    domains.filed({"one.xml": reading(A)})
    assert domains.news() == Said(claims=(A,))
    domains.changed(ONE, reading(Claim("tap1", ONE, name="better")))
    assert domains.news() == Said(claims=(Claim("tap1", ONE, name="better"),))
    domains.changed(ONE, None)
    domains.filed({})
    assert domains.news() == Said(gone=(A.key,))


def test_files_are_said_before_it_is_known_whether_there_is_more(domains):
    domains.filed({"one.xml": reading(A)})
    assert domains.news() == Said(claims=(A,))
    domains.lost("no libvirtd")
    assert domains.news() == Said(whole=True, claims=(A,), trouble=f"no libvirtd; {FILES}")


def test_without_either_nothing_is_known(domains):
    domains.lost("no libvirtd")
    domains.unread("nor can /run/x be read: No such file or directory")
    said = domains.news()
    assert said == Said(trouble="no libvirtd; nor can /run/x be read: No such file or directory")
    domains.filed({})
    assert domains.news() == Said(whole=True, trouble=f"no libvirtd; {FILES}")


def test_without_a_connection_files_count_as_far_as_they_go(domains):
    held = Claim("tap9", "11111111-2222-4333-8444-555555555555")
    domains.filed({"one.xml": reading(A)})
    domains.connected({ONE: reading(Claim("tap1", ONE, name="as asked")), held.instance: reading(held)})
    domains.news()
    domains.lost("it ended")
    said = domains.news()
    assert said is not None
    assert (said.claims, said.gone) == ((A,), ())
    domains.filed({})  # it ended while nobody could be asked
    said = domains.news()
    assert said is not None
    assert (said.claims, said.gone) == ((), (A.key,))
    domains.filed({"held.xml": reading(Claim("tap10", held.instance))})
    said = domains.news()
    assert said is not None
    assert (said.claims, said.gone) == ((Claim("tap10", held.instance),), (held.key,))


def test_files_that_cannot_be_read_any_more_hold(domains):
    domains.filed({"one.xml": reading(A)})
    domains.lost("no libvirtd")
    domains.news()
    domains.unread("nor can /run/x be read: Input/output error")
    assert domains.news() == Said(trouble="no libvirtd; nor can /run/x be read: Input/output error")


def test_the_connection_wins_a_tap_over_a_file(domains):
    domains.connected({TWO: reading(Claim("tap1", TWO))})
    other = reading(Claim("tap1", "11111111-2222-4333-8444-555555555555"))
    domains.filed({"stale.xml": reading(A), "staler.xml": other})
    assert domains.news() == Said(whole=True, claims=(Claim("tap1", TWO),))


@pytest.mark.parametrize("connected", [True, False])
def test_a_tap_of_two_domains_is_nobodys(domains, connected):
    both = {ONE: reading(A, Claim("tap3", ONE)), TWO: reading(B, Claim("tap1", TWO))}
    if connected:
        domains.connected(both)
        domains.filed({"one.xml": reading(A)})
    else:
        domains.filed(both)
        domains.lost("no libvirtd")
    said = domains.news()
    assert said is not None
    assert set(said.claims) == {B, Claim("tap3", ONE)}
    assert "tap1 is the tap of two domains: it is nobody's" in said.trouble


def test_one_that_cannot_be_read_costs_no_other(domains):
    domains.connected({ONE: read("domain a\nb", "<domain>"), TWO: reading(B)})
    said = domains.news()
    assert said is not None
    assert said.claims == (B,)
    assert said.trouble.startswith("domain a b: it is no XML: no element found")
    domains.filed({"one.xml": reading(A)})
    assert domains.news() is None, "a file does not speak for whom the connection knows"
    domains.changed(ONE, reading(A))
    assert domains.news() == Said(claims=(A,))


def test_faults_of_files_are_told_while_files_count(domains):
    domains.filed({"one.xml": read("/run/x/one.xml", "")})
    domains.connected({})
    assert domains.news() == Said(whole=True)
    domains.lost("no libvirtd")
    said = domains.news()
    assert said is not None
    assert "/run/x/one.xml: it is no XML" in said.trouble


def test_of_many_faults_some_are_told(domains):
    domains.connected({str(n): Reading(fault=f"domain {n}: {'x' * 1000}") for n in range(9)})
    said = domains.news()
    assert said is not None
    assert len(said.trouble) == TROUBLE_MAX
    domains.connected({str(n): Reading(fault=f"domain {n}: no") for n in range(9)})
    said = domains.news()
    assert said is not None
    assert said.trouble.count("domain") == 5
    assert said.trouble.endswith("; and 4 more")


def test_more_taps_than_can_be_said_are_told_of(domains, monkeypatch):
    monkeypatch.setattr(rules, "CLAIMS_MAX", 2)
    domains.connected({ONE: reading(A, Claim("tap3", ONE), Claim("tap4", ONE))})
    said = domains.news()
    assert said is not None
    assert (len(said.claims), "more than 2 taps" in said.trouble) == (2, True)
