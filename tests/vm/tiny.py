"""The tiny guest: Debian's cloud kernel, busybox, and a script. Boots, runs it and powers off in a few seconds.

    Tap(lab.host, "tap1")
    said = Tiny(lab.host, [Nic("tap1", MAC)]).run('''
        configure eth0 10.0.0.5/24
        get $V4 /latest/meta-data/instance-id
    ''')
    assert said.status == 0, said.text

In a script there are busybox's commands and those of guest.sh. Devices are eth0, eth1, in the order given; nothing is
configured, not even an address, but for the loopback and what the kernel makes itself (fe80::).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import Namespace
from tests.vm import image
from tests.vm.initramfs import archive, file
from tests.vm.machine import Machine, Nic

QUIET = "quiet panic=-1 mitigations=off cryptomgr.notests"  # the last two save a third of an emulated boot
BEGIN, END = "=== begin\n", r"(?:^\n)?^=== end (\d+)$"  # on a line of its own, whatever the script ended with
BOOT_SECONDS = 200.0  # some 4 s where nobody else wants the CPUs


@dataclass(frozen=True, slots=True)
class Output:
    """What a script wrote, standard error included, and the status that it ended with."""

    text: str
    status: int

    def value(self, name: str) -> str:
        """The last `name=value` line's value. LookupError."""
        found = re.findall(rf"^{re.escape(name)}=(.*)$", self.text, re.MULTILINE)
        if not found:
            raise LookupError(f"the guest did not say {name}=:\n{self.text}")
        return str(found[-1])


def output_of(console: str) -> Output:
    """The script's part of what a console said. ValueError where it did not end."""
    before, _, rest = console.partition(BEGIN)
    ended = list(re.finditer(END, rest, re.MULTILINE))
    if not ended:
        raise ValueError(f"the script did not end:\n{rest or before}")
    return Output(rest[: ended[-1].start()], int(ended[-1].group(1)))


class Guest(Machine):
    """A tiny guest that runs its script."""

    def tell(self, word: str) -> None:
        """Tell it a word, once its script runs: before, nothing listens at the serial port."""
        self.await_line(BEGIN, BOOT_SECONDS)
        super().tell(word)

    def output(self, seconds: float = BOOT_SECONDS) -> Output:
        """What the script wrote, once the guest has powered off. MachineError."""
        self.await_line(END, seconds)
        self.wait(seconds)
        return output_of(self.text())


class Tiny:
    """What a tiny guest is; each `start` or `run` boots one. Further arguments are `Hardware`'s.

    With "tiny.dad" in `append` its kernel looks for duplicates of its IPv6 addresses, which takes a second or two.
    """

    def __init__(
        self, host: Namespace, nics: Sequence[Nic] = (), *, append: str = "", memory: int = 112, **hardware: Any
    ) -> None:
        self.host = host
        self._hardware = {"nics": nics, "append": f"{QUIET} {append}".strip(), "memory": memory, **hardware}

    def start(self, script: str) -> Guest:
        """Boot one that runs the script and powers off; to be closed."""
        folder = Path(tempfile.mkdtemp(prefix="tiny-"))
        initrd = folder / "initrd"
        initrd.write_bytes(image.initrd().read_bytes() + archive([file("script", script.encode(), 0o755)]))
        return Guest(self.host, folder, kernel=image.kernel(), initrd=initrd, **self._hardware)

    def run(self, script: str, seconds: float = BOOT_SECONDS) -> Output:
        """Boot one and wait for its end."""
        with self.start(script) as guest:
            return guest.output(seconds)
