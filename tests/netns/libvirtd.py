"""A real libvirtd with QEMU's driver in a lab's hypervisor, and the guests behind the taps of its domains.

    with Libvirtd(lab.host) as libvirtd:
        libvirtd.create("one", uuid_of(1), interface("tap1"), nova(...))
        with behind(lab, "tap1") as guest, Talk(guest) as talk:
            ...

It has a mount namespace of its own, in which its folders are ones of the test's; its sockets and state files are seen
from outside in `run`. Domains run under TCG (no /dev/kvm is needed) and have no disk: their firmware finds nothing to
boot. So what a guest sends comes from a kernel in a namespace, by further queues of the domain's own tap.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from uuid import UUID

from tests.lab import Lab, Namespace, TapGuest
from tests.lab.namespace import wait_until
from tests.lab.proc import command_line
from tests.libvirt_folders import FOLDERS, USERS, furnish

DAEMON = "/usr/sbin/libvirtd"
EMULATOR = "/usr/bin/qemu-system-x86_64"
START_SECONDS = 30.0
FRAME = 1 << 17


class Libvirtd:
    """Runs in `host` within the `with`."""

    def __init__(self, host: Namespace) -> None:
        self.host = host
        self.folder = Path(tempfile.mkdtemp(prefix="libvirtd-"))
        furnish(self.folder)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        """The folder of its state files."""
        return self.folder / "run/libvirt/qemu"

    @property
    def uri(self) -> str:
        """How it is reached from outside, for who only reads."""
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt/libvirt-sock-ro"

    @property
    def pid(self) -> int:
        return int((self.folder / "run/libvirtd.pid").read_text())

    def __enter__(self) -> Libvirtd:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.end_all()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, again after `kill`, and wait until it answers."""
        hidden = {name: f"/etc/{name}" for name in USERS} | FOLDERS
        mounts = [f"mount --bind {self.folder}/{name} {path}" for name, path in hidden.items()]
        script = " && ".join(["mount --make-rprivate /", *mounts, f"exec {DAEMON} -p /run/libvirtd.pid"])
        with (self.folder / "out").open("ab") as out:
            self._process = self.host.popen(["unshare", "--mount", "sh", "-c", script], stdout=out, stderr=out)
        end = time.monotonic() + START_SECONDS
        while self.virsh("list", check=False).returncode:
            assert self._process.poll() is None, (self.folder / "out").read_text()
            assert time.monotonic() < end, "libvirtd does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9; its domains go on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            (self.folder / "run/libvirtd.pid").unlink(missing_ok=True)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing for a while (SIGSTOP)."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def virsh(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One command, by the socket for those who may write."""
        argv = ["virsh", "--quiet", "--connect", self.uri.removesuffix("-ro"), *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done

    def _document(self, xml: str) -> str:
        path = self.folder / "document.xml"
        path.write_text(xml)
        return str(path)

    def create(self, name: str, instance: UUID, devices: str, metadata: str = "") -> None:
        """Start a domain; it goes when it ends."""
        self.virsh("create", self._document(domain(name, instance, devices, metadata)))

    def attach(self, name: str, device: str) -> None:
        """Plug a device into a running domain."""
        self.virsh("attach-device", name, self._document(device), "--live")

    def detach(self, name: str, device: str) -> None:
        """Unplug it; a guest without software lets go of what is on USB only."""
        self.virsh("detach-device", name, self._document(device), "--live")

    def emulators(self) -> list[int]:
        """The processes of its domains."""
        return [pid for pid in self.host.pids() if command_line(pid).startswith(EMULATOR.encode())]

    def domains(self) -> list[str]:
        """Those that it takes for running: it notices an end a moment later."""
        return self.virsh("list", "--name").stdout.split()

    def end_all(self) -> None:
        """The end of all domains."""
        for pid in self.emulators():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.emulators(), "the domains' end")

    def end(self, name: str) -> None:
        """The domain's process dies, as that of a guest that crashes does."""
        pid = int((self.state / f"{name}.pid").read_text())
        os.kill(pid, signal.SIGKILL)


def domain(name: str, instance: UUID, devices: str, metadata: str = "") -> str:
    """A small one that runs anywhere."""
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{instance}</uuid><metadata>{metadata}</metadata>"
        "<memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>"
        f"<features><acpi/></features><devices><emulator>{EMULATOR}</emulator><memballoon model='none'/>"
        f"<controller type='usb' model='piix3-uhci'/>{devices}</devices></domain>"
    )


def interface(tap: str, mac: str = "52:54:00:00:00:01", model: str = "virtio", port: str = "") -> str:
    """One on the lab's bridge, with queues to spare, and without a boot ROM, which would set the device up its way."""
    queues = "<driver name='qemu' queues='2'/><rom enabled='no'/>" if model == "virtio" else ""
    named = f"<virtualport type='openvswitch'><parameters interfaceid='{port}'/></virtualport>" if port else ""
    return (
        f"<interface type='bridge'><mac address='{mac}'/><source bridge='br0'/>{named}<target dev='{tap}'/>"
        f"<model type='{model}'/>{queues}</interface>"
    )


def nova(project: str, ports: str = "", name: str = "web") -> str:
    """Nova's metadata; `ports` are elements."""
    return (
        '<nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"><nova:package version="27.1.0"/>'
        f'<nova:name>{name}</nova:name><nova:flavor name="m1.small"><nova:vcpus>1</nova:vcpus></nova:flavor>'
        f'<nova:owner><nova:user uuid="u">alice</nova:user><nova:project uuid="{project}">shop</nova:project>'
        f"</nova:owner><nova:ports>{ports}</nova:ports></nova:instance>"
    )


@contextlib.contextmanager
def behind(lab: Lab, tap: str, v4: str = "10.0.0.5/24") -> Iterator[Namespace]:
    """A guest's kernel: a namespace whose `eth0` is joined to a domain's tap, frame by frame with its header."""
    guest = lab.namespace(f"behind-{tap}")
    inner = TapGuest(guest, "eth0", bridge=None, vnet_hdr=True)
    outer = TapGuest(lab.host, tap, bridge=None, queues=2, vnet_hdr=True)
    address, _, length = v4.partition("/")
    guest.ip.addr("add", index=inner.ifindex, address=address, prefixlen=int(length))
    guest.ip.route("add", dst="169.254.0.0/16", oif=inner.ifindex, scope=253)
    done = threading.Event()
    relay = threading.Thread(target=_relay, args=(inner.fds, outer.fds, done))
    relay.start()
    try:
        yield guest
    finally:
        done.set()
        relay.join()
        outer.close()
        inner.close()
        guest.close()


def _relay(inner: list[int], outer: list[int], done: threading.Event) -> None:
    poll = select.poll()
    for fd in (*inner, *outer):
        poll.register(fd, select.POLLIN)
    while not done.is_set():
        for fd, _ in poll.poll(50):
            with contextlib.suppress(OSError):  # the tap's owner may end at any time
                os.write(outer[0] if fd in inner else inner[0], os.read(fd, FRAME))
