"""Whether guests run under KVM or are emulated (TCG): tried, as /dev/kvm may be there and be useless."""

from __future__ import annotations

import functools
import os
import subprocess
import time
from pathlib import Path

from tests.vm import image

KVM, VHOST = Path("/dev/kvm"), Path("/dev/vhost-net")
QEMU = "qemu-system-x86_64"
TRIAL_SECONDS = 6.0  # a tiny guest takes less than one under a KVM that works
TCG_OPTIONS = ["-accel", "tcg,thread=multi", "-cpu", "max"]
KVM_OPTIONS = ["-accel", "kvm", "-cpu", "host"]


@functools.cache
def choice() -> tuple[str, str]:
    """`kvm` or `tcg`, and why; tried once a session."""
    if not KVM.exists():
        return "tcg", f"there is no {KVM}"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "tcg", f"{KVM} is not ours to use"
    return _tried()


def has_vhost() -> bool:
    """Whether the kernel can move a guest's frames itself."""
    return VHOST.exists()


def options() -> list[str]:
    """QEMU's options for what was chosen."""
    return KVM_OPTIONS if choice()[0] == "kvm" else TCG_OPTIONS


def _tried() -> tuple[str, str]:
    """Boot a tiny guest without network under KVM."""
    argv = [QEMU, *KVM_OPTIONS, "-M", "q35", "-m", "128", "-nodefaults", "-display", "none", "-no-reboot"]
    argv += ["-serial", "stdio", "-kernel", str(image.kernel()), "-initrd", str(image.initrd())]
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*argv, "-append", "console=ttyS0 quiet panic=-1"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "tcg", f"{KVM} is there, but a guest did not boot under it within {TRIAL_SECONDS:.0f} s"
    if b"\n=== end 0" in done.stdout:
        return "kvm", f"a guest booted under it in {time.monotonic() - start:.1f} s"
    return "tcg", f"{KVM} is there, but a guest does not boot under it: {_last_line(done.stderr or done.stdout)}"


def _last_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:120] if lines else "it says nothing"
