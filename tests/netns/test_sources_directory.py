"""A watched folder of sources on a whole hypervisor: what guests are given is what its files say, a moment later."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, api, enrol, parts_of, trail
from tests.netns.say import Reply, at_once, get
from tests.netns.test_live import Waiting, tag

A, B = uuid_of(1), uuid_of(2)
USER, VENDOR = "/latest/user-data", "/openstack/latest/vendor_data.json"
SOON = 3.0
"""Seconds from a change of a file until guests see it, on a busy host."""


@pytest.fixture(scope="module")
def site() -> Iterator[Hypervisor]:
    with Lab() as lab, Hypervisor(lab) as made:
        folder = made.folder / "sources"
        made.configure(f'{PLENTY}[sources]\ndirectory = "{folder}"\n')
        (folder / "host").mkdir(parents=True)
        made.start()
        yield made


@pytest.fixture(scope="module")
def guests(site: Hypervisor) -> tuple[VethGuest, VethGuest]:
    return (
        enrol(site, "a", A, b'{"project_id": "blue", "tags": {"role": "web"}, "image_id": "debian-12"}'),
        enrol(site, "b", B, b'{"project_id": "red"}'),
    )


@pytest.fixture
def guest(guests: tuple[VethGuest, VethGuest]) -> VethGuest:
    return guests[0]


@pytest.fixture
def other(guests: tuple[VethGuest, VethGuest]) -> VethGuest:
    return guests[1]


@pytest.fixture(autouse=True)
def empty(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> Iterator[Path]:
    """The folder, with nothing in it but a folder `host`; so it is left."""
    yield site.folder / "sources"
    if "\ndirectory" not in site.config.read_text():  # the last of them
        return
    folder = site.folder / "sources"
    shutil.rmtree(folder)
    (folder / "host").mkdir(parents=True)
    for one in api(site).sources():
        if one.origin == "operator":
            api(site).delete_source(one.scope, one.name)
    wait_until(lambda: not api(site).sources() and not faults(site), "the folder to be forgotten")


@pytest.fixture
def folder(empty: Path) -> Path:
    return empty


def write(path: Path, body: bytes) -> None:
    """As an editor does, or a package manager: the whole of it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    partial.write_bytes(body)
    partial.rename(path)


def faults(site: Hypervisor) -> list[str]:
    return [one.what for one in site.api.status().ailments if one.part == "sources"]


def soon(condition: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    wait_until(condition, what, 5)
    assert time.monotonic() - began < SOON, what


def gives(guest: VethGuest, body: bytes) -> Callable[[], bool]:
    return lambda: get(guest, USER).body == body


def test_added_changed_removed(folder: Path, guest: VethGuest, other: VethGuest) -> None:
    file = folder / "host" / "base"
    write(file, b"#!/bin/sh\n: 1\n")
    soon(gives(guest, b"#!/bin/sh\n: 1\n"), "it to be added")
    assert get(other, USER).body == b"#!/bin/sh\n: 1\n"
    with file.open("ab") as more:  # in place, slowly: never half of it
        more.write(b": 2\n")
        more.flush()
        time.sleep(0.3)
        assert get(guest, USER).body == b"#!/bin/sh\n: 1\n"
        more.write(b": 3\n")
    soon(gives(guest, b"#!/bin/sh\n: 1\n: 2\n: 3\n"), "it to be changed")
    file.rename(folder / "host" / "renamed")
    soon(lambda: get(guest, "/metashim/v1/sources/host/renamed").status == 200, "its other name")
    (folder / "host" / "renamed").unlink()
    soon(lambda: get(guest, USER).status == 404, "it to be removed")


def test_every_scope_and_the_options(folder: Path, guest: VethGuest, other: VethGuest) -> None:
    write(folder / "host" / "90-last.sh", b"#!/bin/sh\n: host\n")
    write(folder / "project" / "blue" / "20-blue.sh", b"#!/bin/sh\n: blue\n")
    write(folder / "image" / "debian-12" / "30-fix.sh", b"#!/bin/sh\n: image\n")
    write(folder / "tag" / "role=web" / "40-web.sh.j2", b"#!/bin/sh\n: {{ tags.role }} {{ instance_id }}\n")
    write(folder / "instance" / str(A) / "10-own.sh", b"#!/bin/sh\n: own\n")
    write(folder / "host" / "mirror", b"#cloud-config\napt: {}\n")
    write(folder / "host" / "mirror.options.toml", b'kind = "vendor"\nowner = "net"\n')
    words = [b"own", b"blue", b"image", b"web %s" % str(A).encode(), b"host"]
    bodies = [b"#!/bin/sh\n: %s\n" % one for one in words]
    soon(lambda: parts_of(get(guest, USER).body) == bodies if get(guest, USER).status == 200 else False, "all five")
    soon(gives(other, bodies[-1]), "its neighbour's one")
    assert get(guest, VENDOR).json == {"cloud-init": "#cloud-config\napt: {}\n"}
    assert get(guest, "/metashim/v1/sources/host/mirror").headers["x-metashim-owner"] == "net"


def test_a_watch_follows(folder: Path, guest: VethGuest) -> None:
    write(folder / "host" / "base", b"#!/bin/sh\n: 1\n")
    soon(gives(guest, b"#!/bin/sh\n: 1\n"), "it to be added")
    waiting = Waiting(guest, f"{USER}?wait=10&etag={tag(get(guest, USER))}")
    time.sleep(0.1)
    began = time.monotonic()
    write(folder / "host" / "base", b"#!/bin/sh\n: 2\n")
    assert waiting.result().body == b"#!/bin/sh\n: 2\n" and time.monotonic() - began < SOON


@pytest.mark.parametrize(
    ("name", "body", "options", "says"),
    [
        ("t.j2", b"#!/bin/sh\n{% if %}\n", b"", "line 2"),
        ("base", b"#!x\n", b"order = 5000\n", "order"),
        ("base", b"#!x\n", b"what = 1\n", "what"),
        ("base", b"", b"", "empty"),
        ("base", os.urandom(100_000).hex().encode(), b"", "fit"),
        ("base", b"x" * 300_000, b"", "bytes"),
        ("bad name", b"#!x\n", b"", "bad name"),
    ],
    ids=["template", "order", "option", "empty", "unfit", "large", "name"],
)
def test_a_faulty_file_concerns_no_other(
    site: Hypervisor, folder: Path, guest: VethGuest, name: str, body: bytes, options: bytes, says: str
) -> None:
    if options:
        write(folder / "host" / f"{name}.options.toml", options)
    write(folder / "host" / name, body)
    soon(lambda: any(says in one for one in faults(site)), "the fault to be told")
    write(folder / "host" / "good", b"#!/bin/sh\n: good\n")
    soon(gives(guest, b"#!/bin/sh\n: good\n"), "the other to be taken")
    assert any(says in one for one in faults(site))
    assert "Traceback" not in site.log_text()
    for one in (name, f"{name}.options.toml"):
        (folder / "host" / one).unlink(missing_ok=True)
    soon(lambda: not faults(site), "it to be well")


def test_the_last_good_version_holds_and_survives_the_agent(site: Hypervisor, folder: Path, guest: VethGuest) -> None:
    good, bad = b"#!/bin/sh\n: hello\n", b"#!/bin/sh\n{% if %}\n"
    file = folder / "host" / "t.j2"
    write(file, good)
    soon(gives(guest, good), "it to be added")
    write(file, bad)
    soon(lambda: bool(faults(site)), "the fault to be told")
    assert get(guest, USER).body == good
    revision = api(site).sources()[0].revision
    site.end(signal.SIGQUIT)
    site.start()
    soon(lambda: bool(faults(site)), "the fault to be told again")
    assert get(guest, USER).body == good and api(site).sources()[0].revision == revision
    assert "host/t: line 2" in site.verb("status").stdout
    site.end(signal.SIGKILL)
    write(file, b"#!/bin/sh\n: while it was away\n")
    write(folder / "host" / "new", b"#!/bin/sh\n: new\n")
    site.start()
    soon(lambda: b"while it was away" in get(guest, USER).body, "what was changed meanwhile")
    assert len(parts_of(get(guest, USER).body)) == 2 and not faults(site)


def test_an_operators_source_holds_until_it_is_removed(site: Hypervisor, folder: Path, guest: VethGuest) -> None:
    add(site, "host", "base", b"#!/bin/sh\n: operator\n")
    write(folder / "host" / "base", b"#!/bin/sh\n: file\n")
    soon(lambda: any("operator" in one for one in faults(site)), "it to be told")
    assert get(guest, USER).body == b"#!/bin/sh\n: operator\n"
    api(site).delete_source("host", "base")
    soon(gives(guest, b"#!/bin/sh\n: file\n"), "the file to be let in")
    assert not faults(site)
    for words in (("add", "host", "base", str(folder / "host" / "base")), ("remove", "host", "base")):
        done = site.verb("userdata", *words, check=False)
        assert done.returncode == 6 and "file" in done.stderr, "a file is changed, not overruled"
    said = [(one.who, one.what) for one in trail(site)[-2:]]
    assert said == [("root (uid 0)", "source remove"), ("directory", "sources")]


def test_a_folder_that_goes_takes_nothing_away(site: Hypervisor, folder: Path, guest: VethGuest) -> None:
    write(folder / "host" / "base", b"#!/bin/sh\n: 1\n")
    soon(gives(guest, b"#!/bin/sh\n: 1\n"), "it to be added")
    away = folder.with_name("away")
    folder.rename(away)
    soon(lambda: bool(faults(site)), "it to be told")
    folder.mkdir()
    time.sleep(0.3)
    assert faults(site) and get(guest, USER).body == b"#!/bin/sh\n: 1\n", "as if it were not mounted"
    folder.rmdir()
    away.rename(folder)
    write(folder / "host" / "base", b"#!/bin/sh\n: 2\n")
    soon(gives(guest, b"#!/bin/sh\n: 2\n"), "it to be looked at again")
    (folder / "host").chmod(0o777)
    write(folder / "host" / "base", b"#!/bin/sh\n: 3\n")
    soon(lambda: any("write" in one for one in faults(site)), "that others may write there to be told")
    assert get(guest, USER).body == b"#!/bin/sh\n: 2\n"
    (folder / "host").chmod(0o755)
    soon(gives(guest, b"#!/bin/sh\n: 3\n"), "it to be trusted again")


def test_a_hundred_changes_at_once_end_in_what_is_there(folder: Path, guest: VethGuest) -> None:
    for number in range(100):
        write(folder / "host" / f"{number % 10}", b"#!/bin/sh\n: %d\n" % number)
    soon(lambda: get(guest, USER).status == 200 and len(parts_of(get(guest, USER).body)) == 10, "ten")
    wait_until(lambda: parts_of(get(guest, USER).body)[-1] == b"#!/bin/sh\n: 99\n", "the last", 2)


def test_read_once_by_many_of_one_instance_and_by_each(
    site: Hypervisor, folder: Path, guest: VethGuest, other: VethGuest
) -> None:
    """Each instance reads a file of many instances once; what is used up stays so when the agent is another."""
    secret = b"#!/bin/sh\necho hunter2\n"
    (folder / "host" / "secret.options.toml").write_bytes(b'reads = "once"\n')
    write(folder / "host" / "secret", secret)
    path = "/metashim/v1/sources/host/secret"
    soon(lambda: b"secret" in get(guest, "/metashim/v1/sources/host/").body, "it to be added")
    found = at_once([guest, other], path, 20)
    assert [one.body for one in found if isinstance(one, Reply) and one.status == 200] == [secret] * 2
    site.end(signal.SIGKILL)
    site.start()
    wait_until(lambda: bool(api(site).sources()), "the folder to be read")
    os.utime(folder / "host" / "secret")
    time.sleep(0.3)
    assert get(guest, path).status == get(other, path).status == 404
    write(folder / "host" / "secret", secret + b"# 2\n")
    soon(lambda: b"secret" in get(guest, "/metashim/v1/sources/host/").body, "it to be new")
    assert get(guest, path).body == secret + b"# 2\n"


def test_files_of_a_folder_that_is_watched_no_more_can_be_removed(
    site: Hypervisor, folder: Path, guest: VethGuest
) -> None:
    """Whoever takes the setting back has no file to remove: what came of the folder is the operators' then."""
    write(folder / "host" / "one", b"#!/bin/sh\n: one\n")
    write(folder / "host" / "two", b"#!/bin/sh\n: two\n")
    soon(lambda: b"two" in get(guest, "/metashim/v1/sources/host/").body, "them to be added")
    site.end(signal.SIGQUIT)
    site.config.write_text(site.config.read_text().replace("directory =", "# directory ="))
    site.start()
    assert len(parts_of(get(guest, USER).body)) == 2, "what was in force stays"
    site.verb("userdata", "remove", "host", "one")
    add(site, "host", "two", b"#!/bin/sh\n: mine\n")
    assert get(guest, USER).body == b"#!/bin/sh\n: mine\n"
