"""What is done with the machines, once there is a libvirtd: up, the tests in each, those of both, reports."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.vm import cache
from vagrant import boxes
from vagrant.progress import Say
from vagrant.recipe import BOTH, HYPERVISOR, MACHINES, OTHER, Machine

TESTS = "/opt/metashim/tests/vagrant"
RESULT = "/tmp/result.xml"
# Vagrant's own lines of a machine's; that of the upload's progress and the settings of a domain are many.
TOLD = re.compile(r"^==> (\w+): (?! -- |.*\d%|Warning)(.*)|^ +(\w+): (install: .*)")
MOMENTS = ("journalctl --boot --no-pager --output short-monotonic --lines 2000", "metashim status", "nft list ruleset")


class Machines:
    """The two of the Vagrantfile; `folder` is the run's."""

    def __init__(self, folder: Path, results: Path, driver: str, say: Say) -> None:
        self.folder, self.results, self.say = folder, results, say
        self.environment = environment(folder, driver)

    def up(self) -> None:
        """Start both side by side, and install metashim in each. RuntimeError."""
        self.say("vagrant up")
        with (self.results / "vagrant.log").open("w") as log:
            argv = ["vagrant", "up", "--provider", "libvirt", "--parallel"]
            process = subprocess.Popen(argv, **self._vagrant(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                if told := TOLD.match(line.rstrip()):
                    self.say(f"{told[1] or told[3]}: {told[2] or told[4]}")
        if process.wait():
            text = (self.results / "vagrant.log").read_text()
            raise RuntimeError(f"vagrant up failed; the whole of it is in {self.results}/vagrant.log\n{text[-2000:]}")
        config = subprocess.run(["vagrant", "ssh-config"], **self._vagrant(), stdout=subprocess.PIPE, check=True)
        (self.folder / "ssh-config").write_text(config.stdout)

    def _vagrant(self) -> dict[str, object]:
        return {"cwd": boxes.TREE / "vagrant", "env": self.environment, "stdin": subprocess.DEVNULL, "text": True}

    def ssh(self, machine: Machine, command: str, **more: object) -> subprocess.CompletedProcess[str]:
        """One command there, as root."""
        argv = ["ssh", "-q", "-F", str(self.folder / "ssh-config"), machine.name, f"sudo sh -c {shlex.quote(command)}"]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, text=True, check=False, **more)  # type: ignore[call-overload]

    def supply(self, machine: Machine) -> None:
        """Copy there what guests in it are started from, to the same paths."""
        files = (self.folder / "tiny").read_text().splitlines()
        ssh = f"ssh -q -F {self.folder / 'ssh-config'}"
        argv = ["rsync", "--dirs", "--relative", "--perms", "--links", "--rsync-path", "sudo rsync", "-e", ssh]
        subprocess.run([*argv, *files, f"{machine.name}:/"], check=True)

    def own_tests(self, machine: Machine, only: Sequence[str]) -> int:
        """Those of one host, or only these."""
        return self.tests(machine, machine.name, only or ["--nested"] * machine.nested)

    def tests(self, machine: Machine, name: str, words: Sequence[str] = ()) -> int:
        """Run those inside, and fetch their report as `name`.xml; pytest's exit status."""
        self.say(f"{machine.name}: tests ({name})")
        command = ["env", f"METASHIM_CACHE={cache.folder()}", f"{TESTS}/inside", RESULT, *words]
        with (self.results / f"{name}.log").open("w") as log:
            argv = ["ssh", "-q", "-F", str(self.folder / "ssh-config"), machine.name, "sudo", shlex.join(command)]
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                self.say(f"{machine.name}: {line.rstrip()}")
        status = process.wait()
        fetched = self.ssh(machine, f"cat {RESULT} && rm {RESULT}", stdout=subprocess.PIPE)
        if fetched.returncode == 0:
            (self.results / f"{name}.xml").write_text(fetched.stdout)
        self.say(f"{machine.name}: tests ({name}) ended with {status}")
        if status:
            self.moments(machine, name)
        return status if fetched.returncode == 0 else status or 1

    def moments(self, machine: Machine, name: str) -> None:
        """Keep what the machine says of itself when a test has failed."""
        with (self.results / f"{name}.state").open("w") as told:
            for command in MOMENTS:
                print(f"# {command}", file=told, flush=True)
                self.ssh(machine, command, stdout=told, stderr=subprocess.STDOUT)


def environment(folder: Path, driver: str) -> dict[str, str]:
    """What Vagrant and the Vagrantfile go by. Vagrant keeps nothing outside the run's folder."""
    return os.environ | {
        "HOME": str(folder),
        "VAGRANT_HOME": str(folder / "home"),
        "VAGRANT_DOTFILE_PATH": str(folder / "dot"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_NO_COLOR": "1",
        "METASHIM_LOCAL": str(folder),
        "METASHIM_DRIVER": {"tcg": "qemu"}.get(driver, driver),
        "METASHIM_BOX": boxes.name(HYPERVISOR.distribution.suite),
        "METASHIM_BOX_OTHER": boxes.name(OTHER.distribution.suite),
    }


def run(folder: Path, results: Path, driver: str, say: Say, words: Sequence[str]) -> int:
    """All of it; 0 where all tests passed."""
    only = [word for word in words if word != "--keep"]
    machines = Machines(folder, results, driver, say)
    try:
        machines.up()
        with ThreadPoolExecutor() as pool:
            list(pool.map(machines.supply, MACHINES))
            statuses = list(pool.map(lambda one: machines.own_tests(one, only), MACHINES))
        if not only:
            statuses.append(both(machines))
    finally:
        for console in folder.glob("*.console"):
            shutil.copy(console, results)
        if "--keep" in words and (folder / "ssh-config").exists():
            say("kept until Ctrl-C. In another terminal: vagrant/shell hypervisor, or other")
            signal.pause()
    return max(statuses)


def both(machines: Machines) -> int:
    """The tests of two hosts: one listens, the tests run on the other."""
    peer = f"{TESTS}/peer --listen {OTHER.address}"
    started = machines.ssh(OTHER, f"systemd-run --quiet --unit=metashim-peer {peer}")
    if started.returncode:
        machines.say("other: the peer did not start")
        return 1
    status = machines.tests(HYPERVISOR, BOTH, ["--other", OTHER.address])
    if status:
        machines.moments(OTHER, f"{BOTH}-{OTHER.name}")
    return status
