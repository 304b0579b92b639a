"""A source in a child: what it says counts, and whatever it does otherwise, the last known mapping holds.

The children are real processes: a small script that speaks as it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.exchange import Subject
from shim.core.link import Link
from shim.identity import child as children
from shim.identity.child import Child
from shim.identity.said import CLAIMS_MAX, LINE_BYTES, Claim, Said, applied, decode, encode, plain, subject_of
from tests.lab.namespace import wait_until

ROOT = Path(__file__).parents[2]
ONE = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
TWO = UUID("c0ffee00-1111-4222-8333-444455556666")
FIRST, SECOND = Claim("tap1", str(ONE)), Claim("tap1", str(TWO))


def in_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """A test that is a coroutine, run as a function."""

    @functools.wraps(test)
    def run(*arguments: object, **fixtures: object) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


def link(name: str, netns: str = "") -> Link:
    return Link(7, name, netns=netns)


# --- messages


def test_a_claim_becomes_a_subject():
    claim = Claim(
        "tap1", ONE.hex.upper(), "rack1", "5f1d", "2001:DB8::5", "web", "m1.small", "port-id", "52:54:00:aa:bb:cc"
    )
    subject = Subject(ONE, "5f1d", "2001:db8::5", "web", "m1.small", "port-id", "52:54:00:aa:bb:cc")
    assert subject_of(claim) == subject
    assert applied({}, Said(claims=(claim,))) == {("rack1", "tap1"): subject}


def test_whole_replaces_and_the_rest_adds_and_takes():
    known = {("", "tap0"): Subject(TWO), ("", "tap9"): Subject(TWO)}
    assert applied(known, Said(whole=True, claims=(FIRST,))) == {("", "tap1"): Subject(ONE)}
    change = Said(claims=(FIRST,), gone=(("", "tap0"), ("", "tap5")))
    assert applied(known, change) == {("", "tap9"): Subject(TWO), ("", "tap1"): Subject(ONE)}
    assert applied(known, Said(claims=(FIRST,), gone=(("", "tap1"),)))["", "tap1"] == Subject(ONE)
    assert applied(known, Said(trouble="all is lost")) == known
    assert len(known) == 2


@pytest.mark.parametrize(
    "claims",
    [
        [FIRST, SECOND],
        [Claim("tap/1", str(ONE))],
        [Claim("tap1", str(ONE), netns="a/b")],
        [Claim("tap1", "no uuid")],
        [Claim("tap1", str(ONE), project="two words")],
        [Claim("tap1", str(ONE), address="10.0.0.256")],
        [Claim("tap1", str(ONE), name="a\nb")],
        [Claim("tap1", str(ONE), flavor=" ")],
        [Claim("tap1", str(ONE), port="\x85")],
        [Claim("tap1", str(ONE), mac="52:54:00:AA:BB:CC")],
    ],
)
def test_a_bad_claim_says_nothing_at_all(claims):
    known = {("", "tap5"): Subject(TWO)}
    with pytest.raises(ValueError, match="tap"):
        applied(known, Said(claims=(Claim("tap2", str(TWO)), *claims)))
    assert known == {("", "tap5"): Subject(TWO)}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"whole": 1}',
        b'{"more": true}',
        b'{"claims": [{"tap": "tap1"}]}',
        b'{"claims": [{"tap": "tap1", "instance": "x", "other": 1}]}',
        b'{"gone": ["tap1"]}',
        b"[" * 100_000,
        encode(Said(trouble="x" * 2001)),
        encode(Said(claims=(Claim("t" * 65, "x"),))),
        encode(Said(claims=(Claim("t", "x", name="x" * 256),))),
        encode(Said(gone=(("", ""),) * (CLAIMS_MAX + 1))),
    ],
    ids=lambda line: line[:12].decode(errors="replace"),
)
def test_what_is_no_message(line):
    with pytest.raises(ValueError):
        decode(line)


def test_more_than_the_most_taps_are_refused():
    half = tuple(Claim(f"a{n}", str(ONE)) for n in range(CLAIMS_MAX // 2))
    known = applied({}, decode(encode(Said(whole=True, claims=half))))
    assert len(applied(known, Said(claims=half))) == CLAIMS_MAX // 2
    others = tuple(msgspec.structs.replace(claim, tap="b" + claim.tap) for claim in half)
    full = applied(known, Said(claims=others))
    with pytest.raises(ValueError, match="more than 20000 taps"):
        applied(full, Said(claims=(FIRST,)))


def test_a_line_that_is_too_long_is_not_said():
    long = tuple(Claim(f"a{n}", str(ONE), name="x" * 255, flavor="y" * 255) for n in range(CLAIMS_MAX))
    with pytest.raises(ValueError, match="20000 claims"):
        encode(Said(claims=long))


@given(st.text(st.characters(codec=None, exclude_categories=())), st.integers(1, 300))
def test_any_text_becomes_plain(text, most):
    once = plain(text, most)
    assert plain(once, most) == once
    assert len(once) <= most
    subject_of(decode(encode(Said(claims=(Claim("t", str(ONE), name=plain(text)),)))).claims[0])


# --- children


@pytest.fixture
def script(tmp_path, monkeypatch) -> Iterator[Path]:
    """The module `speaks`, to be written by the test; every child that is left over at the end is an error."""
    monkeypatch.setattr(children, "BACKOFF_SECONDS", (0.01,))
    path = tmp_path / "speaks.py"
    yield path
    assert not pids(path), "a child is left"


def pids(path: Path) -> list[int]:
    """The processes that were given this script's own path as an argument."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(path).encode() in one.read_bytes().split(b"\0"):
                found.append(int(one.parent.name))
    return found


PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from shim.identity.said import Claim, Said
from shim.identity.speaker import Speaker
with open(Path(__file__).with_name("runs"), "a+") as note:
    note.write("x")
    run = note.tell()
ONE, TWO = "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60", "c0ffee00-1111-4222-8333-444455556666"
speaker = Speaker()
say = speaker.say
first = Said(whole=True, claims=(Claim("tap1", ONE),))
"""


class Watched:
    """A child that is watched; `woken` counts the calls of `changed`."""

    def __init__(self, path: Path) -> None:
        self.child = Child("test", "tests.unit.speaks", str(path))
        self.woken = 0
        self._path = path

    @property
    def runs(self) -> int:
        """How many children have begun."""
        note = self._path.with_name("runs")
        return len(note.read_text()) if note.exists() else 0

    def changed(self) -> None:
        self.woken += 1

    def who(self, tap: str = "tap1") -> UUID | None:
        found = self.child.subject_of(link(tap))
        return found.instance if found else None

    async def until(self, condition, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition(self):
            assert time.monotonic() < end, self.child.health()
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def watched(path: Path, text: str) -> AsyncIterator[Watched]:
    path.write_text(PREAMBLE + textwrap.dedent(text))
    site = Watched(path)
    assert "not started yet" in (site.child.health() or "")
    task = asyncio.ensure_future(site.child.watch(site.changed))
    try:
        yield site
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@in_loop
async def test_what_a_child_says_counts(script):
    async with watched(script, "say(first); sys.stdin.read()") as site:
        assert (site.child.known, site.child.refresh(), site.who()) == (False, False, None)
        await site.until(lambda s: s.child.known)
        assert (site.who(), site.who("tap2"), site.child.health()) == (ONE, None, None)
        assert site.child.subject_of(link("tap1", "rack1")) is None
        assert site.woken == 1
        assert (site.child.refresh(), site.child.refresh()) == (True, False)


@in_loop
async def test_nothing_at_all_is_knowledge_too(script):
    async with watched(script, "say(Said(whole=True)); sys.stdin.read()") as site:
        await site.until(lambda s: s.child.known)
        assert (site.child.refresh(), site.woken, site.child.health()) == (True, 1, None)


@in_loop
async def test_what_changes_nothing_wakes_nobody(script):
    text = """
        say(first); say(first); say(Said(claims=first.claims)); say(Said(gone=(("", "tap7"),)))
        say(Said(trouble="the end of it")); sys.stdin.read()
    """
    async with watched(script, text) as site:
        await site.until(lambda s: "the end of it" in (s.child.health() or ""))
        assert site.child.refresh()
        woken = site.woken
        assert woken >= 1
        assert (site.child.refresh(), site.woken) == (False, woken)


@in_loop
async def test_trouble_is_health_and_what_is_known_holds(script):
    text = """
        say(first); say(Said(trouble="libvirtd is away")); sys.stdin.readline()
    """
    async with watched(script, text) as site:
        await site.until(lambda s: s.who() and s.child.health())
        health = site.child.health()
        assert health is not None
        assert health.startswith("libvirtd is away (since 2")
        assert health.endswith("Z; the last known mapping holds)")


@in_loop
async def test_a_child_that_crashes_is_started_again(script):
    text = """
        if run == 1:
            say(first)
        if run < 4:
            os.kill(os.getpid(), signal.SIGSEGV)
        say(Said(whole=True, claims=(Claim("tap1", TWO),))); sys.stdin.read()
    """
    async with watched(script, text) as site:
        seen = set()

        def second(s: Watched) -> bool:
            seen.add((s.who(), s.child.health() and s.child.health()[:20]))
            return s.who() == TWO

        await site.until(second)
        assert {who for who, _ in seen} <= {None, ONE, TWO}
        assert (ONE, "its process ended (s") in seen
        assert site.child.health() is None
        assert site.runs == 4


@pytest.mark.parametrize(
    "says",
    [
        "os.write(1, b'hello\\n')",
        "os.write(speaker._out, b'hello\\n')",
        "os.write(speaker._out, b'{\"claims\": [{\"tap\": \"a b\", \"instance\": \"x\"}]}\\n')",
        "os.write(speaker._out, b'{\"claims\": [')",
    ],
    ids=["print", "garbage", "claim", "half"],
)
@in_loop
async def test_garbage_ends_the_child_and_what_is_known_holds(script, says):
    ends = "" if "speaker._out" in says and "[')" not in says else "sys.exit(3)"
    async with watched(script, f"say(first)\n{says}\n{ends}\nsys.stdin.read()") as site:
        await site.until(lambda s: s.who() == ONE and "was ended" in (s.child.health() or "")
                         if not ends else "status 3" in (s.child.health() or ""))  # fmt: skip
        assert site.who() == ONE
        await site.until(lambda s: s.runs > 2)


@in_loop
async def test_a_flood_without_an_end_is_not_kept(script):
    text = f"""
        say(first)
        if run == 1:
            sent = 0
            while sent <= {2 * LINE_BYTES + (1 << 20)}:
                sent += os.write(speaker._out, b"x" * 65536)
        sys.stdin.read()
    """
    async with watched(script, text) as site:
        await site.until(lambda s: s.runs == 2 and s.child.health() is None)


@in_loop
async def test_a_flood_of_messages_does_not_hold_up_the_others(script):
    text = """
        line = b'{"trouble":"%d"}\\n'
        os.write(speaker._out, b"".join(line % (n % 7) for n in range(4000)))
        say(first); sys.stdin.read()
    """
    async with watched(script, text) as site:
        turns = 0
        while site.who() is None:
            turns += 1
            await asyncio.sleep(0)
        assert turns > 2000


@in_loop
async def test_a_child_that_says_nothing_is_told_of(script, monkeypatch):
    monkeypatch.setattr(children, "SILENT_SECONDS", 0.05)
    async with watched(script, "sys.stdin.read()") as site:
        await site.until(lambda s: "said nothing yet" in (s.child.health() or ""))
        assert not site.child.known
        assert "nothing is known of it yet" in (site.child.health() or "")


@in_loop
async def test_a_child_that_cannot_be_started_is_told_of(script, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    async with watched(script, "") as site:
        await site.until(lambda s: "cannot be started: No such file" in (s.child.health() or ""))


@in_loop
async def test_what_the_child_started_ends_with_it(script):
    text = """
        import subprocess
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]])
        say(first); sys.stdin.read()
    """
    async with watched(script, text) as site:
        await site.until(lambda s: s.who() == ONE)
        assert len(pids(script)) == 2
    wait_until(lambda: not pids(script), "the end of both")


AGENT = """
import asyncio, sys
from tests.unit.test_child import Watched
from pathlib import Path
asyncio.run(Watched(Path(sys.argv[1])).child.watch(lambda: print("known", flush=True)))
"""


@pytest.mark.parametrize("hangs", ["sys.stdin.read()", "time.sleep(600)"])
def test_a_child_ends_with_an_agent_that_is_killed(script, hangs):
    script.write_text(f"{PREAMBLE}\nsay(first)\n{hangs}")
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(script)], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == b"known\n"
    assert len(pids(script)) == 2
    agent.kill()
    agent.wait()
    agent.stdout.close()
    wait_until(lambda: not pids(script), "the child's end")


@in_loop
async def test_a_child_ends_with_its_input_alone(script):
    """Without the kernel's signal, as when the agent's other end was closed by hand."""
    script.write_text(f"{PREAMBLE}\nsay(first)\ntime.sleep(600)")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.unit.speaks", str(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    assert decode(await process.stdout.readline()).whole
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 20) == 0


@in_loop
async def test_a_child_has_no_capability_but_what_it_keeps(script):
    text = """
        lines = Path("/proc/self/status").read_text().splitlines()
        found = [line for line in lines if line.startswith(("Cap", "NoNewPrivs"))]
        say(Said(trouble=" ".join(" ".join(line.split()) for line in found))); sys.stdin.read()
    """
    async with watched(script, text) as site:
        await site.until(lambda s: "NoNewPrivs" in (s.child.health() or ""))
        words = (site.child.health() or "").split()
        status = dict(zip(words[::2], words[1::2], strict=False))
        assert status["NoNewPrivs:"] == "1"
        assert {int(status[f"Cap{name}:"], 16) for name in ("Eff", "Prm", "Inh", "Amb")} == {0}
        if os.geteuid() == 0:
            assert int(status["CapBnd:"], 16) == 0


@pytest.mark.root
def test_what_is_kept_is_all_there_is():
    from_status = "import sys; sys.stdout.writelines(x for x in open('/proc/self/status') if x.startswith('Cap'))"
    script = f"from shim.identity import speaker\nspeaker.shed([1, 21, 38])\n{from_status}"
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    status = dict(line.split() for line in shown.splitlines())
    kept = 1 << 1 | 1 << 21 | 1 << 38
    assert {int(status[f"Cap{name}:"], 16) for name in ("Eff", "Prm", "Bnd")} == {kept}
    assert {int(status[f"Cap{name}:"], 16) for name in ("Inh", "Amb")} == {0}
