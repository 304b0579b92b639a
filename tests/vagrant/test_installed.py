"""metashim as systemd has it: the unit, its limits, the descriptors it keeps, the journal, and the operator's verbs."""

from __future__ import annotations

import json
import pwd
import re
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import VethGuest
from tests.lab.namespace import wait_until
from tests.netns.hypervisor import uuid_of
from tests.netns.say import get
from tests.netns.talk import ID, outcome
from tests.netns.test_unit import values
from tests.vagrant import told
from tests.vagrant.installed import SECONDS, UNIT, Installed, status_of

ALICE = uuid_of(1)
ACCESS = ["instance", "project", "port", "family", "method", "path"]
ACCESS += ["status", "bytes", "ms", "backend", "token", "trace"]
INFO, DEBUG = "6", "7"


@pytest.fixture(scope="module")
def alice(site: Installed) -> Iterator[VethGuest]:
    yield site.guest("alice", ALICE, {"name": "alice", "project_id": "blue"})


def bits(names: list[str]) -> int:
    """A set of capabilities as /proc shows it (linux/capability.h), by capsh's own numbers."""
    shown = Path("/usr/include/linux/capability.h").read_text()
    numbers = dict(re.findall(r"^#define (CAP_\w+)\s+(\d+)$", shown, re.MULTILINE))
    return sum(1 << int(numbers[name]) for name in names)


class TestUnit:
    def test_is_up_by_its_own_word_and_comes_at_boot(self, site):
        shown = site.shown("ActiveState", "SubState", "Type", "UnitFileState", "Result", "WantedBy", "NotifyAccess")
        assert shown == {
            "ActiveState": "active",
            "SubState": "running",
            "Type": "notify",
            "UnitFileState": "enabled",
            "Result": "success",
            "WantedBy": "multi-user.target",
            "NotifyAccess": "main",
        }
        assert site.systemctl("--failed", "--no-legend", "--plain") == ""

    def test_says_nothing_is_wrong_with_its_settings(self, site):
        """systemd only warns of what it does not understand: in the journal, when it loads a unit."""
        said = site.host.run(["journalctl", "--no-pager", "--quiet", "--output=cat", f"UNIT={UNIT}", "_PID=1"]).stdout
        assert not re.findall(r".*(?:Unknown|Failed to parse|ignoring|Invalid).*", said), said

    def test_the_agent_has_the_units_limits(self, site):
        agent = status_of(site.agent)
        assert int(agent["CapBnd"], 16) == bits(values("CapabilityBoundingSet"))
        assert int(agent["CapEff"], 16) == bits(values("CapabilityBoundingSet"))
        assert (agent["NoNewPrivs"], agent["Seccomp"]) == ("1", "2")
        assert Path(f"/proc/{site.agent}/oom_score_adj").read_text().strip() == "-500"
        assert resource.prlimit(site.agent, resource.RLIMIT_NOFILE) == (65536, 65536)
        assert resource.prlimit(site.agent, resource.RLIMIT_MEMLOCK) == (resource.RLIM_INFINITY,) * 2

    def test_a_worker_is_nobody(self, site):
        worker = status_of(site.worker)
        uid = str(pwd.getpwnam("metashim").pw_uid)
        assert worker["Uid"].split() == [uid] * 4
        assert [int(worker[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0] * 5
        assert (worker["NoNewPrivs"], worker["Seccomp"]) == ("1", "2")

    def test_is_in_the_hosts_mount_namespace(self, site):
        for pid in (site.agent, site.worker):
            assert Path(f"/proc/{pid}/ns/mnt").readlink() == Path("/proc/1/ns/mnt").readlink()
        assert Path("/run/netns/metashim").exists()

    def test_systemd_keeps_what_the_proxy_listens_on(self, site):
        assert site.shown("NFileDescriptorStore") == {"NFileDescriptorStore": "2"}


class TestJournal:
    def test_a_request_is_one_line_of_json(self, site, alice):
        since = time.time()
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        answer = get(alice, ID, timeout=SECONDS, traceparent=f"00-{trace}-00f067aa0ba902b7-01")
        assert (answer.status, answer.body) == (200, str(ALICE).encode())
        wait_until(lambda: trace in str(site.journal(since)), "the line of the access log", SECONDS)
        (entry,) = [entry for entry in site.journal(since) if trace in entry["MESSAGE"]]
        line = json.loads(entry["MESSAGE"])
        assert list(line) == ACCESS
        assert line["instance"], line["project"] == (str(ALICE), "blue")
        assert (line["family"], line["method"], line["path"]) == (4, "GET", "ec2/meta-data")
        assert (line["status"], line["bytes"], line["backend"], line["token"]) == (200, 36, "embedded", False)
        assert (entry["_SYSTEMD_UNIT"], entry["PRIORITY"]) == (UNIT, INFO)

    def test_readmes_line_finds_who_had_errors(self, site, alice):
        assert get(alice, "/latest/nothing", timeout=SECONDS).status == 404
        line = told.command("journalctl -u metashim").replace(">= 500", ">= 400")
        wait_until(lambda: str(ALICE) in site.host.run(["bash", "-c", line]).stdout.split(), "it to say so", SECONDS)

    def test_the_agents_lines_have_priorities_and_no_time_of_their_own(self, site):
        entries = [entry for entry in site.journal() if entry.get("_PID") == str(site.agent)]
        assert entries
        for entry in entries:
            assert re.match(r"(\{\"|[a-z_.]+: )", entry["MESSAGE"]), entry["MESSAGE"]
            assert entry["PRIORITY"] in "3456"
        assert "Traceback" not in site.log_text()


class TestVerbs:
    def test_check_finds_nothing(self, site):
        checked = json.loads(site.metashim("check", "--json"))
        assert checked

    def test_status(self, site, alice):
        said = json.loads(site.metashim("status", "--json"))
        assert (said["datapath"], said["fallback"]) == ("ebpf", "")
        assert said["ailments"] == []

    def test_why(self, site, alice):
        said = site.metashim("why", str(ALICE), ID)
        assert said.splitlines()[0] == f"GET {ID} of {ALICE}, by tap-alice, over IPv4"
        assert said.splitlines()[-1].startswith("= 200 OK"), said

    def test_trace(self, site, alice):
        """A connection from its SYN to its answer, as README shows one."""
        argv = ["metashim", "trace", str(ALICE), "--count", "8"]
        trace = site.host.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(trace.stdout))
        reader.start()
        wait_until(lambda: any(line.startswith("tracing tap-alice") for line in lines), "the trace to begin", SECONDS)
        assert outcome(alice, timeout=SECONDS) == str(ALICE)
        wait_until(lambda: any("HTTP 200" in line for line in lines), f"the answer in {lines}", SECONDS)
        outcome(alice, timeout=SECONDS)
        reader.join(SECONDS)
        said = "".join(lines)
        assert trace.wait(SECONDS) == 0, said
        assert re.search(r" tap-alice → TCP 10\.0\.0\.5:\d+ > 169\.254\.169\.254:80 S seq .* opened", said), said
        assert re.search(r" tap-alice → TCP .* GET /latest/meta-data/instance-id  delivered", said), said
        assert re.search(r" tap-alice ← TCP 169\.254\.169\.254:80 > .* HTTP 200  replied", said), said


def test_an_operator_switches_a_guest_off_and_on(site: Installed, alice: VethGuest) -> None:
    site.metashim("disable", str(ALICE))
    assert outcome(alice, timeout=SECONDS) == "refused"
    assert outcome(alice, "fd00:ec2::254", timeout=SECONDS) == "refused"
    site.metashim("enable", str(ALICE))
    assert outcome(alice, timeout=SECONDS) == str(ALICE)


def test_a_stranger_is_refused(site: Installed) -> None:
    """A tap that nobody names, on the same bridge as Alice's and with her addresses."""
    stranger = site.guest("stranger", None)
    site.await_port(stranger.tap, None)
    assert outcome(stranger, timeout=2) in ("timeout", "No route to host")
