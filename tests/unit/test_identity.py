"""Sources of identity: what each knows, how it fails, and who wins."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.exchange import Subject
from shim.core.link import Link
from shim.core.names import parse_ip, parse_netns, parse_project, parse_tap
from shim.errors import StoreError
from shim.identity.alias import Alias
from shim.identity.file import StaticFile, parse
from shim.identity.operator import Operator
from shim.identity.resolve import Resolution, Resolver, Source

ONE = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
TWO = UUID("c0ffee00-1111-4222-8333-444455556666")


def entry(tap: str, instance: object, netns: str | None = None) -> str:
    where = "" if netns is None else f'netns = "{netns}"\n'
    return f'[[port]]\ninterface = "{tap}"\ninstance = "{instance}"\n{where}'


def link(netns: str, tap: str, alias: str | None = None) -> Link:
    return Link(7, tap, alias, netns=netns)


def who(source: Source, tap: str, netns: str = "", alias: str | None = None) -> UUID | None:
    """The instance alone."""
    found = source.subject_of(link(netns, tap, alias))
    return found.instance if found else None


# --- the alias


@pytest.mark.parametrize(
    ("alias", "known"),
    [
        (f"metashim:{ONE}", ONE),
        (f"metashim:{ONE.hex.upper()}", ONE),
        (f"web server metashim:{ONE} rack 3", ONE),
        (f"metashim:{ONE} metashim:{ONE}", ONE),
        (f"metashim:{ONE} metashim:{TWO}", None),
        (f"xmetashim:{ONE}", None),
        (f"metashim: {ONE}", None),
        ("metashim:", None),
        (f"metashim:{ONE}x", None),
        (str(ONE), None),
        ("", None),
        (None, None),
    ],
)
def test_alias(alias: str | None, known: UUID | None) -> None:
    source = Alias()
    assert who(source, "tap1", alias=alias) == known
    assert (source.refresh(), source.health()) == (False, None)


@given(st.text())
def test_no_alias_makes_it_raise(alias: str) -> None:
    Alias().subject_of(link("", "tap1", "metashim:" + alias))
    Alias().subject_of(link("", "tap1", f"metashim:{ONE}/" + alias))


@pytest.mark.parametrize(
    ("alias", "known"),
    [
        (f"metashim:{ONE}", Subject(ONE)),
        (f"metashim:{ONE}/5f1d", Subject(ONE, "5f1d")),
        (f"rack 3 metashim:{ONE}/a/b", Subject(ONE, "a/b")),
        (f"metashim:{ONE}/{'p' * 64}", Subject(ONE, "p" * 64)),
        (f"metashim:{ONE}/{'p' * 65}", None),
        (f"metashim:{ONE}/", None),
        (f"metashim:{ONE}/\N{LATIN SMALL LETTER E WITH ACUTE}", None),
        (f"metashim:{ONE}/a\x7f", None),
        (f"metashim:{ONE}/a metashim:{ONE}/b", None),
        (f"metashim:{ONE}/a metashim:{ONE}", None),
    ],
)
def test_an_alias_may_name_the_project(alias: str, known: Subject | None) -> None:
    assert Alias().subject_of(link("", "tap1", alias)) == known


# --- the file


def test_file_is_read_by_namespace_and_tap(tmp_path: Path) -> None:
    path = tmp_path / "i.toml"
    path.write_text(entry("tap1", ONE) + entry("tap1", TWO, "rack1"))
    source = StaticFile(path)
    assert who(source, "tap1") is None, "nothing is known before the first refresh"
    assert source.refresh() is True
    assert who(source, "tap1") == ONE
    assert who(source, "tap1", "rack1") == TWO
    assert who(source, "tap1", "rack2") is None
    assert who(source, "tap2") is None
    assert (source.refresh(), source.health()) == (False, None)


def test_the_file_says_project_and_address(tmp_path: Path) -> None:
    path = tmp_path / "i.toml"
    path.write_text(entry("tap1", ONE) + 'project = "5f1d"\naddress = "2001:DB8:0::5"\n' + entry("tap2", TWO))
    source = StaticFile(path)
    source.refresh()
    assert source.subject_of(link("", "tap1", None)) == Subject(ONE, "5f1d", "2001:db8::5")
    assert source.subject_of(link("", "tap2", None)) == Subject(TWO)
    replace(path, entry("tap1", ONE) + 'project = "other"\n' + entry("tap2", TWO))
    assert source.refresh() is True, "a change of the project alone is one"
    assert source.subject_of(link("", "tap1", None)) == Subject(ONE, "other")


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_broken_file_keeps_the_last_good_mapping(tmp_path: Path) -> None:
    path = tmp_path / "i.toml"
    path.write_text(entry("tap1", ONE))
    source = StaticFile(path)
    source.refresh()
    replace(path, entry("tap1", TWO) + entry("tap2", "nonsense"))
    assert source.refresh() is False
    assert who(source, "tap1") == ONE
    assert source.health() and "port 2: 'nonsense'" in source.health() and str(path) in source.health()
    replace(path, entry("tap1", TWO))
    assert source.refresh() is True
    assert (who(source, "tap1"), source.health()) == (TWO, None)


def test_a_file_put_back_is_well_again_without_change(tmp_path: Path) -> None:
    path, target = tmp_path / "i.toml", tmp_path / "target"
    target.write_text(entry("tap1", ONE))
    path.symlink_to(target)
    source = StaticFile(path)
    source.refresh()
    path.unlink()
    assert source.refresh() is False and "gone" in (source.health() or "")
    assert who(source, "tap1") == ONE
    path.symlink_to(target)
    assert source.refresh() is False and source.health() is None


def test_a_file_that_never_was_is_well(tmp_path: Path) -> None:
    source = StaticFile(tmp_path / "none.toml")
    assert (source.refresh(), source.health(), who(source, "tap1")) == (False, None, None)


def test_the_same_mapping_written_anew_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "i.toml"
    path.write_text(entry("tap1", ONE))
    source = StaticFile(path)
    assert source.refresh() is True
    replace(path, "# a comment\n" + entry("tap1", ONE))
    assert source.refresh() is False
    replace(path, "")
    assert source.refresh() is True and who(source, "tap1") is None


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    source = StaticFile(tmp_path)
    assert source.refresh() is False and "directory" in (source.health() or "")


def test_a_rewrite_of_equal_size_within_the_clock_s_grain_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "i.toml"
    path.write_text(entry("tap1", ONE))
    source = StaticFile(path)
    source.refresh()
    stamp = path.stat()
    replace(path, entry("tap1", TWO))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert source.refresh() is True


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[[port]]\n", "instance|interface"),
        (entry("tap1", ONE) + 'extra = "x"\n', "extra"),
        (entry("tap1", ONE) + entry("tap1", TWO), "port 2: 'tap1' is there twice"),
        (entry("a/b", ONE), "port 1: 'a/b' is not the name of an interface"),
        (entry("sixteen-letters!", ONE), "port 1"),
        (entry("tap1", f"urn:uuid:{ONE}"), "port 1"),
        (entry("tap1", ONE, ".."), "network namespace"),
        (entry("tap1", ONE) + 'project = "a b"\n', "port 1: 'a b' is not a project's id"),
        (entry("tap1", ONE) + f'project = "{"p" * 65}"\n', "port 1: .* is not a project's id"),
        (entry("tap1", ONE) + 'address = "10.0.0.5/24"\n', "port 1: '10.0.0.5/24' is not an IP address"),
        (entry("tap1", ONE) + 'address = "fe80::1%eth0"\n', "port 1: .* is not an IP address"),
        ("[port]\n", "array"),
        ("port = 3\n", "array"),
        ("[[ports]]\n", "ports"),
        ("[[port]\n", "Expected"),
    ],
)
def test_wrong_entries_are_named(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse(text.encode())


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_value_error(raw: bytes) -> None:
    try:
        parse(raw)
    except ValueError:
        pass


# --- the operator


def test_operator_follows_the_store() -> None:
    known = {("", "tap1"): ONE}
    source = Operator(lambda: known)
    assert who(source, "tap1") is None
    assert source.refresh() is True
    assert who(source, "tap1") == ONE
    assert who(source, "tap1", "rack1") is None
    assert source.refresh() is False
    known["rack1", "tap1"] = TWO
    assert who(source, "tap1", "rack1") is None, "a copy is held until the next refresh"
    assert source.refresh() is True
    assert who(source, "tap1", "rack1") == TWO


def test_operator_outlives_a_store_that_is_unwell() -> None:
    ill = False

    def read() -> dict[tuple[str, str], UUID]:
        if ill:
            raise StoreError("the store is locked")
        return {("", "tap1"): ONE}

    source = Operator(read)
    source.refresh()
    ill = True
    assert source.refresh() is False
    assert (who(source, "tap1"), source.health()) == (ONE, "the store is locked")
    ill = False
    assert source.refresh() is False and source.health() is None


# --- all together


def resolver(*known: tuple[str, dict[tuple[str, str], UUID]]) -> Resolver:
    sources = []
    for name, mapping in known:
        source = Operator(lambda mapping=mapping: mapping)
        source.name = name
        sources.append(source)
    found = Resolver(sources)
    found.refresh()
    return found


KEY = ("", "tap1")


def test_the_first_that_knows_wins() -> None:
    three = resolver(("a", {}), ("b", {KEY: ONE}), ("c", {KEY: ONE}))
    assert three.resolve(link(*KEY)) == Resolution(ONE, "b", rank=1)


def test_who_wins_says_the_project_and_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "i.toml"
    path.write_text(entry("tap1", ONE) + 'project = "p"\naddress = "10.0.0.5"\n')
    attached = Operator(lambda: {KEY: ONE})
    for source in (file := StaticFile(path), attached):
        source.refresh()
    assert Resolver([file, attached]).resolve(link(*KEY)) == Resolution(ONE, "file", (), "p", "10.0.0.5")
    assert Resolver([attached, file]).resolve(link(*KEY)) == Resolution(ONE, "operator")
    claims = Resolver([Alias(), file]).resolve(link(*KEY, f"metashim:{TWO}/q"))
    assert (claims.project, claims.address, claims.others) == ("q", "", (("file", ONE),))


def test_nobody_knows() -> None:
    nothing = resolver(("a", {}), ("b", {})).resolve(link(*KEY))
    assert (nothing.instance, nothing.source, nothing.conflict) == (None, "", "")


def test_disagreement_is_reported_and_the_order_decides() -> None:
    found = resolver(("a", {KEY: ONE}), ("b", {KEY: ONE}), ("c", {KEY: TWO})).resolve(link(*KEY))
    assert (found.instance, found.source, found.others) == (ONE, "a", (("c", TWO),))
    assert found.conflict == f"a says {ONE} and wins; c says {TWO}"
    turned = resolver(("c", {KEY: TWO}), ("a", {KEY: ONE})).resolve(link(*KEY))
    assert (turned.instance, turned.source) == (TWO, "c")


def test_every_source_is_refreshed_even_after_a_change() -> None:
    first: dict[tuple[str, str], UUID] = {}
    second: dict[tuple[str, str], UUID] = {}
    both = resolver(("a", first), ("b", second))
    first["", "tap1"] = ONE
    second["", "tap2"] = TWO
    assert both.refresh() is True
    assert both.resolve(link("", "tap2")).instance == TWO
    assert both.refresh() is False


def test_health_names_the_sources_that_are_unwell(tmp_path: Path) -> None:
    bad = StaticFile(tmp_path)
    together = Resolver([Alias(), bad])
    together.refresh()
    assert list(together.health()) == ["file"]


# --- names


@pytest.mark.parametrize("name", ["tap0", "vnet-1.5", "tap\N{LATIN SMALL LETTER E WITH ACUTE}", "a" * 15])
def test_tap_names_that_the_kernel_takes(name: str) -> None:
    assert parse_tap(name) == name


LONG_IN_BYTES = "\N{EURO SIGN}" * 6


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "a:b", "a" * 16, LONG_IN_BYTES, "a\n", "\0"])
def test_tap_names_that_it_does_not(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an interface"):
        parse_tap(name)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\0", "a\n", "a" * 256])
def test_namespace_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="network namespace"):
        parse_netns(name)


def test_namespace_names_that_can() -> None:
    assert [parse_netns(name) for name in ("", "qrouter-1", "a b")] == ["", "qrouter-1", "a b"]


@pytest.mark.parametrize(("text", "known"), [("", ""), ("10.0.0.5", "10.0.0.5"), ("2001:DB8::0:5", "2001:db8::5")])
def test_addresses_that_can(text: str, known: str) -> None:
    assert parse_ip(text) == known


@pytest.mark.parametrize("text", ["10.0.0", "10.0.0.5 ", "fe80::1%1", "web1", "010.0.0.5", "10.0.0.5\n"])
def test_addresses_that_cannot(text: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        parse_ip(text)


@pytest.mark.parametrize("text", ["a b", "a\n", "a\r\nX-Instance-ID: b", "\0", "p" * 65, "\N{EURO SIGN}"])
def test_projects_that_cannot_be_in_a_header(text: str) -> None:
    with pytest.raises(ValueError, match="not a project's id"):
        parse_project(text)
