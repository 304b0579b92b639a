"""`metashim check` on this host and in network namespaces where something is wrong."""

from __future__ import annotations

import json
import os
import pwd
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from shim.check import Finding, findings, private_mounts
from shim.config import Config, parse
from shim.datapath.compile import PROGRAMS
from shim.datapath.ebpf import source_hash
from shim.settings import Datapath, Host, Proxy

ROOT = Path(__file__).parents[2]
USER = next(user.pw_name for user in pwd.getpwall() if user.pw_uid)
root = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")


def check(
    tmp_path: Path, script: str = "", config: str = "", path: str | None = None, spaces: tuple[str, ...] = ("--net",)
) -> tuple[int, dict[str, Finding]]:
    """Exit status and findings (by what they say) of `check` in fresh namespaces, after a shell script there."""
    (tmp_path / "m.toml").write_text(config or f'[proxy]\nuser = "{USER}"\n')
    verb = [sys.executable, "-m", "shim", "--config", str(tmp_path / "m.toml"), "check", "--json"]
    line = f"set -e\nip link set lo up\n{script}\nexec {shlex.join(verb)}"
    if path is not None:
        line = line.replace("exec ", f"PATH={path} exec ")
    done = subprocess.run(
        ["unshare", *spaces, "sh", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    found = [Finding(**one) for one in json.loads(done.stdout)["findings"]]
    assert all(f.hint for f in found if f.level != "ok"), "what is wrong comes with what to do"
    return done.returncode, {f.what: f for f in found}


def matching(found: dict[str, Finding], words: str) -> list[Finding]:
    return [f for what, f in found.items() if words in what]


@root
@needs_root
def test_a_good_host_and_nothing_is_left_of_the_trial(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    code, found = check(tmp_path, f"export TMPDIR={temporary}")
    assert code == 0, [f for f in found.values() if f.level == "fail"]
    taken = "eBPF programs: compiled, and taken by this kernel"
    for what in ("root", "bpf(2)", "bcc for Python", "veth pairs", "tap devices", "clsact for tc", taken):
        assert found[what].level == "ok"
    assert not any(link.startswith("msck") for _, link in socket.if_nameindex())
    assert list(temporary.iterdir()) == []


@root
@needs_root
@pytest.mark.parametrize(("datapath", "level", "code"), [("ebpf", "fail", 1), ("auto", "warn", 0)])
def test_a_verifier_that_refuses_the_programs(tmp_path: Path, datapath: str, level: str, code: int) -> None:
    """A source that no kernel takes stands in for a kernel that does not take ours."""
    refused = tmp_path / "refused.c"
    refused.write_text("int from_instance(struct __sk_buff *skb) { return *(volatile int *)4096; }\n")
    script = f"mount --bind {refused} {ROOT}/rules/bpf/from_instance.c"
    config = f'[proxy]\nuser = "{USER}"\n[datapath]\ndatapath = "{datapath}"\n'
    status, found = check(tmp_path, script, config, spaces=("--net", "--mount"))
    (finding,) = matching(found, "the eBPF programs cannot be compiled or loaded: Failed to load BPF program")
    assert (status, finding.level) == (code, level)
    assert "-m shim.datapath.trial" in finding.hint


@root
@needs_root
def test_programs_in_use_are_not_tried(tmp_path: Path) -> None:
    pins = tmp_path / "metashim/v1-2-3"
    pins.mkdir(parents=True)
    for name in PROGRAMS:
        (pins / f"{name}-{source_hash()}").touch()
    _, found = check(tmp_path, config=f'[proxy]\nuser = "{USER}"\n[host]\nbpffs = "{tmp_path}"\n')
    assert found["eBPF programs: in use"].level == "ok"


@root
@needs_root
def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    script = """
    ip link add tap0 type veth peer name eth9
    tc qdisc add dev tap0 clsact
    tc filter add dev tap0 ingress prio 3 protocol all bpf bytecode '1,6 0 0 0'
    tc filter add dev tap0 ingress prio 8 protocol all bpf bytecode '1,6 0 0 0'
    tc filter add dev tap0 egress prio 2 protocol all bpf bytecode '1,6 0 0 0'
    tc qdisc add dev eth9 clsact
    tc filter add dev eth9 ingress prio 1 protocol all bpf bytecode '1,6 0 0 0'
    nft add table ip old
    nft 'add chain ip old c { type nat hook prerouting priority 0; }'
    nft add rule ip old c ip daddr 169.254.169.254 tcp dport 80 redirect to :9697
    nft add table ip guard-metashim
    nft 'add chain ip guard-metashim c'
    nft add rule ip guard-metashim c ip daddr 169.254.169.254 drop
    nft add table ip other
    nft 'add chain ip other c'
    nft add rule ip other c ip daddr 169.254.169.25 drop
    nft add table ip6 more
    nft 'add chain ip6 more c'
    nft add rule ip6 more c ip6 daddr fd00:ec2::2541 drop
    ip addr add fe80::a9fe:a9fe/64 dev eth9 nodad
    ip link set eth9 up
    ip link set tap0 up
    ip addr add 100.64.3.1/24 dev eth9
    ip route add 169.254.169.254/32 dev eth9
    ip route add 10.0.0.0/8 dev eth9
    """
    code, found = check(tmp_path, script)
    assert code == 0, "warnings do not fail"
    warned = sorted(f.what for f in found.values() if f.level == "warn" and "bpf file" not in f.what)
    assert [w for w in warned if "nftables" in w] == ["nftables: table ip old has rules for 169.254.169.254"]
    assert [w for w in warned if "filter" in w] == [
        "tap0: a bpf filter of priority 3 comes before ours"
    ]
    clashes = [w for w in warned if w.startswith("the host has")]
    assert clashes == [
        "the host has the address 100.64.3.1/32 on eth9, which is within 100.64.0.0/10",
        "the host has the address fe80::a9fe:a9fe/128 on eth9, which is within fe80::a9fe:a9fe/128",
        "the host has the route 100.64.3.0/24 on eth9, which is within 100.64.0.0/10",
        "the host has the route 169.254.169.254 on eth9, which is within 169.254.169.254/32",
    ]


@root
@needs_root
def test_missing_programs_and_a_missing_user(tmp_path: Path) -> None:
    code, found = check(tmp_path, config='[proxy]\nuser = "no-such-user"\n', path="/nonexistent")
    assert code == 1
    assert {"no nft", "no tc", "no user no-such-user for the proxy"} <= {
        f.what for f in found.values() if f.level == "fail"
    }
    assert "apt install nftables" in found["no nft"].hint
    assert matching(found, "no network namespace")


@root
@needs_root
@pytest.mark.parametrize(("datapath", "level", "code"), [("ebpf", "fail", 1), ("auto", "warn", 0), ("nft", None, 0)])
def test_without_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datapath: str, level: str, code: int) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('none here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = f'[proxy]\nuser = "{USER}"\n[datapath]\ndatapath = "{datapath}"\n'
    status, found = check(tmp_path, config=config)
    assert status == code
    missing = matching(found, "bcc cannot be imported: ImportError: none here")
    assert [f.level for f in missing] == ([level] if level else [])
    assert [f.level for f in matching(found, "with nft, guests that tag their frames")] == (
        [] if datapath == "ebpf" else ["warn"]
    )
    if datapath == "auto":
        assert missing[0].hint.endswith("`auto` takes nftables until then")
    if datapath == "nft":
        assert not matching(found, "bpf(2)") and not matching(found, "bpf file system"), "it needs none of that"


@root
@needs_root
def test_taps_that_the_leak_guard_cannot_cover(tmp_path: Path) -> None:
    config = f'[proxy]\nuser = "{USER}"\n[datapath]\ntaps = ["tap*", "vnet[0-9]", "eth7"]\n'
    status, found = check(tmp_path, config=config)
    assert status == 0
    named = matching(found, "the leak guard cannot cover")
    assert [(f.level, f.what.split()[-1]) for f in named] == [("warn", "vnet[0-9]")]


@root
@needs_root
def test_rules_that_do_not_load_are_a_fault(tmp_path: Path) -> None:
    """An nft that refuses everything stands in for an old one."""
    old = tmp_path / "nft"
    version = '[ "$1" = --version ] && echo "nftables v0.9.8 (E.D.S.)" && exit'
    old.write_text(f'#!/bin/sh\n{version}\necho "syntax error" >&2\nexit 1\n')
    old.chmod(0o755)
    status, found = check(tmp_path, path=f"{tmp_path}:{os.environ['PATH']}")
    assert status == 1
    assert found["the leak guard cannot be loaded: syntax error"].level == "fail"
    assert found["the nftables datapath cannot be loaded: syntax error"].level == "warn", "eBPF is there"
    assert matching(found, "nft v0.9.8 is older") == [] and matching(found, "nft 0.9.8 is older")


@root
@needs_root
def test_a_private_mount_namespace_is_warned_of(tmp_path: Path) -> None:
    inside = tmp_path / "bpf"
    inside.mkdir()
    _, found = check(tmp_path, config=f'[host]\nbpffs = "{inside}"\n')
    assert found[f"no bpf file system on {inside}"].level == "warn"
    assert not matching(found, "private mount")
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo in; read x"], stdin=-1, stdout=-1) as child:
        assert child.stdout and child.stdin and child.stdout.readline() == b"in\n"
        assert private_mounts(str(child.pid), "self")
        child.stdin.close()
    assert not private_mounts("self", "self")
    assert not private_mounts("self", "no-such-process")


def only(config: Config, words: str) -> Finding:
    config = replace(config, datapath=replace(config.datapath, datapath="nft"))  # no programs are compiled
    return next(f for f in findings(config) if words in f.what)


def test_the_proxy_must_not_be_root() -> None:
    assert only(Config(proxy=Proxy(user="root")), "is root").level == "fail"
    assert only(Config(proxy=Proxy(user=USER)), f"user {USER}").level == "ok"


def test_a_group_that_is_not_there() -> None:
    config = parse(b'[control]\ngroup = "no-such-group"\n', "m.toml")
    found = only(config, "no-such-group")
    assert (found.level, found.hint) == ("fail", "groupadd --system no-such-group")


def test_too_few_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard in (resource.RLIM_INFINITY, 0) or hard >= 1048576:
        pytest.skip("no limit here to exceed")
    found = only(Config(proxy=Proxy(connections=1048576)), "open files")
    assert found.level == "warn" and "LimitNOFILE=1048676" in found.hint


def test_patterns_and_names_follow_the_configuration() -> None:
    config = Config(host=Host(name="zz"), datapath=Datapath(taps=("nothing-*",)))
    assert only(config, "guarded taps").what == "no filter is in the way on 0 guarded taps"


def test_text_sums_up(capsys: pytest.CaptureFixture[str]) -> None:
    from shim.control import text

    assert text.findings([("ok", "root", ""), ("warn", "a", "do b"), ("fail", "c", "do d")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    root",
        "warn  a",
        "      do b",
        "fail  c",
        "      do d",
        "1 to mend first; 1 to know of",
    ]
    assert text.findings([("ok", "root", "")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "this host is ready"


@root
@needs_root
@pytest.mark.parametrize("source", ["libvirt", "ovs"])
def test_the_library_that_an_identity_source_needs(tmp_path: Path, source: str) -> None:
    config = f'[proxy]\nuser = "{USER}"\n[identity]\nsources = ["{source}"]\n[datapath]\ndatapath = "nft"\n'
    _, found = check(tmp_path, config=config)
    assert [f.level for f in matching(found, f"identity source {source}")] == ["ok"]
    (tmp_path / f"{source}.py").write_text("raise ImportError")
    code, found = check(tmp_path, f"export PYTHONPATH={tmp_path}", config=config)
    assert code != 0
    [fault] = matching(found, f"identity source {source}")
    assert (fault.level, "apt install python3-" in fault.hint) == ("fail", True)
