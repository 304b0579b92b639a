"""Trying out in a child: what it answers, what it may not do, and what becomes of one that takes too much."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from shim import rehearsal, rehearse
from shim.core.kv import Value
from shim.core.policy import Composition
from shim.core.source import HOST, Kind, Reads, Scope, Source
from shim.errors import InputError, KernelError, MetashimError
from shim.metadata.merge import Problem
from shim.rehearsal import Rehearsal, Rehearsed, Stage
from tests.lab.proc import children

ROOT = Path(__file__).parents[2]
A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
B = UUID("00000000-0000-4000-8000-000000000002")
NOBODY = 65_534
CONFIG = Source(HOST, "base", b"#cloud-config\npackages: [a]\n")


def stage(*sources: Source, instance: UUID = A, **options: Any) -> Stage:
    return Stage(instance, 1000.0, options.pop("limit", 49_149), sources=list(sources), **options)


def run(work: Rehearsal) -> Rehearsed:
    return asyncio.run(rehearsal.rehearse(work, NOBODY, NOBODY))


def test_all_that_an_instance_is_gets_there() -> None:
    text = b"{{ kv['host/a'] }} {{ project_id }} {{ meta_data.name }} {{ addresses[0] }}"
    document = {"name": "web", "networks": [{"mac": "fa:16:3e:00:00:01", "addresses": ["192.0.2.1/24"]}]}
    sources = [
        Source(Scope("tag", "a=b"), "t", text, Kind.USER, "me", 7, "dict()", True, Reads.CONFIRM, 1e9),
        Source(HOST, "over", b"x", until=999.0),
        Source(HOST, "raw", b"\xff\x00", Kind.VENDOR),
    ]  # fmt: skip
    values = [Value("host/a", "größe".encode()), Value("host/b", b"\xff", reads=Reads.ONCE, until=5.0, revision=3)]
    made = stage(*sources, document=json.dumps(document).encode(), project="blue", values=values, backend=b"theirs")
    (played,) = run(Rehearsal("preview", [made])).instances
    assert played.preview is not None
    part, theirs = played.preview.user.parts
    assert part.text == "größe blue web 192.0.2.1"
    assert (part.scope, part.owner, part.order, part.merge, part.reads, part.until) == (
        "tag:a=b", "me", 7, "dict()", "confirm", 1e9,
    )  # fmt: skip
    assert theirs.text == "theirs"
    assert played.preview.vendor.parts[0].text is None


def test_each_instance_is_answered_for_in_order() -> None:
    per_instance = Source(HOST, "t", b"{{ tags.team }}", template=True)
    plays = run(Rehearsal("check", [
        stage(CONFIG, per_instance, instance=A, document=b'{"tags": {"team": "x"}}'),
        stage(CONFIG, per_instance, instance=B),
        stage(instance=B, document=b"not json"),
        stage(CONFIG, limit=10),
        stage(CONFIG, composition=Composition.VENDOR),
    ])).instances  # fmt: skip
    assert [played.instance for played in plays] == [A, B, B, A, A]
    assert [problem.id for problem in plays[0].problems] == ["host/t"]  # it is no kind of text
    assert plays[1].problems == [Problem("host/t", "line 1: 'dict object' has no attribute 'team'")]
    assert "not a document" in plays[2].fault
    assert "does not fit" in plays[3].problems[0].what
    assert plays[4].problems == []
    assert all(played.preview is None for played in plays)


def test_a_template_is_compiled_first_and_without_any_instance() -> None:
    assert run(Rehearsal("check", [stage(CONFIG)], b"\n{{")).fault == "line 2: unexpected 'end of template'"
    assert run(Rehearsal("check", [], b"{{ nope }}")) == Rehearsed()


MIME = b"MIME-Version: 1.0\n"
BODIES = [
    b"{{ '\\n\\x41\\N{BULLET}\\u00e9' }}{{ 'a'|urlencode }}{{ [3, 1]|sort|tojson }}{{ 'a b'|truncate(2) }}",
    b"{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}x{% endcall %}{{ 1 / 0 }}",
    b"{{ nope.nope }}",
    b"{{ 'a' * 10**9 }}",
    b"#cloud-config\na: [1, 1.5, .inf, 0x1f, 2024-01-01, 2024-01-01T00:00:00Z, ~]\n"
    b"b: [!!binary aGk=, !!set {a}, !!omap [a: 1]]\n",
    b"#cloud-config\na: [\n",
    b"#cloud-config\na: 2024-99-99\n",
    b"#cloud-config\na: !!python/name:os.system\n",
    MIME + b"Content-Type: text/cloud-config; charset=iso-8859-5\n\n#cloud-config\na: \xe9\n",
    MIME + b"Content-Type: text/cloud-config; charset*=koi8-r''x\nSubject: =?koi8-r?B?4Q==?=\n\n#cloud-config\na: 1\n",
    MIME + b"Content-Disposition: a; filename*=koi8-r''%e1\nContent-Transfer-Encoding: uuencode\n\nbegin 644 x\n",
    MIME + b"Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\n#cloud-config=0Aa: 1=\n",
    MIME + b"Content-Type: message/rfc822\n\nFrom: a\n\nb",
    b"\x1f\x8b\x08\x00broken",
]


def test_the_child_lacks_nothing_that_is_loaded_late() -> None:
    """It can open no file any more when it begins: what it makes of all kinds of things is what is made here."""
    sources = [Source(HOST, f"s{number:02}", body, template=number < 4) for number, body in enumerate(BODIES)]
    stages = [stage(CONFIG, one, user) for one in sources for user in (sources[4], sources[8])]
    for only in ("check", "preview"):
        work = Rehearsal(only, stages)  # type: ignore[arg-type]
        assert run(work) == msgspec.json.decode(msgspec.json.encode(rehearse.play(work)), type=Rehearsed)


def alias_bomb() -> bytes:
    """YAML that is small and, compared with another of its kind, without end."""
    lines = [b"l%d: &l%d [%b]\n" % (n, n, b",".join([b"*l%d" % (n - 1)] * 9)) for n in range(1, 30)]
    return b"#cloud-config\nl0: &l0 [x]\n" + b"".join(lines)


def test_one_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 0.8)
    began = time.monotonic()
    bombs = [Source(HOST, name, alias_bomb(), merge="dict(no_replace)") for name in "ab"]
    with pytest.raises(InputError, match="trying it out for 1 instances took longer than") as refused:
        run(Rehearsal("preview", [stage(*bombs)]))
    assert "simpler or smaller" in refused.value.hint
    assert time.monotonic() - began < 10
    assert children() == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.exit(3)", r"too much time or memory \(no memory\)"),
        ("import os; os.kill(os.getpid(), 9)", r"too much time or memory \(Killed\)"),
        ("import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 1))\nwhile True: pass", r"memory \(Killed\)"),
        ("import time; time.sleep(60)", "took longer than 0 s"),  # nor does it read what it is told
        ("import os; os.close(0); os.close(1); import time; time.sleep(60)", "took longer than 0 s"),
        ("import sys; sys.stdin.read()\nwhile True: print('x' * 65536)", "more than 1000000 bytes"),
    ],
)
def test_whatever_becomes_of_the_child_is_an_error_in_words(
    script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def started(_who: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdin=pipe, stdout=pipe, start_new_session=True
        )

    monkeypatch.setattr(rehearsal, "_started", started)
    monkeypatch.setattr(rehearsal, "SECONDS", 0.4 if "longer" in words else 5.0)
    monkeypatch.setattr(rehearsal, "ANSWER_BYTES", 1_000_000)
    with pytest.raises(InputError, match=words):
        run(Rehearsal("check", [stage(Source(HOST, "a", bytes(1_000_000)))]))
    assert children() == []


def test_nobody_waits_for_a_child_whose_caller_is_gone() -> None:
    async def given_up() -> None:
        bombs = [Source(HOST, name, alias_bomb(), merge="dict(no_replace)") for name in "ab"]
        task = asyncio.ensure_future(rehearsal.rehearse(Rehearsal("preview", [stage(*bombs)]), NOBODY, NOBODY))
        await asyncio.sleep(0.6)
        assert len(children()) >= 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    assert children() == []


def test_one_that_fails_otherwise_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MetashimError, match=r"failed \(status 1\)") as failed:
        run(msgspec.structs.replace(Rehearsal("check"), only="nonsense"))  # type: ignore[arg-type]
    assert not isinstance(failed.value, InputError)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(KernelError, match="no process can be started: No such file"):
        run(Rehearsal("check"))


def test_answers_without_end_are_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "ANSWER_BYTES", 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        run(Rehearsal("preview", [stage(CONFIG)]))


PROBE = """
import os, sys
from shim import rehearse
rehearse._confine()
tried = {}
for name, call in {
    "open": lambda: open("/etc/passwd"), "fork": lambda: os.fork(), "socket": lambda: __import__("_socket").socket(),
    "memory": lambda: bytearray(1 << 30),
}.items():
    try:
        call()
        tried[name] = True
    except (OSError, MemoryError):
        tried[name] = False
print(tried)
"""


def test_the_child_can_open_nothing() -> None:
    argv = [sys.executable, "-c", "import _socket" + PROBE]
    user = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd="/", env=environment, capture_output=True, text=True, check=True, **user)
    assert done.stdout.strip() == "{'open': False, 'fork': False, 'socket': False, 'memory': False}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to see it given up")
def test_the_child_is_nobody_before_it_reads() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "shim.rehearse", f"{NOBODY}:{NOBODY}"]
    with subprocess.Popen(argv, cwd="/", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        deadline = time.monotonic() + 10
        while "CapBnd:\t0000000000000000" not in (status := Path(f"/proc/{child.pid}/status").read_text()):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
        assert "NoNewPrivs:\t1" in status
        out, _ = child.communicate(msgspec.json.encode(Rehearsal("check")))
        assert msgspec.json.decode(out, type=Rehearsed) == Rehearsed()
