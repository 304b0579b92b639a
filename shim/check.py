"""Whether this host can run metashim: each finding with what to do about it.

Nothing on the host is changed: what must be tried is tried in a network namespace of its own, which
goes away with the child that made it.
"""

from __future__ import annotations

import ctypes
import grp
import json
import os
import platform
import pwd
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shim.check_backends import backends
from shim.config import Config
from shim.datapath import compile
from shim.datapath.ebpf import in_use
from shim.datapath.guard_rules import uncovered
from shim.datapath.nft import Nft
from shim.finding import Finding
from shim.host import rules_of, tables_of
from shim.settings import SLOTS_V4, SLOTS_V6

KERNEL_MIN = (5, 10)  # bpf_redirect_peer()
NFT_MIN = (1, 0, 6)
FILTER_PRIORITY, FILTER_PRIORITY_MAX = 7, 65535  # ours, on every tap; tc's last
CHILD_SECONDS = 20.0
SPARE_FILES = 100  # beyond one a connection: listeners, the store, the feed, the journal

BPF_MAP_CREATE, BPF_MAP_TYPE_ARRAY = 0, 2  # linux/bpf.h
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}

Network = IPv4Network | IPv6Network


def findings(config: Config) -> Iterator[Finding]:
    """Everything there is to say of this host, in the order in which to mend it; as soon as it is known, since the
    programs take a while."""
    yield from _system()
    yield from _software()
    yield from _kernel_trial(_TRIALS)
    yield from _datapaths(config)
    yield from _guard(config)
    yield from _accounts(config)
    yield from _libraries(config)
    yield from backends(config)
    yield from _filters(config)
    yield from _rules(config)
    yield from _addresses(config)


def _system() -> Iterator[Finding]:
    root = os.geteuid() == 0
    yield Finding("ok", "root") if root else Finding("fail", "not root", "run `sudo metashim check`")
    release = platform.release()
    if _version(release) >= KERNEL_MIN:
        yield Finding("ok", f"kernel {release}")
    else:
        yield Finding("fail", f"kernel {release} is too old", "5.10 or newer can redirect to a peer")
    if private_mounts("self", "1"):
        what = "this is a private mount namespace: a namespace or bpf file system mounted here dies with it"
        yield Finding("warn", what, "start the agent outside of `ip netns exec` and of unshare")


def _datapaths(config: Config) -> Iterator[Finding]:
    """What the configured datapath needs. `auto` can do without one of the two."""
    kind = config.datapath.datapath
    if kind != "auto":
        yield from _ebpf(config) if kind == "ebpf" else _nft(config)
        return
    faults = 0
    for finding in _ebpf(config):
        faults += finding.level == "fail"
        yield _spared(finding, "`auto` takes nftables until then")
    nft = list(_nft(config))
    if faults:
        yield from nft
    else:
        yield from (_spared(finding, "`auto` takes eBPF here") for finding in nft[: -len(Nft.lacks)])


def _spared(finding: Finding, why: str) -> Finding:
    """A fault of what is not needed, as a warning."""
    return replace(finding, level="warn", hint=f"{finding.hint}; {why}") if finding.level == "fail" else finding


def _ebpf(config: Config) -> Iterator[Finding]:
    root = os.geteuid() == 0
    needed = [*([_bpf_syscall()] if root else []), *_compiler(), *_kernel_trial(_EBPF_TRIALS)]
    yield from needed
    yield _bpffs(config)
    if root and all(finding.level != "fail" for finding in needed):
        yield _programs(config)


def _nft(config: Config) -> Iterator[Finding]:
    """Ends with what nftables cannot do, whatever this host has."""
    version = _run(["nft", "--version"])[1].partition(" v")[2]
    if version and _version(version, 3) < NFT_MIN:
        yield Finding("warn", f"nft {version.split()[0]} is older than any that was tried", "1.0.6 is the first one")
    yield from _ruleset_trial("the nftables datapath", rules_of(config.on("nft"))["nft"])
    for what in Nft.lacks:
        hint = "eBPF does not have this limit; rules/README.md compares both"
        yield Finding("warn", f"with nft, {what}", hint)


def _guard(config: Config) -> Iterator[Finding]:
    yield from _ruleset_trial("the leak guard", rules_of(config)["guard"])
    for pattern in uncovered(config.datapath.taps):
        what = f"the leak guard cannot cover taps named {pattern}"
        yield Finding("warn", what, "until such a tap is enrolled nothing holds it back: use names, or a prefix and *")


def _ruleset_trial(what: str, ruleset: str) -> Iterator[Finding]:
    """Loads the very rules in a namespace where they meet nobody."""
    if os.geteuid() != 0:
        return
    status, _, errors = _run(["unshare", "--net", "nft", "-f", "-"], ruleset)
    if status == 0:
        yield Finding("ok", f"rules of {what}")
    else:
        reason = errors.strip().splitlines()[:1] or ["no answer"]
        hint = "nftables 1.0.6 or newer, and a kernel with the families netdev, bridge, inet and arp"
        yield Finding("fail", f"{what} cannot be loaded: {reason[0]}", hint)


def _bpf_syscall() -> Finding:
    """Make a map by bpf(2) and let it go: the kernel may be built or locked down without."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = struct.pack("=4I", BPF_MAP_TYPE_ARRAY, 4, 4, 1)  # type, key and value size, entries
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return Finding("warn", f"bpf(2) was not tried on {platform.machine()}", "the agent will try it")
    fd = libc.syscall(number, BPF_MAP_CREATE, attributes, len(attributes))
    if fd < 0:
        what = f"bpf(2): {os.strerror(ctypes.get_errno())}"
        return Finding("fail", what, "it takes CONFIG_BPF_SYSCALL in the kernel, and CAP_BPF in a container")
    os.close(fd)
    return Finding("ok", "bpf(2)")


def _version(text: str, places: int = 2) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:places])


def _bpffs(config: Config) -> Finding:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    if [config.host.bpffs, "bpf"] in [line.split()[1:3] for line in mounts]:
        return Finding("ok", f"bpf file system on {config.host.bpffs}")
    what = f"no bpf file system on {config.host.bpffs}"
    return Finding("warn", what, f"the agent mounts it; or `mount -t bpf bpf {config.host.bpffs}`")


def private_mounts(process: str, init: str) -> bool:
    """Whether a process sees other mounts than init does; False when that may not be asked."""
    try:
        return Path(f"/proc/{process}/ns/mnt").readlink() != Path(f"/proc/{init}/ns/mnt").readlink()
    except OSError:
        return False


def _compiler() -> Iterator[Finding]:
    status, _, errors = _run([sys.executable, "-c", "import bcc; bcc.BPF"])  # 60 MB: in a child
    if status == 0:
        yield Finding("ok", "bcc for Python")
    else:
        reason = errors.strip().splitlines()[-1:] or ["no answer"]
        hint = "apt install python3-bpfcc, and make the venv with --system-site-packages"
        yield Finding("fail", f"bcc cannot be imported: {reason[0]}", hint)
    if Path("/usr/include/linux/bpf.h").exists():
        yield Finding("ok", "kernel headers for user space")
    else:
        yield Finding("fail", "no /usr/include/linux/bpf.h", "apt install linux-libc-dev")


def _programs(config: Config) -> Finding:
    """The very programs, for this kernel's verifier. Those in use were taken."""
    if in_use(config.pins):
        return Finding("ok", "eBPF programs: in use")
    with TemporaryDirectory(prefix="metashim-") as folder:
        trial = [sys.executable, "-m", "shim.datapath.trial", folder]
        status, _, errors = _run(["unshare", "--mount", "--propagation", "private", *trial], seconds=compile.SECONDS)
    if status == 0:
        return Finding("ok", "eBPF programs: compiled, and taken by this kernel")
    reason = errors.strip().splitlines()[-1:] or ["no answer"]
    hint = f"all that was said: unshare --mount {sys.executable} -m shim.datapath.trial /mnt"
    return Finding("fail", f"the eBPF programs cannot be compiled or loaded: {reason[0]}", hint)


def _software() -> Iterator[Finding]:
    for command, package in ((["nft", "--version"], "nftables"), (["tc", "-V"], "iproute2")):
        status, output, _ = _run(command)
        if status == 0:
            yield Finding("ok", output.strip())
        else:
            yield Finding("fail", f"no {command[0]}", f"apt install {package}")


_TRIALS = (
    ("veth pairs", "ip link add msck0 type veth peer name msck1", "modprobe veth"),
    ("tap devices", "ip tuntap add dev msck2 mode tap", "modprobe tun"),
)
_EBPF_TRIALS = (
    ("clsact for tc", "ip link add msck0 type veth && tc qdisc add dev msck0 clsact", "modprobe sch_ingress"),
    ("tc's bpf filter", "tc filter add dev msck0 ingress bpf da bytecode '1,6 0 0 0'", "modprobe cls_bpf"),
)


def _kernel_trial(trials: tuple[tuple[str, str, str], ...]) -> Iterator[Finding]:
    """Runs commands, each of which may rest on those before, in a namespace of their own."""
    if os.geteuid() != 0:
        yield Finding("warn", f"{trials[-1][0]}: not tried", "that needs root")
        return
    script = "".join(f"({command}) >/dev/null 2>&1; echo $?\n" for _, command, _ in trials)
    status, output, errors = _run(["unshare", "--net", "sh", "-c", script])
    results = output.split()
    if status != 0 or len(results) != len(trials):
        what = f"no network namespace can be made: {errors.strip()}"
        yield Finding("fail", what, "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN")
        return
    for (what, command, hint), result in zip(trials, results, strict=True):
        yield Finding("ok", what) if result == "0" else Finding("fail", f"no {what} (`{command}`)", hint)


def _accounts(config: Config) -> Iterator[Finding]:
    user = config.proxy.user
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        hint = f"useradd --system --no-create-home --shell /usr/sbin/nologin {user}"
        yield Finding("fail", f"no user {user} for the proxy", hint)
    else:
        fault = Finding("fail", f"the proxy's user {user} is root", "proxy.user must be without privileges")
        yield fault if uid == 0 else Finding("ok", f"user {user} for the proxy")
    group = config.control.group
    if group and group not in {entry.gr_name for entry in grp.getgrall()}:
        yield Finding("fail", f"no group {group} for the control socket", f"groupadd --system {group}")
    files, wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[1], config.proxy.connections + SPARE_FILES
    if files != resource.RLIM_INFINITY and files < wanted:
        hint = f"set LimitNOFILE={wanted} in the unit, or lower proxy.connections"
        yield Finding("warn", f"only {files} open files allowed, {wanted} wanted", hint)
    else:
        yield Finding("ok", f"open files: {wanted} of {files if files >= 0 else 'any number'}")


_LIBRARIES = {"libvirt": ("libvirt", "python3-libvirt"), "ovs": ("ovs.jsonrpc", "python3-openvswitch")}


def _libraries(config: Config) -> Iterator[Finding]:
    """What identity sources need of Debian's own: their children look for it with this very interpreter."""
    for source in config.identity.sources:
        if source not in _LIBRARIES:
            continue
        module, package = _LIBRARIES[source]
        if _run([sys.executable, "-c", f"import {module}"])[0] == 0:
            yield Finding("ok", f"{module.partition('.')[0]} for Python, for the identity source {source}")
        else:
            what = f"{module.partition('.')[0]} cannot be imported, which the identity source {source} needs"
            yield Finding("fail", what, f"apt install {package}, and make the venv with --system-site-packages")


def _filters(config: Config) -> Iterator[Finding]:
    """Filters of others that see a tap's frames before ours: with nftables any, as tc comes first."""
    taps = [name for name in _links() if any(fnmatchcase(name, p) for p in config.datapath.taps)]
    behind = FILTER_PRIORITY if config.datapath.datapath != "nft" else FILTER_PRIORITY_MAX + 1
    found = False
    for tap in taps:
        for entry in _json(["tc", "-j", "filter", "show", "dev", tap, "ingress"]):
            foreign = not str(entry.get("options", {}).get("bpf_name", "")).startswith(f"{config.host.name}:")
            if entry.get("pref", behind) < behind and "options" in entry and foreign:
                found = True
                what = f"{tap}: a {entry.get('kind')} filter of priority {entry['pref']} comes before ours"
                hint = f"give it one above {FILTER_PRIORITY}, with eBPF, unless it lets metadata pass"
                yield Finding("warn", what, hint)
    if not found:
        yield Finding("ok", f"no filter is in the way on {len(taps)} guarded taps")


def _links() -> list[str]:
    return sorted(entry["ifname"] for entry in _json(["ip", "-j", "link", "show"]))


def _rules(config: Config) -> Iterator[Finding]:
    """Tables of others that speak of a service address."""
    output = _run(["nft", "list", "ruleset"])[1]
    addresses = [re.escape(address) for address in config.datapath.service_addresses]
    word = re.compile(rf"(?<![\w.:])({'|'.join(addresses)})(?![\w.:])")
    for block in re.split(r"^(?=table )", output, flags=re.MULTILINE):
        table = block.partition("{")[0].strip()
        hit = word.search(block)
        if hit and table.split()[-1] not in tables_of(config):
            what = f"nftables: {table} has rules for {hit[1]}"
            yield Finding("warn", what, f"see `nft list {table}`: remove what served metadata before")


def _addresses(config: Config) -> Iterator[Finding]:
    """Addresses and routes of the host's own that are, or lie within, those that metashim uses."""
    ours: list[Network] = [SLOTS_V4, SLOTS_V6, *map(ip_network, config.datapath.service_addresses)]
    found = False
    for kind, where, text in _host_networks():
        network = ip_network(text, strict=False)
        for own in ours:
            if where != f"{config.host.name}0" and _within(network, own):
                found = True
                what = f"the host has the {kind} {text} on {where}, which is within {own}"
                yield Finding("warn", what, "guests' metadata is not affected; the host's own traffic may be")
    if not found:
        yield Finding("ok", "no address or route of the host clashes")


def _within(network: Network, own: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(own, IPv4Network) and network.subnet_of(own)
    return isinstance(own, IPv6Network) and network.subnet_of(own)


def _host_networks() -> Iterator[tuple[str, str, str]]:
    """(address or route, interface, network) of this namespace."""
    for link in _json(["ip", "-j", "addr", "show"]):
        for address in link.get("addr_info", []):
            yield "address", link["ifname"], str(ip_interface(address["local"]).network)
    for family in ("-4", "-6"):
        for route in _json(["ip", "-j", family, "route", "show"]):
            if route.get("dst", "default") != "default":
                yield "route", route.get("dev", "?"), route["dst"]


def _json(command: list[str]) -> list[dict[str, Any]]:
    status, output, _ = _run(command)
    found = json.loads(output or "[]") if status == 0 else []
    return [entry for entry in found if entry]


def _run(command: list[str], given: str = "", seconds: float = CHILD_SECONDS) -> tuple[int, str, str]:
    """Exit status, output and errors of a child; 127 when it cannot be started or does not end."""
    try:
        ended = subprocess.run(command, input=given, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, "", str(error)
    return ended.returncode, ended.stdout, ended.stderr
