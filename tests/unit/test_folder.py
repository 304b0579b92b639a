"""What the files of a folder of sources say: places, names, options, and faults that concern one file alone."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.source import HOST, MERGE_DEFAULT, Kind, Reads, Scope, Source
from shim.errors import InputError
from shim.metadata.folder import (
    Fault,
    File,
    Listing,
    Place,
    is_left_out,
    place_of,
    scope_of,
    shown,
    sources_of,
)

UUID = "c0ffee00-1111-4222-8333-444455556666"
BLUE = Scope("project", "blue")


def one(options: str | bytes, path: str = "host/base.yaml") -> Source:
    """The one source that a file with these options is; its fault, where it has one, is an AssertionError."""
    raw = options.encode() if isinstance(options, str) else options
    sources, faults = sources_of(Listing((File(path, b"body", raw),)), {})
    assert not faults, faults
    (source,) = sources.values()
    return source


def fault(options: str | bytes) -> Fault:
    raw = options.encode() if isinstance(options, str) else options
    sources, faults = sources_of(Listing((File("host/base.yaml", b"body", raw),)), {})
    assert not sources
    (found,) = faults
    return found


def good(*paths: str, body: bytes = b"old") -> dict[tuple[Scope, str], Source]:
    return sources_of(Listing(tuple(File(path, body) for path in paths)), {})[0]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("host/base.yaml", Place(HOST, "base.yaml", 500)),
        ("host/10-base.yaml", Place(HOST, "base.yaml", 10)),
        ("host/0-base.yaml", Place(HOST, "base.yaml", 0)),
        ("host/0010-base.yaml", Place(HOST, "base.yaml", 10)),
        ("host/999-base.yaml", Place(HOST, "base.yaml", 999)),
        ("host/10base.yaml", Place(HOST, "10base.yaml", 500)),
        ("host/10-20-a", Place(HOST, "20-a", 10)),
        ("host/motd.j2", Place(HOST, "motd", 500, template=True)),
        ("host/20-motd.yaml.j2", Place(HOST, "motd.yaml", 20, template=True)),
        ("project/blue/a", Place(BLUE, "a")),
        ("image/debian-12/a", Place(Scope("image", "debian-12"), "a")),
        ("tag/role=web/a", Place(Scope("tag", "role=web"), "a")),
        ("tag/role=/a", Place(Scope("tag", "role="), "a")),
        ("tag/a=b=c/a", Place(Scope("tag", "a=b=c"), "a")),
        (f"instance/{UUID}/a", Place(Scope("instance", UUID), "a")),
        (f"instance/{UUID.upper()}/a", Place(Scope("instance", UUID), "a")),
        ("host/document", Place(HOST, "document")),
    ],
)
def test_places(path, place):
    assert place_of(path) == place


@pytest.mark.parametrize(
    ("path", "what", "hint"),
    [
        ("README", "README: it lies where only folders are looked for", "move it to host/"),
        ("project/a", "project/a: it lies where", "folder of a project"),
        ("hosts/a", "hosts/: no sources are looked for there", "did you mean host?"),
        ("projects/blue/a", "projects/blue/: no sources", "did you mean project?"),
        ("zzz/a", "zzz/: no sources", "sources lie in host/, project/ID/"),
        ("host/deep/a", "host/deep/: no sources", "sources lie in host/"),
        ("project/blue/deep/a", "project/blue/deep/: no sources", "sources lie in"),
        ("instance/web1/a", "instance/web1/: no instance can be called that", "uuid"),
        ("tag/role/a", "tag/role/: no tag can", "KEY=VALUE"),
        ("tag/=web/a", "tag/=web/: no tag can", "KEY=VALUE"),
        ("project/a b/a", "project/a b/: no project can", "project's id"),
        ("project//a", "project//: no project can", "project's id"),
        ("host/2024-plan", "and 2024 is none", "0 to 999"),
        ("host/" + "9" * 5000 + "-a", "is none", "0 to 999"),
        ("host/10-", "is no name of a source", "rename it"),
        ("host/10-.j2", "is no name of a source", "rename it"),
        ("host/-a", "is no name of a source", "rename it"),
        ("host/a b", "is no name of a source", "rename it"),
        ("host/" + "a" * 65, "is no name of a source", "rename it"),
        ("host/a\n", r"host/a\n:", "rename it"),
        ("host/\udcff", r"host/\udcff:", "rename it"),
        ("host/٣-a", "is no name of a source", "rename it"),  # digits, but not of ours
        (f"instance/{UUID}/document", "the instance's own document", "rename it"),
        (f"instance/{UUID}/5-document.j2", "the instance's own document", "rename it"),
    ],
)
def test_paths_of_no_source(path, what, hint):
    with pytest.raises(InputError) as raised:
        place_of(path)
    assert what in str(raised.value)
    assert hint in raised.value.hint


@pytest.mark.parametrize("folder", ["project", "image", "tag", "instance"])
def test_folders_of_folders(folder):
    assert scope_of(folder) is None


@pytest.mark.parametrize(
    "name",
    [".git", ".base.yaml.swp", "base.yaml~", "base.yaml.swp", "base.yaml.tmp", "base.dpkg-old", "base.dpkg-new",
     "base.rpmsave", "base.rpmnew", "base.rpmorig", "#base.yaml#", "lost+found", ".#base", "..", "a\n~"],
)  # fmt: skip
def test_left_out(name):
    assert is_left_out(name)


@pytest.mark.parametrize("name", ["base.yaml", "tmp", "swp", "rpm", "dpkg-old", "base.tmpl", "a~b", "rpmsave.x", "#a"])
def test_not_left_out(name):
    assert not is_left_out(name)


def test_defaults():
    source = one("")
    assert source == Source(HOST, "base.yaml", b"body", owner="directory", origin="directory")
    assert (source.merge, source.kind, source.reads, source.until) == (MERGE_DEFAULT, Kind.USER, Reads.MANY, None)


def test_all_options():
    source = one(
        'kind = "vendor"\nowner = "Web team <web@example.org>"\norder = 7\nmerge = "list(no_replace)+dict(replace)"\n'
        'template = true\nreads = "confirm"\nuntil = 2030-01-31T12:00:00+01:00\n',
        "host/10-base.yaml",
    )
    assert source.kind is Kind.VENDOR
    assert source.owner == "Web team <web@example.org>"
    assert source.order == 7, "an option goes before the name's digits"
    assert source.merge == "list(no_replace)+dict(replace)"
    assert source.template
    assert source.reads is Reads.CONFIRM
    assert source.until == 1896087600.0
    assert source.name == "base.yaml"


def test_a_template_by_its_name_may_be_none():
    source = one("template = false", "host/motd.j2")
    assert (source.name, source.template) == ("motd", False)


@pytest.mark.parametrize("text", ["1893456000", "1893456000.0", "2030-01-01T00:00:00Z", "2030-01-01 00:00:00Z"])
def test_until(text):
    assert one(f"until = {text}").until == 1893456000.0


def test_the_merge_of_cloud_init_itself():
    assert one('merge = ""').merge == ""


@pytest.mark.parametrize(
    ("options", "field", "hint"),
    [
        ("order = -1", "order", "0 to 999"),
        ("order = 1000", "order", "0 to 999"),
        ('order = "1"', "order", "0 to 999"),
        ("order = 1.5", "order", "0 to 999"),
        ('kind = "users"', "kind", "user or vendor"),
        ("kind = 1", "kind", "user or vendor"),
        ("[kind]", "kind", "user or vendor"),
        ('owner = ""', "owner", "printable"),
        ('owner = "a\\nX-Other: b"', "owner", "printable"),
        ('owner = " a"', "owner", "printable"),
        (f'owner = "{"a" * 65}"', "owner", "printable"),
        ('merge = "list(append)\\nX-Other: b"', "merge", "cloud-init"),
        ('merge = "append"', "merge", "cloud-init"),
        ('merge = "list(append)"', "merge", "cloud-init"),  # without dict(), it would leave all of it out
        ("template = 1", "template", "true or false"),
        ('reads = "twice"', "reads", "many, once or confirm"),
        ("until = 2030-01-01T00:00:00", "until", "zone"),
        ("until = 2030-01-01", "until", "zone"),
        ("until = 12:00:00", "until", "zone"),
        ('until = "2030"', "until", "zone"),
        ("until = nan", "until", "zone"),
        ("until = inf", "until", "zone"),
        ("until = -1", "until", "zone"),
        ("until = 0", "until", "zone"),
        ("until = 1e300", "until", "zone"),
        ("until = " + "9" * 4000, "until", "zone"),
        ("until = true", "until", "zone"),
        ("until = 0001-01-01T00:00:00Z", "until", "zone"),
        ("until = 9999-12-31T23:59:59-12:00", "until", "zone"),
    ],
)
def test_options_that_are_not_what_they_can_be(options, field, hint):
    found = fault(options)
    assert f"host/base.yaml.options.toml: {field} is not what it can be" in found.what
    assert hint in found.hint


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        ('kinds = "user"', "no option kinds", "did you mean kind?"),
        ('zzz = "user"', "no option zzz", "known here: kind, owner, order, merge, template, reads, until"),
        ('"a\\nb" = 1', r"no option a\nb", "known here"),
        ("kind", "not TOML", "write lines as in"),
        (b"\xff", "not TOML", "write lines as in"),
        ("until = " + "9" * 5000, "not TOML", "write lines as in"),
        ("x = " + "[" * 20_000, "not TOML", "write lines as in"),
    ],
)
def test_options_that_cannot_be_read(options, what, hint):
    found = fault(options)
    assert what in found.what
    assert hint in found.hint
    assert len(found.what) < 300


@given(st.binary(max_size=200) | st.text(alphabet=string.printable, max_size=200).map(str.encode))
def test_whatever_the_options_are(raw):
    sources, faults = sources_of(Listing((File("host/a", b"x", raw),)), {})
    assert len(sources) + len(faults) == 1
    assert all(shown(fault.what) == fault.what for fault in faults)


@given(st.text(max_size=60) | st.text(alphabet="hostag=/.-~0123456789j2", max_size=30).map("host/".__add__))
def test_whatever_a_path_is(path):
    sources, faults = sources_of(Listing((File(path, b"x"),)), {})
    assert len(sources) + len(faults) == 1
    assert all(shown(fault.what) == fault.what for fault in faults)


class TestFaults:
    def test_one_concerns_no_other(self):
        files = File("host/a", b"new"), File("host/b", fault=Fault("host/b: broken", "mend it")), File("nowhere", b"x")
        sources, faults = sources_of(Listing(files), good("host/a", "host/b", "host/c"))
        assert {key[1]: source.body for key, source in sources.items()} == {"a": b"new", "b": b"old"}
        assert [fault.what.split(":")[0] for fault in faults] == ["nowhere", "host/b"]
        assert faults[1] == Fault("host/b: broken; its last good version holds", "mend it")

    def test_without_a_good_version_there_is_none(self):
        sources, faults = sources_of(Listing((File("host/b", b"x", b"order = 1000"),)), {})
        assert not sources
        assert faults[0].what.endswith("; there is no source of it")

    def test_an_empty_file_is_none(self):
        sources, faults = sources_of(Listing((File("host/a", b""),)), good("host/a"))
        assert [source.body for source in sources.values()] == [b"old"]
        assert "it is empty" in faults[0].what

    @pytest.mark.parametrize("other", ["host/20-a", "host/a", "host/a.j2", "host/20-a.j2"])
    def test_two_of_one_name_are_neither(self, other):
        sources, faults = sources_of(Listing((File("host/10-a", b"1"), File(other, b"2"))), {})
        assert not sources
        assert faults[0].what.startswith(f"host/10-a and {other} are both a in host;")

    def test_two_of_one_name_leave_what_was_there(self):
        before = good("host/10-a")
        sources, faults = sources_of(Listing((File("host/10-a", b"1"), File("host/20-a", b"2"))), before)
        assert sources == before
        assert len(faults) == 1

    def test_the_same_uuid_in_two_spellings(self):
        files = File(f"instance/{UUID}/a", b"1"), File(f"instance/{UUID.upper()}/a", b"2")
        sources, faults = sources_of(Listing(files), {})
        assert not sources
        assert "are both a in instance" in faults[0].what

    def test_the_same_name_elsewhere_is_another(self):
        sources, faults = sources_of(Listing((File("host/a", b"1"), File("project/blue/a", b"2"))), {})
        assert len(sources) == 2
        assert not faults

    def test_a_file_that_is_gone_has_no_source(self):
        assert sources_of(Listing((File("host/a", b"x"),)), good("host/a", "host/b"))[0].keys() == good("host/a").keys()


class TestLostFolders:
    BEFORE = ("host/a", "project/blue/a", "project/red/a", f"instance/{UUID}/a")

    @pytest.mark.parametrize(
        ("lost", "kept"),
        [
            ("host", {"host"}),
            ("project", {"project:blue", "project:red"}),
            ("project/blue", {"project:blue"}),
            (f"instance/{UUID.upper()}", {f"instance:{UUID}"}),
            ("image", set()),
            ("", {"host", "project:blue", "project:red", f"instance:{UUID}"}),
        ],
    )
    def test_what_was_there_holds(self, lost, kept):
        sources, faults = sources_of(Listing(lost=(lost,), faults=(Fault("what", "hint"),)), good(*self.BEFORE))
        assert {key[0].text for key in sources} == kept
        assert faults == [Fault("what", "hint")]

    def test_and_beside_it_all_goes_on(self):
        listing = Listing((File("host/a", b"new"),), lost=("project/blue",))
        sources, _ = sources_of(listing, good(*self.BEFORE))
        assert {(source.scope.text, source.body) for source in sources.values()} == {
            ("host", b"new"),
            ("project:blue", b"old"),
        }
