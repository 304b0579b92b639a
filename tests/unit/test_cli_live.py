"""The verbs about sources, keys, switches and the audit trail, against the API on a real Unix socket."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shim
from shim import errors
from shim.cli import main
from shim.control import live_shapes as live
from shim.control import shapes
from shim.core.kv import Value, etag
from shim.core.policy import Access, Auto, Composition, Policy
from shim.core.source import HOST, Kind, Reads, Scope, Source
from tests.lab.namespace import wait_until
from tests.unit.cli_shell import ROOT, Shell, complete, metashim
from tests.unit.control_memory import NOBODY, ONE, TWO, Host, Memory

BASE = "#cloud-config\npackages: [nginx]\n"
NOW = 1_790_000_000.0


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def run(
    tmp_path: Path, memory: Memory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shell]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with Host(tmp_path / "s", memory):
        yield Shell(tmp_path / "s", capsys)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path / "base.yaml"


# --- userdata


def test_a_source_is_added_listed_shown_and_removed(run: Shell, memory: Memory, base: Path) -> None:
    added = run("userdata", "add", "host", "base", base)
    assert added.out == f"host/base: revision 1, {len(BASE)} bytes\n" and added.err == ""
    assert memory.kept["host", "base"] == Source(HOST, "base", BASE.encode(), revision=1, changed=NOW)
    again = run("userdata", "add", "host", "base", base, "--json")
    assert (again.json["created"], again.json["source"]["revision"]) == (False, 2)
    assert run("userdata", "show", "host", "base").out == BASE
    assert run("userdata", "show", "host", "base", "--json").json["body"] == BASE
    assert run("userdata", "list").out.splitlines() == [
        "SCOPE  NAME  KIND  ORDER  OWNER     BYTES  CHANGED              NOTES",
        "host   base  user    500  operator     32  2026-09-21 14:13:20  -",
    ]
    assert run("userdata", "list", "--json").json["sources"][0]["name"] == "base"
    assert run("userdata", "remove", "host", "base").out == "host/base is removed\n"
    assert run("userdata", "remove", "host", "base").code == 5
    assert run("userdata", "show", "host", "base").code == 5
    assert run("userdata", "list").out.startswith("no sources: `metashim userdata add")
    run("userdata", "add", "host", "base", base)
    assert run("userdata", "remove", "host", "base", "--json").json == {"scope": "host", "name": "base"}


def test_all_that_a_source_can_be(run: Shell, memory: Memory, base: Path) -> None:
    done = run(
        "userdata", "add", "tag:role=web/1", "base", base, "--vendor", "--owner", "net ops", "--order", "7",
        "--merge", "list(prepend)", "--template", "--confirm", "--until", "2030-01-31T18:00Z",
    )  # fmt: skip
    assert done.code == 0
    source = memory.kept["tag:role=web/1", "base"]
    assert source == Source(
        Scope("tag", "role=web/1"), "base", BASE.encode(), Kind.VENDOR, "net ops", 7, "list(prepend)", True,
        Reads.CONFIRM, 1896112800.0, revision=1, changed=NOW,
    )  # fmt: skip
    run("userdata", "add", ONE.hex.upper(), "own", base, "--once", "--for", "1h30m", "--merge", "")
    own = memory.kept[f"instance:{ONE}", "own"]
    assert (own.merge, own.reads) == ("", Reads.ONCE)
    assert own.until == pytest.approx(time.time() + 5400, abs=30)
    memory.kept["host", "f"] = Source(HOST, "f", b"x", origin="directory", until=NOW)
    notes = [line.split(":20  ")[-1] for line in run("userdata", "list").out.splitlines()[1:]]
    assert notes[0] == "template, confirm, until 2030-01-31 18:00:00, merge list(prepend)"
    assert "watched file" in run("userdata", "list", "--scope", "host").out
    assert notes[-1].startswith("once, until ") and notes[-1].endswith(", merge of cloud-init")


def test_lists_of_a_scope_and_of_an_instance(run: Shell, base: Path) -> None:
    for scope in ("host", "project:blue", ONE, TWO):
        run("userdata", "add", scope, "x", base)

    def scopes(*words: object) -> list[str]:
        return [one["scope"] for one in run("userdata", "list", *words, "--json").json["sources"]]

    assert scopes("--scope", "project:blue") == ["project:blue"]
    assert scopes(ONE) == ["host", f"instance:{ONE}"]
    assert len(scopes()) == 4


def test_a_source_from_standard_input(run: Shell, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"#!/bin/sh\n\xff")))
    assert run("userdata", "add", "host", "s", "-").code == 0
    assert memory.kept["host", "s"].body == b"#!/bin/sh\n\xff"


def test_problems_of_a_source_are_told(run: Shell, memory: Memory, base: Path) -> None:
    memory.problems = ["no variable 'x' for \x1b[1m" + str(ONE)]
    done = run("userdata", "add", "host", "base", base, "--template")
    assert done.code == 0 and done.err == f"metashim: no variable 'x' for ?[1m{ONE}\n"
    assert done.out.startswith("host/base: revision 1")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("#cloud-config\na: [1\nb: 2\n", "line 3: no YAML: "),
        ("#cloud-config\na: b: c\n", "line 2: no YAML: mapping values are not allowed here"),
        ("#cloud-config\n\n\ta: 1\n", "line 3: no YAML: "),
        ("#cloud-config\na: *x\n", "line 2: no YAML: found undefined alias 'x'"),
        ("#cloud-config\na: !!python/object:os.system x\n", "line 2: no YAML: "),
        ("#cloud-config\na: 1\nb: \x00\n", "line 3: no YAML: "),
        ("#cloud-config\na: 2024-13-99\n", "no YAML: month must be in 1..12"),
        ("#cloud-config\n- a\n- b\n", "a cloud-config is keys and their values"),
        ("#cloud-config\nnginx\n", "a cloud-config is keys and their values"),
        ("#cloud-config\n" + "[" * 5000, "nested too deeply|no YAML"),
        ("#cloud-config\na: 1\n---\nb: 1\n", "line 3: no YAML: "),
        ("\n #Cloud-Config for all\na: [", "line 3: no YAML: "),
    ],
)
def test_a_cloud_config_that_is_no_yaml_is_refused(
    run: Shell, memory: Memory, base: Path, text: str, what: str
) -> None:
    base.write_text(text)
    refused = run("userdata", "add", "host", "base", base)
    assert refused.code == 4 and any(words in refused.err for words in what.split("|")), refused.err
    assert memory.kept == {}
    assert run("userdata", "add", "host", "base", base, "--template").code == 0, "it may become some"


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\n",
        "#cloud-config\n{}\n",
        "",
        "a: [",
        "#cloud-config\na: &x [1]\nb: *x\n",
        "#cloud-config-archive\n- content: x\n",
        "#cloud-config-jsonp\n[{'op': x}",
    ],
)
def test_what_is_left_alone(run: Shell, memory: Memory, base: Path, text: str) -> None:
    base.write_text(text)
    assert run("userdata", "add", "host", "base", base).code == 0
    assert memory.kept["host", "base"].body == text.encode()


def test_a_file_that_is_not_there(run: Shell, tmp_path: Path) -> None:
    for file in (tmp_path / "none", tmp_path):
        assert run("userdata", "add", "host", "base", file).code == 4
    (tmp_path / "large").write_bytes(b"x" * 1048577)
    assert run("userdata", "add", "host", "base", tmp_path / "large").code == 4


def data(*parts: live.PartView, **more: Any) -> live.DataView:
    return live.DataView(list(parts), **more)


def part(name: str, text: str | None, **more: Any) -> live.PartView:
    given = {"order": 500, "type": "text/cloud-config", "merge": "list(append)+dict(recurse_array)+str()"} | more
    return live.PartView(
        id=name, scope="", name=name, owner="net", template=False, reads="many", until=None,
        bytes=len(text or "1234"), text=text, **given,
    )  # fmt: skip


def test_preview(run: Shell, memory: Memory) -> None:
    keys = [live.KeyView("packages", ["host/base", "tag:role/web"]), live.KeyView("ntp", ["host/base"], ["host/old"])]
    user = data(
        part("host/base", "#cloud-config\nntp: \x1b[2J\n\n"), part("tag:role/web", None, merge=""),
        keys=keys, config="ntp: 1\npackages: []\n", bytes=99, gzipped=True,
        problems=[live.PartProblem("host/base", "bad\x1b"), live.PartProblem("", "too large")],
    )  # fmt: skip
    memory.previews[ONE] = live.PreviewView(ONE, "merged", 49149, user, data())
    assert run("userdata", "preview", ONE).out.splitlines() == [
        f"instance     {ONE}",
        "composition  merged",
        "user-data    2 parts, 99 bytes as gzip; limit 49149",
        "",
        "host/base: owner net, order 500, text/cloud-config, 25 bytes",
        "  #cloud-config",
        "  ntp: ?[2J",
        "",
        "",
        "tag:role/web: owner net, order 500, text/cloud-config, 4 bytes, merge of cloud-init",
        "  (no text)",
        "",
        "keys",
        "KEY       FROM                     REPLACED",
        "packages  host/base, tag:role/web  -",
        "ntp       host/base                host/old",
        "",
        "merged cloud-config",
        "  ntp: 1",
        "  packages: []",
        "",
        "problems",
        "host/base: bad?",
        "too large",
    ]
    assert run("userdata", "preview", ONE, "--vendor").out.splitlines()[2] == "vendor data  none"
    assert run("userdata", "preview", ONE, "--json").json["user"]["keys"][1]["lost"] == ["host/old"]


def test_compose(run: Shell, memory: Memory) -> None:
    assert run("userdata", "compose", "vendor", ONE, TWO).out.startswith(f"{ONE}: composition vendor after ")
    assert memory.policies[TWO].composition is Composition.VENDOR
    assert "composition  vendor" in run("show", ONE).out
    assert "merged (default)" in run("userdata", "compose", "default", ONE).out
    assert memory.policies[ONE].composition is None


# --- kv


def test_keys_are_set_read_listed_and_deleted(run: Shell, memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"\x00\xff\n")
    tag = etag(b"web")
    assert run("kv", "set", ONE, "host/role", "web").out == f"host/role of {ONE}: revision 1, etag {tag}\n"
    assert run("kv", "set", ONE, "guest/a/b", f"@{tmp_path / 'v'}", "--once", "--json").json["created"] is True
    assert run("kv", "get", ONE, "host/role").out == "web", "as it is"
    assert run("kv", "get", ONE, "host/role", "--json").json == {
        "key": "host/role", "etag": tag, "revision": 1, "changed": NOW, "value": "web"
    }  # fmt: skip
    assert run("kv", "list", ONE).out.splitlines() == [
        "KEY        BYTES  ETAG              CHANGED              NOTES",
        f"guest/a/b      3  {etag(bytes([0, 255, 10]))}  2026-09-21 14:13:20  once",
        f"host/role      3  {tag}  2026-09-21 14:13:20  -",
    ]
    assert list(run("kv", "list", ONE, "guest/", "--json").json) == ["guest/a/b"]
    assert run("kv", "list", TWO).out == "no keys\n"
    assert run("kv", "list", TWO, "--json").json == {}
    assert run("kv", "list", ONE, "host/none").code == 5
    assert run("kv", "delete", ONE, "host/role").out == f"host/role of {ONE} is removed\n"
    assert run("kv", "delete", ONE, "host/role").code == 5
    assert run("kv", "get", ONE, "host/role").code == 5
    folder = run("kv", "get", ONE, "guest/a")
    assert folder.code == 5 and "keys below it" in folder.err
    assert run("kv", "delete", ONE, "guest/a/b", "--json").json == {"instance": str(ONE), "key": "guest/a/b"}


def test_bytes_pass_unchanged(tmp_path: Path, memory: Memory) -> None:
    every = bytes(range(256)) + b"\r\n"
    with Host(tmp_path / "s", memory):
        shell = [sys.executable, "-m", "shim", "--socket", str(tmp_path / "s")]
        put = [*shell, "kv", "set", str(ONE), "guest/x", "-"]
        assert subprocess.run(put, cwd=ROOT, input=every, stdout=subprocess.PIPE, check=True).stdout
        assert memory.stored[ONE, "guest/x"].body == every
        memory.kept["host", "x"] = Source(HOST, "x", every)
        for verb in (["kv", "get", str(ONE), "guest/x"], ["userdata", "show", "host", "x"]):
            assert subprocess.run([*shell, *verb], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout == every


@pytest.mark.parametrize(
    ("value", "shown", "code"),
    [(b"a\x1b[2Jb\tc\n", b"a?[2Jb  c\r\n", 0), (b"a", b"a\r\n", 0), (b"\xff\x1b[2J", b"", 4)],
)
def test_a_guest_s_value_cannot_steer_the_terminal(
    tmp_path: Path, memory: Memory, value: bytes, shown: bytes, code: int
) -> None:
    memory.stored[ONE, "guest/x"] = Value("guest/x", value)
    near, far = pty.openpty()
    with Host(tmp_path / "s", memory):
        verb = [sys.executable, "-m", "shim", "--socket", str(tmp_path / "s"), "kv", "get", str(ONE), "guest/x"]
        done = subprocess.run(verb, cwd=ROOT, stdout=far, stderr=subprocess.PIPE, check=False)
    os.write(far, b"#")
    found = b""
    while not found.endswith(b"#"):
        found += os.read(near, 4096)
    assert (done.returncode, found) == (code, shown + b"#")
    assert code == 0 or b"that are no text" in done.stderr
    os.close(near)
    os.close(far)


def test_conditions(run: Shell, memory: Memory) -> None:
    run("kv", "set", ONE, "host/n", "1")
    for verb in (["set", ONE, "host/n", "2"], ["delete", ONE, "host/n"]):
        assert run("kv", *verb, "--if-match", etag(b"x")).code == 6
        assert run("kv", *verb, "--if-match", "no tag").code == 4
        assert run("kv", *verb, "--if-match", "a\r\nX: y").code == 4
        assert run("kv", *verb, "--if-match", "\u00e9").code == 4
    assert memory.stored[ONE, "host/n"].body == b"1"
    assert run("kv", "set", ONE, "host/n", "2", "--if-match", etag(b"1")).code == 0
    assert run("kv", "delete", ONE, "host/n", "--if-match", f'"{etag(b"2")}"').code == 0
    run("kv", "set", ONE, "host/n", "1")
    assert run("kv", "set", ONE, "host/n/below", "1").code == 6


def test_values(run: Shell, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    run("kv", "set", ONE, "host/x", "", "--confirm")
    assert (memory.stored[ONE, "host/x"].body, memory.stored[ONE, "host/x"].reads) == (b"", Reads.CONFIRM)
    run("kv", "set", ONE, "host/x", "--", "-5")
    assert memory.stored[ONE, "host/x"].body == b"-5"
    run("kv", "set", ONE, "host/x", "\udcff")
    assert memory.stored[ONE, "host/x"].body == b"\xff", "as the shell gave it"
    assert run("kv", "set", ONE, "host/x", "@/none").code == 4
    assert run("kv", "set", ONE, "host/x", "@").code == 4
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"in\n")))
    run("kv", "set", ONE, "host/x", "-", "--for", "90")
    assert memory.stored[ONE, "host/x"].body == b"in\n"
    assert memory.stored[ONE, "host/x"].until == pytest.approx(time.time() + 90, abs=30)


def test_watch_until_interrupted(tmp_path: Path, memory: Memory) -> None:
    memory.changed = [live.ChangeView(1, NOW, ONE, "guest/before", "put", "e", 1)]

    def change(seq: int, key: str, instance: Any = ONE, op: str = "put") -> None:
        memory.changed.append(live.ChangeView(seq, NOW, instance, key, op, "e" if op == "put" else "", 3))

    def await_watcher(before: int = 0) -> None:
        """What comes before the verb waits for it, it never sees."""
        wait_until(lambda: memory.changes_awaited > before, "the verb to wait for changes")

    with Host(tmp_path / "s", memory):
        with metashim(tmp_path / "s", "kv", "watch", str(ONE), "guest") as child:
            assert child.stdout and child.stderr
            await_watcher()
            change(2, "guest/other", TWO)
            change(3, "host/x")
            change(4, "guest/\x1bx")
            change(5, "guest/y", op="delete")
            lines = [child.stdout.readline().split("  ", 1)[1] for _ in range(2)]
            assert lines == ["put     guest/?x  3 bytes  e\n", "delete  guest/y\n"]
            child.send_signal(signal.SIGINT)
            assert (child.wait(10), child.stderr.read().strip()) == (130, "")
        before = memory.changes_awaited
        with metashim(tmp_path / "s", "kv", "watch", "--all", "--json") as child:
            assert child.stdout and child.stderr
            await_watcher(before)
            change(6, "guest/z", TWO)
            assert json.loads(child.stdout.readline())["instance"] == str(TWO)
            child.stdout.close()
            change(7, "guest/z", TWO)
            assert (child.wait(10), child.stderr.read()) == (1, ""), "as `| head` ends it"


# --- switches


def test_paths(run: Shell, memory: Memory) -> None:
    done = run("disable", ONE, TWO, "--path", "user-data", "--path", "/2009-04-04/meta-data/")
    assert done.out == f"{ONE}: closed: user-data, /latest/meta-data\n{TWO}: closed: user-data, /latest/meta-data\n"
    assert memory.policies[ONE] == Policy(closed=("user-data", "/latest/meta-data")), "and nothing else"
    assert f"{ONE}  serving      open, partly closed" in run("list").out
    assert "closed     user-data, /latest/meta-data\n" in run("show", ONE).out
    some = run("enable", ONE, "--path", "/latest/user-data")
    assert some.code == 6 and "closed all the same, by user-data" in some.err
    assert run("enable", ONE, "--path", "user-data", "--json").json["done"][0]["policy"]["closed"] == [
        "/latest/meta-data"
    ]  # fmt: skip
    assert run("enable", ONE, "--path", "/latest/meta-data").out == f"{ONE}: no path is closed\n"
    assert run("enable", ONE, "--path", "kv").code == 0, "open already"
    assert run("disable", ONE, "--path", "no").code == 4
    memory.refuse = {ONE}
    failed = run("disable", ONE, TWO, "--path", "kv")
    assert failed.code == 6 and failed.out.startswith(f"{TWO}: closed: ")


def test_what_a_guest_locked_stays_locked(run: Shell, memory: Memory) -> None:
    memory.policies[ONE] = Policy(Access.DROP, Access.DROP, latched=("/",))
    memory.policies[TWO] = Policy(latched=("user-data",))
    result = run("enable", ONE, TWO)
    assert result.code == 6 and len(result.out.splitlines()) == 2
    assert f"{ONE}: refused all the same: its guest locked it" in result.err and str(TWO) not in result.err
    assert f"`metashim unlock {ONE}`" in result.err
    listed = run("list").out
    assert "reset, locked" in listed and "open, partly locked" in listed
    assert "locked     all (by the guest)\n" in run("show", ONE).out
    part = run("enable", TWO, "--path", "/latest/user-data", "--json")
    assert part.code == 6 and f"`metashim unlock {TWO} user-data`" in part.err and part.json["failed"] == []
    assert run("unlock", ONE, "kv").out.splitlines() == [
        f"{ONE}: nothing of the kind is locked", f"{ONE}: locked still: all (by the guest)"
    ]  # fmt: skip
    assert run("unlock", ONE).out == f"{ONE}: all unlocked\n"
    assert run("unlock", ONE).out == f"{ONE}: nothing of the kind is locked\n"
    assert run("unlock", TWO, "user-data", "--json").json["opened"] == ["user-data"]
    assert run("unlock", TWO, "user").code == 4
    assert run("enable", ONE).code == 0
    assert memory.policies[ONE].latched == memory.policies[TWO].latched == ()


def test_auto(run: Shell, memory: Memory) -> None:
    done = run("auto", ONE, TWO, "--at", "2030-01-31T18:00:00+01:00", "--on-read", "--how", "drop")
    words = "will be disabled: drop at 2030-01-31 17:00:00, or once it has read its user-data"
    assert done.out == f"{ONE}: {words}\n{TWO}: {words}\n"
    assert memory.policies[ONE] == Policy(auto=Auto(Access.DROP, 1896109200.0, True))
    assert "auto       drop at 2030-01-31 17:00:00, or once it has" in run("show", ONE).out
    assert "open, auto" in run("list").out
    run("auto", ONE, "--after", "15m")
    auto = memory.policies[ONE].auto
    assert auto and auto.until == pytest.approx(time.time() + 900, abs=30) and not auto.on_read
    assert run("auto", ONE, "--on-ready", "--json").json["done"][0]["policy"]["auto"] == {
        "how": "reset", "until": None, "on_read": False, "on_ready": True
    }  # fmt: skip
    assert run("auto", ONE, TWO, "--never").out == f"{ONE}: no auto\n{TWO}: no auto\n"
    assert memory.policies[ONE] == Policy()
    past = run("auto", ONE, "--at", "2020-01-01")
    assert past.code == 4 and "that time is over" in past.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("1d12h", 129600), ("90", 90), ("0s", None),
     ("", None), ("m", None), ("1w", None), ("-5m", None), ("1.5h", None), ("5 m", None), ("\u0665m", None),
     ("9" * 10, None), ("1m\n", None)],
)  # fmt: skip
def test_durations(run: Shell, memory: Memory, text: str, seconds: int | None) -> None:
    result = run("auto", ONE, f"--after={text}")
    assert result.code == (4 if seconds is None else 0)
    auto = memory.policies.get(ONE, Policy()).auto
    assert (auto and auto.until) == (None if seconds is None else pytest.approx(time.time() + seconds, abs=30))


@pytest.mark.parametrize(
    ("text", "at"),
    [("2030-01-31", 1896048000), ("2030-01-31T18:00", 1896112800), ("2030-01-31 18:00:00Z", 1896112800),
     ("1896112800", 1896112800), ("20300131", 1896048000), ("tomorrow", None), ("18:00", None), ("2030-02-30", None),
     ("1e9", None), ("", None), ("9999-12-31", None), ("99999999999", 99999999999), ("189611280000", None),
     ("0001-01-01", None), ("0001-01-01T00:00+14:00", None)],
)  # fmt: skip
def test_times(run: Shell, memory: Memory, text: str, at: int | None) -> None:
    result = run("auto", ONE, f"--at={text}")
    assert result.code == (4 if at is None else 0)
    auto = memory.policies.get(ONE, Policy()).auto
    assert (auto and auto.until) == at


def test_show_tells_of_sources_keys_and_reports(run: Shell, memory: Memory) -> None:
    memory.kept["host", "base"] = Source(HOST, "base", b"x")
    memory.stored[ONE, "guest/x"] = Value("guest/x", b"")
    memory.reports[ONE] = shapes.ReportsView(NOW, NOW + 60)
    assert run("show", ONE).out.splitlines()[5:9] == [
        "taps       tap10  serving",
        "sources    host/base",
        "keys       1",
        "reports    ready 2026-09-21 14:13:20, user-data read 2026-09-21 14:14:20",
    ]
    assert run("show", ONE, "--json").json["keys"] == 1


def test_audit(run: Shell, memory: Memory) -> None:
    assert run("audit").out == ""
    memory.note("root (uid 0)", ONE, "lock", "user-data\x1b[2J")
    memory.note("agent", None, "auto")
    assert run("audit").out.splitlines() == [
        f"2026-09-21 14:13:20  root (uid 0)    {ONE}  lock  user-data?[2J",
        f"2026-09-21 14:13:20  agent           {'-':<36}  auto",
    ]
    assert run("audit", ONE, "--json").json["who"] == "root (uid 0)"
    lines = run("audit", "-n", "1", "--json").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [2]
    run("disable", ONE)
    assert "tester (uid 7)" in run("audit").out


def test_audit_follows(tmp_path: Path, memory: Memory) -> None:
    memory.note("a", ONE, "one")
    with Host(tmp_path / "s", memory), metashim(tmp_path / "s", "audit", str(ONE), "-f", "--json") as child:
        assert child.stdout and child.stderr
        assert json.loads(child.stdout.readline())["what"] == "one"
        memory.note("a", TWO, "two")
        memory.note("a", ONE, "three")
        assert json.loads(child.stdout.readline())["what"] == "three"
        child.send_signal(signal.SIGINT)
        assert (child.wait(10), child.stderr.read().strip()) == (130, "")


# --- the host's own


def test_backup_and_restore(run: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def backup(config: Any, path: Path, force: bool) -> dict[str, int]:
        calls.append((config.host.name, path, force))
        return {"documents": 3, "guests_keys": 4}

    def restore(config: Any, path: Path) -> dict[str, int]:
        raise errors.ConflictError("an agent runs", "stop it first")

    fake = types.SimpleNamespace(backup=backup, restore=restore)
    monkeypatch.setitem(sys.modules, "shim.host_store", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(shim, "host_store", fake, raising=False)
    (tmp_path / "m.toml").write_text('[host]\nname = "abc"\n')
    assert main(["--config", str(tmp_path / "m.toml"), "backup", "copy.db"]) == 0
    told = run._capture.readouterr().out
    assert told.splitlines() == ["file         copy.db", "documents    3", "guests keys  4"]
    assert run("backup", "copy.db", "--force", "--json").json == {"file": "copy.db", "documents": 3, "guests_keys": 4}
    assert calls == [("abc", Path("copy.db"), False), ("metashim", Path("copy.db"), True)]
    assert run("restore", "copy.db").code == 6


# --- all of them


VERBS: list[tuple[object, ...]] = [
    ("userdata", "list"),
    ("userdata", "list", ONE),
    ("userdata", "show", "host", "base"),
    ("userdata", "add", "host", "base", "/dev/null"),
    ("userdata", "remove", "host", "base"),
    ("userdata", "preview", ONE),
    ("userdata", "compose", "vendor", ONE),
    ("kv", "get", ONE, "host/x"),
    ("kv", "set", ONE, "host/x", "1"),
    ("kv", "delete", ONE, "host/x"),
    ("kv", "list", ONE),
    ("kv", "watch", ONE),
    ("kv", "watch", "--all"),
    ("disable", ONE, "--path", "kv"),
    ("enable", ONE, "--path", "kv"),
    ("auto", ONE, "--on-read"),
    ("unlock", ONE),
    ("audit",),
]


def name(verb: tuple[object, ...]) -> str:
    return " ".join(map(str, verb[:2]))


@pytest.mark.parametrize("verb", VERBS, ids=name)
def test_no_agent(verb: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = Shell(tmp_path / "none", capsys)(*verb)
    assert result.code == 9 and "no agent answers" in result.err and "systemctl" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("w", "h"), 4),
        (errors.NotFoundError("w", "h"), 5),
        (errors.ConflictError("w", "h"), 6),
        (errors.KernelError("w", "h"), 7),
        (errors.StoreError("w", "h"), 8),
    ],
)
@pytest.mark.parametrize("verb", VERBS, ids=name)
def test_the_agent_s_errors_are_exit_codes(
    run: Shell, memory: Memory, verb: tuple[object, ...], error: errors.MetashimError, code: int
) -> None:
    memory.fail = error
    result = run(*verb)
    assert result.code == code and result.out == ""
    assert result.err.splitlines()[0].endswith("w") and result.err.splitlines()[1] == "  h"


@pytest.mark.parametrize(
    "arguments",
    [
        ("userdata", "ad"),
        ("userdata", "list", ONE, "--scope", "host"),
        ("userdata", "add", "host", "base"),
        ("userdata", "add", "host", "base", "/dev/null", "--once", "--confirm"),
        ("userdata", "add", "host", "base", "/dev/null", "--until", "2030-01-01", "--for", "1h"),
        ("userdata", "add", "host", "base", "/dev/null", "--order", "1000"),
        ("userdata", "compose", "both", ONE),
        ("userdata", "compose", "vendor"),
        ("kv", "watch"),
        ("kv", "watch", ONE, "guest", "more"),
        ("kv", "watch", "--all", ONE, "guest"),
        ("kv", "set", ONE, "host/x"),
        ("kv", "set", ONE, "host/x", "-5"),
        ("disable", ONE, "--path", "kv", "--how", "reset"),
        ("disable", ONE, "--path", "kv", "--family", "both"),
        ("enable", ONE, "--path", "kv", "--hop-limit", "1"),
        ("auto", ONE),
        ("auto", "--never"),
        ("auto", ONE, "--never", "--on-read"),
        ("auto", ONE, "--at", "2030-01-01", "--after", "1h"),
        ("auto", ONE, "--on-read", "--how", "open"),
        ("unlock",),
        ("audit", "-n", "0"),
        ("backup",),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)).replace(str(ONE), "ONE"),
)
def test_wrong_usage(run: Shell, memory: Memory, arguments: tuple[object, ...]) -> None:
    result = run(*arguments)
    assert result.code == 2 and "--help`" in result.err
    assert (memory.kept, memory.stored, memory.policies) == ({}, {}, {})


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("userdata", "show", "hosts", "base"), "'hosts' is no scope"),
        (("userdata", "show", "instance:x", "base"), "not an instance id"),
        (("userdata", "show", "host", "a/b"), "no name of a source"),
        (("userdata", "show", "host", ""), "name of a source|resource"),
        (("kv", "get", "web1", "host/x"), "not an instance id"),
        (("kv", "get", ONE, "x"), "begins with host/ or guest/"),
        (("kv", "get", ONE, ""), "begins with host/ or guest/"),
        (("kv", "set", ONE, "host/a b", "1"), "segments are"),
        (("kv", "list", ONE, "a?b#c"), "begins with host/ or guest/"),
        (("kv", "watch", ONE, "x"), "begins with host/ or guest/"),
        (("kv", "watch", "web1"), "not an instance id"),
        (("kv", "watch", "--all", "x"), "begins with host/ or guest/"),
        (("userdata", "add", "host", "x", "/dev/null", "--owner", "a\nb"), "no owner"),
        (("userdata", "add", "host", "x", "/dev/null", "--merge", "lists"), "no merge type"),
        (("userdata", "add", str(ONE), "document", "/dev/null"), "document's own"),
        (("audit", "web1"), "not an instance id"),
    ],
)
def test_wrong_arguments(run: Shell, arguments: tuple[object, ...], what: str) -> None:
    result = run(*arguments)
    assert result.code in (4, 5) and any(words in result.err for words in what.split("|")), result.err


def test_completion_asks_the_agent(tmp_path: Path, memory: Memory) -> None:
    memory.kept["tag:role=web", "nginx"] = Source(Scope("tag", "role=web"), "nginx", b"x")
    memory.kept["host", "base"] = Source(HOST, "base", b"x")
    memory.stored[ONE, "guest/report"] = Value("guest/report", b"x")
    with Host(tmp_path / "s", memory):
        assert complete(tmp_path / "s", "user") == ["userdata"]
        assert complete(tmp_path / "s", "userdata p") == ["preview"]
        assert complete(tmp_path / "s", "userdata show t") == ["tag:", "tag:role=web"]
        assert complete(tmp_path / "s", "userdata show 6") == [str(ONE)]
        assert complete(tmp_path / "s", "userdata show host ") == ["base"]
        assert complete(tmp_path / "s", "userdata remove tag:role=web n") == ["nginx"]
        assert complete(tmp_path / "s", "userdata list c") == [str(TWO)]
        assert complete(tmp_path / "s", "kv watch 6") == [str(ONE)]
        assert complete(tmp_path / "s", f"kv get {ONE} ") == ["guest/report"]
        assert complete(tmp_path / "s", f"kv get {TWO} g") == ["guest/"]
        assert complete(tmp_path / "s", "unlock 6") == [str(ONE)]
        assert complete(tmp_path / "s", f"unlock {ONE} k") == ["keys", "kv"]
        assert complete(tmp_path / "s", f"disable {ONE} --path u") == ["user-data"]
        assert complete(tmp_path / "s", "auto 6") == [str(ONE)]
    assert complete(tmp_path / "s", "userdata show h") == ["host"], "no agent: no names, no noise"
    assert complete(tmp_path / "s", f"kv get {NOBODY} h") == ["host/"]
