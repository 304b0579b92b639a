"""Every verb against the API on a real Unix socket: JSON parsed, text looked at, exit codes, no traceback."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import shim
from shim import errors
from shim.cli import EPILOG, cli, main
from shim.config import Config
from shim.control import shapes
from shim.core.policy import Access, Policy, Tokens
from shim.datapath import compile, guard_rules
from shim.datapath.ebpf import RULES
from shim.datapath.nft import ruleset
from shim.host import nft_settings
from shim.settings import Host as HostSettings
from tests.unit.cli_shell import Shell, complete, metashim
from tests.unit.control_memory import NOBODY, ONE, TWO, Host, Memory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def run(tmp_path: Path, memory: Memory, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    with Host(tmp_path / "s", memory):
        yield Shell(tmp_path / "s", capsys)


def test_status(run: Shell) -> None:
    assert run("status").out.splitlines() == [
        "agent      0.1.0, pid 4141, up 3 h 12 min",
        "datapath   ebpf",
        "service    169.254.169.254, fd00:ec2::254; port 80",
        "taps       3: 2 serving, 1 no-identity",
        "instances  2",
        "tokens     optional",
        "routes     / embedded",
        "           /openstack nova",
        "proxy      1 of 2 workers up, 3 connections, 3 restarts",
        "health     1 not well",
        "           - identity: file: bad",
        "             mend it",
    ]
    shown = run("status", "--json").json
    assert (shown["fallback"], shown["lacks"]) == ("", [])
    assert shown["states"] == {"serving": 2, "refused": 0, "no-identity": 1}


def test_status_of_backends(run: Shell, memory: Memory) -> None:
    memory.backends = [
        shapes.BackendView("nova", "http://a:1", True),
        shapes.BackendView("nova", "unix:/b", False, "refused\x1b"),
    ]
    lines = run("status").out.splitlines()
    assert lines[9:11] == ["backends   nova http://a:1 up", "           nova unix:/b down: refused?"]
    assert run("status", "--json").json["backends"][1] == {
        "name": "nova", "address": "unix:/b", "healthy": False, "why": "refused\x1b"
    }  # fmt: skip


def test_status_of_what_auto_fell_back_on(run: Shell, memory: Memory) -> None:
    memory.datapath, memory.fallback, memory.lacks = "nft", "No module named 'bcc'", ["VLAN tags", "more"]
    assert run("status").out.splitlines()[1:5] == [
        "datapath   nft",
        "           in place of ebpf: No module named 'bcc'",
        "           with nft: VLAN tags",
        "           with nft: more",
    ]
    shown = run("status", "--json").json
    assert (shown["datapath"], shown["fallback"], shown["lacks"]) == ("nft", memory.fallback, memory.lacks)


def test_list(run: Shell, memory: Memory) -> None:
    memory.policies[NOBODY] = Policy(v6=Access.DROP)
    assert run("list").out.splitlines() == [
        "TAP         INSTANCE                              STATE        ACCESS                FROM",
        "tap2        -                                     no-identity  -                     -",
        f"tap10       {ONE}  serving      open                  alias",
        f"rack1/tap9  {TWO}  serving      open                  operator",
        f"-           {NOBODY}  no tap       IPv4 open, IPv6 drop  -",
    ]
    found = run("list", "--json").json
    assert [p["tap"] for p in found["ports"]] == ["tap10", "tap2", "tap9"]
    assert str(NOBODY) in [i["instance"] for i in found["instances"]]


def test_list_when_there_is_nothing(run: Shell, memory: Memory) -> None:
    memory.taps.clear()
    assert run("list").out == "no taps and no instances yet: a tap joins when it matches datapath.taps\n"


def test_show(run: Shell, memory: Memory) -> None:
    memory.documents[ONE] = json.dumps(
        {"hostname": "web1", "user_data": "#cloud-config\npassword: x", "networks": [{"mac": "02:00"}]}
    ).encode()
    memory.revision = 4
    shown = run("show", ONE.hex)
    assert shown.out.splitlines() == [
        f"instance     {ONE}",
        "access       open (default)",
        "hop limit    64",
        "tokens       optional (default)",
        "routes       / embedded (default)",
        "taps         tap10  serving",
        "document     revision 4",
        "  hostname   web1",
        "  user_data  (25 bytes)",
        '  networks   [{"mac":"02:00"}]',
    ]
    assert "password" not in shown.out
    assert run("show", ONE, "--json").json["document"]["user_data"].endswith("password: x")
    memory.policies[TWO] = Policy(tokens=Tokens.REQUIRED, routes=(("/", "nova"), ("/latest", "embedded")))
    bare = run("show", TWO).out
    assert "tokens     required\nroutes     / nova\n           /latest embedded\n" in bare
    assert "document   none" in bare


def test_on_a_narrow_terminal_names_stay_whole(tmp_path: Path, memory: Memory) -> None:
    near, far = pty.openpty()
    with Host(tmp_path / "s", memory):
        verb = [sys.executable, "-m", "shim", "--socket", str(tmp_path / "s"), "list"]
        terminal = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "40"}
        for colour in ({}, {"NO_COLOR": "1"}):
            subprocess.run(verb, cwd=ROOT, stdout=far, env=terminal | colour, check=True)
            shown = os.read(near, 65536).decode()
            assert str(ONE) in shown and "no-identity" in shown
            assert ("\x1b[31m" in shown) == (not colour), "red, unless NO_COLOR"
    os.close(near)
    os.close(far)


def test_text_from_outside_cannot_steer_the_terminal(run: Shell, memory: Memory) -> None:
    memory.taps = {("", "tap\x1b[2J"): ONE}
    memory.documents[ONE] = json.dumps({"hostname": "a\nmetashim: forged\x9b31m"}).encode()
    assert "\x1b" not in run("list").out
    shown = run("show", ONE).out
    assert "\x1b" not in shown and "\x9b" not in shown and "a?metashim: forged" in shown
    failed = run("detach", "tap\x1b[2J")
    assert failed.code == 5 and "\x1b" not in failed.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.json", ' {"hostname": "web1"}\n'),
        ("d.toml", 'hostname = "web1"\n'),
        ("d", 'hostname = "web1"\n'),
        ("d.conf", '{"hostname": "web1"}'),
    ],
)
def test_set_reads_json_and_toml(run: Shell, memory: Memory, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert run("set", ONE, tmp_path / name).out == f"document of {ONE}: revision 1\n"
    assert json.loads(memory.documents[ONE]) == {"hostname": "web1"}
    assert run("set", ONE, tmp_path / name, "--json").json == {"instance": str(ONE), "revision": 2}


def test_set_reads_standard_input(run: Shell, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"name": "n"}')))
    assert run("set", ONE, "-").code == 0
    assert memory.documents[ONE] == b'{"name": "n"}'


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", ""),
        (b"{", "document"),
        (b"[1]", "document"),
        (b'{"hostnam": "x"}', "hostnam"),
        (b"hostname = web1", "TOML"),
        (b"\xff\xfe", "TOML"),
        (b"- yaml", "TOML"),
    ],
)
def test_set_refuses_what_is_no_document(
    run: Shell, memory: Memory, tmp_path: Path, raw: bytes, what: str
) -> None:
    (tmp_path / "d").write_bytes(raw)
    result = run("set", ONE, tmp_path / "d")
    if raw:
        assert result.code == 4 and what in result.err
        assert memory.documents == {}
    else:
        assert result.code == 0 and memory.documents[ONE] == b"{}", "an empty file is an empty document"


def test_set_without_a_file(run: Shell, tmp_path: Path) -> None:
    assert run("set", ONE, tmp_path / "none").code == 4
    assert run("set", ONE, tmp_path).code == 4


def test_attach_and_detach(run: Shell, memory: Memory) -> None:
    assert run("attach", "tap2", ONE).out == f"tap2 is {ONE}'s\n"
    assert memory.attached["", "tap2"] == ONE
    assert run("attach", "tap3", TWO, "--netns", "rack1", "--json").json == {
        "tap": "tap3",
        "netns": "rack1",
        "instance": str(TWO),
    }
    assert memory.attached["rack1", "tap3"] == TWO
    conflict = run("attach", "tap2", TWO)
    assert (conflict.code, conflict.err.splitlines()[1]) == (6, "  `metashim detach tap2` first")
    assert run("detach", "tap2").out == "tap2 is detached\n"
    assert run("detach", "tap3", "--netns", "rack1", "--json").code == 0
    assert run("detach", "tap3").code == 5
    assert run("attach", "a/b", ONE).code == 4


def test_disable_and_enable(run: Shell, memory: Memory) -> None:
    result = run("disable", ONE, TWO, ONE)
    assert result.code == 0 and len(result.out.splitlines()) == 2
    assert result.out.startswith(f"{ONE}: reset after ") and result.out.rstrip().endswith("ms")
    refused = Policy(Access.RESET, Access.RESET)
    assert memory.policies == {ONE: refused, TWO: refused}
    assert run("enable", ONE, "--family", "4").out.startswith(f"{ONE}: IPv4 open, IPv6 reset after ")
    done = run("disable", TWO, "--how", "403", "--family", "6", "--json").json
    assert done["failed"] == [] and done["done"][0]["policy"]["v6"] == "403"
    assert done["done"][0]["milliseconds"] > 0
    run("disable", ONE, "--how", "drop")
    assert memory.policies[ONE] == Policy(Access.DROP, Access.DROP)
    run("enable", ONE, "--hop-limit", "2")
    assert memory.policies[ONE] == Policy(hop_limit=2)
    assert run("enable", ONE, "--hop-limit", "65").code == 2


def test_one_that_fails_does_not_keep_the_others(run: Shell, memory: Memory) -> None:
    memory.refuse = {ONE}
    result = run("disable", ONE, TWO)
    assert result.code == 6 and f"metashim: {ONE}: not that one" in result.err
    assert list(memory.policies) == [TWO] and result.out.startswith(str(TWO))
    both = run("disable", ONE, TWO, "--json")
    assert both.code == 6 and both.json["failed"] == [
        {"instance": str(ONE), "error": "not that one", "hint": "try another"}
    ]


def test_one_that_is_misspelt_keeps_all_as_they_are(run: Shell, memory: Memory) -> None:
    assert run("disable", ONE, "web1").code == 4
    assert memory.policies == {}


def test_tokens_tells_who_would_break(run: Shell, memory: Memory) -> None:
    memory.used = {ONE: (5, 2, 1), TWO: (900, 40, 0)}
    memory.policies[NOBODY] = Policy(tokens=Tokens.REQUIRED)
    assert run("tokens").out.splitlines() == [
        "INSTANCE                              TOKENS              WITH  WITHOUT  REFUSED",
        f"{TWO}  optional (default)   900       40        0",
        f"{ONE}  optional (default)     5        2        1",
        f"{NOBODY}  required               0        0        0",
        "default: optional; 2 of 3 instances made requests without a token",
    ]
    shown = run("tokens", "--json").json
    assert shown["mode"] == "optional"
    assert {
        "instance": str(TWO), "mode": "optional", "own": False, "with_token": 900, "without_token": 40,
        "token_refused": 0,
    } in shown["instances"]  # fmt: skip
    memory.taps.clear()
    memory.policies.clear()
    assert run("tokens").out == "default: optional; 0 of 0 instances made requests without a token\n"


def test_tokens_are_set(run: Shell, memory: Memory) -> None:
    memory.policies[ONE] = Policy(Access.DROP, hop_limit=2)
    result = run("tokens", "required", ONE, TWO, ONE)
    assert result.out.startswith(f"{ONE}: tokens required after ") and len(result.out.splitlines()) == 2
    assert memory.policies == {
        ONE: Policy(Access.DROP, hop_limit=2, tokens=Tokens.REQUIRED), TWO: Policy(tokens=Tokens.REQUIRED)
    }  # fmt: skip
    assert run("tokens", "off", TWO, "--json").json["done"][0]["policy"]["tokens"] == "off"
    assert run("tokens", "default", ONE).out.startswith(f"{ONE}: tokens optional (default) after ")
    assert memory.policies[ONE].tokens is None
    memory.refuse = {ONE}
    assert run("tokens", "optional", ONE, TWO).code == 6
    assert memory.policies[TWO].tokens is Tokens.OPTIONAL
    assert run("tokens", "off", "web1").code == 4


def test_rotate_keys(run: Shell, memory: Memory) -> None:
    assert run("rotate-keys").out == (
        "session tokens are signed with a new key in 60 s; all hold until they expire\n"
    )
    assert memory.keys == 3
    assert run("rotate-keys", "--drop").out == (
        "session tokens are signed with a new key; none given before holds any more\n"
    )
    assert run("rotate-keys", "--json").json == {"keys": 2, "begins_seconds": 60.0}


def test_routes(run: Shell, memory: Memory) -> None:
    assert run("routes", ONE).out.splitlines() == [f"{ONE}: routes (default)", "PREFIX  BACKEND", "/       embedded"]
    assert memory.policies == {}, "only shown"
    given = run("routes", ONE, "/=nova", "/latest/user-data=embedded")
    assert given.out.splitlines() == [
        f"{ONE}: routes", "PREFIX             BACKEND", "/                  nova", "/latest/user-data  embedded"
    ]  # fmt: skip
    assert memory.policies[ONE].routes == (("/", "nova"), ("/latest/user-data", "embedded"))
    shown = run("routes", ONE, "--json").json
    assert shown == {"instance": str(ONE), "routes": {"/": "nova", "/latest/user-data": "embedded"}, "own": True}
    assert run("routes", ONE, "--default", "--json").json["own"] is False
    assert memory.policies[ONE].routes is None


@pytest.mark.parametrize(
    ("routes", "what"),
    [
        (("nova",), "'nova' is no route"),
        (("/=nova", "/=embedded"), "twice"),
        (("/latest=nova",), 'no backend for "/"'),
        (("/=swift",), "there is no backend 'swift'"),
        (("/=nova", "/a//b=nova"), "'/a//b' is no path prefix"),
        (("/=http",), "the backend http is not set up"),
    ],
)
def test_routes_that_cannot_be(run: Shell, memory: Memory, routes: tuple[str, ...], what: str) -> None:
    result = run("routes", ONE, *routes)
    assert result.code == 4 and what in result.err
    assert memory.policies == {}


def test_counters(run: Shell) -> None:
    assert run("counters").out.splitlines()[:2] == [
        "TAP         INSTANCE                              OPENED  DELIVERED  REPLIED  REFUSED",
        "tap2        -                                          5       1234      999        9",
    ]
    assert run("counters", "tap2").out.splitlines() == [
        "VERDICT      PACKETS",
        "delivered       1234",
        "replied          999",
        "wrong_port         7",
        "opened             5",
        "spoofed_arp        2",
    ]
    assert run("counters", TWO.hex, "--json").json["ports"][0]["tap"] == "tap9"
    assert run("counters", "tap9", "--netns", "rack1").code == 0
    assert run("counters", "tap9").code == 5
    assert run("counters", NOBODY).code == 5


def _events(memory: Memory) -> None:
    memory.log = [
        shapes.EventView(1, 0.25, "refusal", "port 81", "tap9", "rack1", TWO, "wrong_port"),
        shapes.EventView(2, 1.5, "agent", "started"),
    ]


def test_events(run: Shell, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    _events(memory)
    assert run("events").out.splitlines() == [
        f"00:00:00.250  refusal   rack1/tap9       wrong_port port 81 {TWO}",
        "00:00:01.500  agent     -                started",
    ]
    lines = run("events", "--json").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2]


def test_events_follow_until_interrupted(tmp_path: Path, memory: Memory) -> None:
    _events(memory)
    with Host(tmp_path / "s", memory):
        with metashim(tmp_path / "s", "events", "--follow", "--json") as child:
            assert child.stdout and json.loads(child.stdout.readline())["seq"] == 1
            child.stdout.readline()
            memory.log.append(shapes.EventView(3, 2.0, "policy", "later"))
            assert json.loads(child.stdout.readline())["text"] == "later"
            child.send_signal(signal.SIGINT)
            assert child.stderr
            assert (child.wait(10), child.stderr.read().strip()) == (130, "")
        with metashim(tmp_path / "s", "events", "--follow", "--json") as child:
            assert child.stdout and child.stderr
            child.stdout.readline()
            child.stdout.close()
            memory.log.append(shapes.EventView(4, 2.0, "policy", "unread"))
            assert (child.wait(10), child.stderr.read()) == (1, ""), "as `| head` ends it"


def test_output_that_nobody_reads(tmp_path: Path, memory: Memory) -> None:
    with Host(tmp_path / "s", memory), metashim(tmp_path / "s", "list") as child:
        assert child.stdout and child.stderr
        child.stdout.close()
        assert (child.wait(10), child.stderr.read()) == (1, "")


VERBS = [
    ("status",),
    ("list",),
    ("show", ONE),
    ("set", ONE, "/dev/null"),
    ("attach", "tap1", ONE),
    ("detach", "tap1"),
    ("enable", ONE),
    ("disable", ONE),
    ("counters",),
    ("events",),
    ("tokens",),
    ("tokens", "required", ONE),
    ("rotate-keys",),
    ("routes", ONE),
    ("routes", ONE, "/=nova"),
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
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
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
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
        ("lst",),
        ("show",),
        ("status", "--jsn"),
        ("status", "extra"),
        ("disable", ONE, "--how", "maybe"),
        ("disable", ONE, "--family", "5"),
        ("completion", "tcsh"),
        ("enable",),
        ("tokens", "sometimes", ONE),
        ("tokens", ONE),
        ("tokens", "required"),
        ("routes",),
        ("routes", ONE, "/=nova", "--default"),
        ("rotate-keys", "--drops"),
    ],
)
def test_wrong_usage(run: Shell, arguments: tuple[object, ...]) -> None:
    result = run(*arguments)
    assert result.code == 2 and "--help`" in result.err


def test_configuration(tmp_path: Path, memory: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "m.toml"
    config.write_text(f'[host]\nrun_dir = "{tmp_path}"\n')
    with Host(tmp_path / "control.sock", memory):
        assert main(["--config", str(config), "status"]) == 0
    config.write_text("[datapath]\nmax_port = 1\n")
    capsys.readouterr()
    assert main(["--config", str(config), "status"]) == 3
    assert capsys.readouterr().err.splitlines()[1] == "  did you mean max_ports?"
    for verb in (["agent"], ["check"], ["rules"], ["teardown"], ["backup", "x"], ["restore", "x"]):
        assert main(["--config", str(config), *verb]) == 3


def test_help_tells_the_exit_codes(run: Shell) -> None:
    shown = run("--help").out
    families = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MetashimError)
    ]
    for family in families:
        assert f"    {family.exit_code} " in shown, family
    assert EPILOG.count("\n") == 11
    assert run("--version").out.split() == ["metashim,", "version", shim.__version__]


def verbs(group: click.Group, before: str = "") -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from verbs(command, f"{before}{name} ")
        else:
            yield before + name


@pytest.mark.parametrize("verb", list(verbs(cli)))
def test_every_verb_has_help_and_json(run: Shell, verb: str) -> None:
    shown = run(*verb.split(), "-h")
    assert shown.code == 0 and shown.out.startswith(f"Usage: metashim {verb}")
    assert ("--json" in shown.out) == (verb != "agent")


def test_the_verbs_are_those_that_are_promised() -> None:
    on_the_agent = "status list show set attach detach enable disable counters events tokens rotate-keys routes"
    on_the_agent += " auto unlock audit userdata kv why trace"
    hosts = {"agent", "check", "rules", "teardown", "completion", "backup", "restore"}
    assert set(cli.commands) == {*on_the_agent.split(), *hosts}


def test_a_group_alone_says_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ((), ("userdata",), ("kv",)):
        assert main(group) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith(" ".join(("Usage: metashim", *group))) and "list" in told.err


# --- the host's own verbs


@pytest.fixture
def privileged(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Entry functions in the place of the agent's: what matters here is how the verbs call them."""
    calls: list[tuple[str, str]] = []

    def start(config: Any) -> int:
        calls.append(("run", f"{config.host.name} on {config.datapath.datapath}"))
        return 7

    fake = types.SimpleNamespace(
        calls=calls, run=start, teardown=lambda config: calls.append(("teardown", config.host.name))
    )
    monkeypatch.setitem(sys.modules, "shim.agent", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(shim, "agent", fake, raising=False)
    return fake


def test_agent_ends_with_its_status(run: Shell, privileged: types.SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('[host]\nname = "abc"\n')
    assert main(["--config", str(tmp_path / "m.toml"), "agent"]) == 7
    assert privileged.calls == [("run", "abc on auto")]


def test_agent_on_a_datapath(run: Shell, privileged: types.SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('[datapath]\ndatapath = "nft"\n')
    config = ("--config", str(tmp_path / "m.toml"), "agent")
    assert [main(config), main((*config, "--datapath", "ebpf")), main((*config, "--datapath", "iptables"))] == [7, 7, 2]
    assert privileged.calls == [("run", "metashim on nft"), ("run", "metashim on ebpf")]


def test_teardown(run: Shell, privileged: types.SimpleNamespace) -> None:
    assert run("teardown").out == "all of metashim is removed from the kernel\n"
    assert run("teardown", "--json").json == {"removed": "metashim"}
    assert privileged.calls == [("teardown", "metashim")] * 2


def test_rules_are_what_would_be_loaded(run: Shell, tmp_path: Path) -> None:
    config = Config(host=HostSettings(name="h7"))
    (tmp_path / "m.toml").write_text('[host]\nname = "h7"\n')

    def rules(*arguments: str) -> str:
        run("--version")
        assert main(["--config", str(tmp_path / "m.toml"), "rules", *arguments]) == 0
        return str(run._capture.readouterr().out)

    guard = guard_rules.ruleset("h7", config.datapath.taps, [*config.datapath.service_v4, *config.datapath.service_v6])
    assert rules() == rules("--datapath", "ebpf") == f"{compile.source(RULES)}\n{guard.text}\n"
    text = rules("--datapath", "nft")
    assert text.startswith(ruleset(nft_settings(config)).text) and text.endswith(f"{guard.text}\n")
    assert "table netdev datapath-h7 {" in text and "table bridge guard-h7 {" in text
    assert json.loads(rules("--datapath", "nft", "--json"))["guard"] == guard.text
    assert sorted(json.loads(rules("--json"))) == ["ebpf", "guard"]
    (tmp_path / "m.toml").write_text('[datapath]\ndatapath = "nft"\n')
    assert sorted(json.loads(rules("--json"))) == ["guard", "nft"]


# --- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Shell, shell: str) -> None:
    script = run("completion", shell).out
    assert f"{shell}_complete" in script and "_METASHIM_COMPLETE" in script
    assert run("completion", shell, "--json").json["script"].strip() == script.strip()


def test_completion_asks_the_agent(tmp_path: Path, memory: Memory) -> None:
    with Host(tmp_path / "s", memory):
        assert complete(tmp_path / "s", "show 6") == [str(ONE)]
        assert complete(tmp_path / "s", "disable ") == sorted([str(ONE), str(TWO)])
        assert complete(tmp_path / "s", "detach tap") == ["tap10", "tap2", "tap9"]
        assert complete(tmp_path / "s", "dis") == ["disable"]
        assert complete(tmp_path / "s", "tokens re") == ["required"]
        assert complete(tmp_path / "s", "tokens off 6") == [str(ONE)]
        assert complete(tmp_path / "s", "routes 6") == [str(ONE)]
        assert complete(tmp_path / "s", f"routes {ONE} /a=n") == ["/a=nova"]
        assert complete(tmp_path / "s", f"routes {ONE} /a") == ["/a=embedded", "/a=http", "/a=nova"]
    assert complete(tmp_path / "s", "show ") == [], "no agent: no names, no noise"


# --- weight


def test_a_verb_imports_little() -> None:
    code = (
        "import sys; from shim.cli import main; main(['--socket', '/nowhere', 'list']);"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"bcc", "pyroute2", "rich", "uvloop", "httptools", "scapy"} & set(done.stdout.split())
    assert importlib.util.find_spec("rich"), "or the line above says nothing"


def test_a_verb_starts_fast(tmp_path: Path) -> None:
    """Processor time of `list`, bytecode at hand: under 150 ms in the best of five; on a machine that is slow then,
    no more than 1.6 times what the libraries alone take that it needs."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    libraries = [sys.executable, "-c", "import click, http.client, msgspec"]
    spent, needed = [], []
    for _ in range(6):
        before = seconds()
        assert metashim_at(tmp_path / "none", environment) == 9
        spent.append(seconds() - before)
        subprocess.run(libraries, cwd=ROOT, env=environment, check=True)
        needed.append(seconds() - before - spent[-1])
    assert min(spent) < max(0.15, 1.6 * min(needed)), (spent, needed)


def metashim_at(socket: Path, environment: dict[str, str]) -> int:
    verb = [sys.executable, "-m", "shim", "--socket", str(socket), "list"]
    return subprocess.run(verb, cwd=ROOT, env=environment, capture_output=True, check=False).returncode
